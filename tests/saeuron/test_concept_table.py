import pytest
import torch

from saeuron import Ablate, ConceptStatistics, SaeuronError
from saeuron.concept_table import WholeTable
from tests.saeuron.pictures import CLOSE, CONCEPTS, TIMESTEPS, fill, new_statistics, plain_means, table_of


def test_streaming_means_equal_plain_means(images):
    table = table_of(images)
    for name in CONCEPTS:
        expected = plain_means(images, lambda names, name=name: name in names)
        torch.testing.assert_close(table.means(name).double(), expected, **CLOSE)


def test_scores_are_the_paper_s(images):
    table = table_of(images)
    for name, kind in CONCEPTS.items():
        others = {other for other in CONCEPTS if CONCEPTS[other] == kind and other != name}
        own = plain_means(images, lambda names, name=name: name in names)
        rest = plain_means(images, lambda names, others=others: others & set(names))
        expected = own / own.sum(1, keepdim=True) - rest / rest.sum(1, keepdim=True)
        torch.testing.assert_close(table.scores(name).double(), expected, **CLOSE)


def test_latents_that_never_fire_score_nothing():
    statistics = new_statistics()
    for timestep in TIMESTEPS:
        statistics.add([["cat"], ["dog"]], timestep, torch.zeros(2, 12))
    assert torch.equal(WholeTable(statistics).scores("cat"), torch.zeros(3, 12))


def test_kinds_are_kept_apart(images):
    """What styles do changes neither the scores nor the averages of objects."""
    statistics = fill(new_statistics(), images)
    table = WholeTable(statistics)
    before = table.scores("cat").clone(), table.kind_mean("cat").clone()
    for timestep in TIMESTEPS:
        statistics.add([["oil"], ["ink"]], timestep, 100 * torch.ones(2, 12))
    table = WholeTable(statistics)
    assert torch.equal(table.scores("cat"), before[0]) and torch.equal(table.kind_mean("cat"), before[1])


def test_the_average_weighs_concepts_alike_and_skips_those_without_images(images):
    statistics = fill(new_statistics(concepts=CONCEPTS | {"unseen": "object"}), images)
    statistics.add([["cat"]] * 9, 901, torch.ones(9, 12))
    table = WholeTable(statistics)
    expected = torch.stack([table.means(name) for name in ("cat", "dog", "bird")]).mean(0)
    torch.testing.assert_close(table.kind_mean("cat"), expected, **CLOSE)


def test_the_best_latents_are_selected_at_each_timestep(images):
    table = table_of(images)
    selection = table.select("cat", 3, strength=-7)
    assert selection.latents.tolist() == table.scores("cat").argsort(1, descending=True)[:, :3].tolist()
    assert selection.timesteps.tolist() == TIMESTEPS and selection.concepts == ("cat",)
    for column in range(3):
        chosen = selection.latents[column]
        assert torch.equal(selection.means[column], table.means("cat")[column, chosen])
        assert torch.equal(selection.kind_means[column], table.kind_mean("cat")[column, chosen])
    assert (selection.strengths == -7).all()


def test_the_best_latents_once_for_all_timesteps_are_those_of_the_mean_score(images):
    table = table_of(images)
    selection = table.select("cat", 2, per_timestep=False)
    assert selection.latents.tolist() == [table.scores("cat").mean(0).argsort(descending=True)[:2].tolist()] * 3
    assert torch.equal(selection.means[1], table.means("cat")[1, selection.latents[1]])


def test_no_latents_make_an_empty_selection(images):
    table = table_of(images)
    assert table.select("cat", 0).is_empty and table.select("cat", 0, per_timestep=False).is_empty


@pytest.mark.parametrize("count", [-1, 13])
def test_an_impossible_number_of_latents_is_refused(images, count):
    with pytest.raises(SaeuronError, match="between 0 and 12"):
        table_of(images).select("cat", count)


def test_a_concept_without_images_is_refused(images):
    statistics = new_statistics()
    statistics.add([["cat"]], 901, torch.ones(1, 12))
    with pytest.raises(SaeuronError, match="'cat' has no images at some timesteps"):
        WholeTable(statistics).select("cat", 1)


def test_a_concept_without_another_of_its_kind_has_no_score():
    statistics = ConceptStatistics({"cat": "object", "oil": "style"}, [1], 12, "sae")
    statistics.add([["cat", "oil"]], 1, torch.ones(1, 12))
    with pytest.raises(SaeuronError, match="'cat' is the only object"):
        WholeTable(statistics).scores("cat")


def test_the_table_of_another_sae_is_refused_with_both_named(images, make_sae):
    table, sae = table_of(images), make_sae()
    for use in (lambda: table.check_belongs(sae.fingerprint), lambda: Ablate(sae, table.select("cat", 1))):
        with pytest.raises(SaeuronError) as refusal:
            use()
        assert "the SAE sae and this SAE is " + sae.fingerprint in " ".join(str(refusal.value).split())


def test_a_concept_with_more_pictures_weighs_more_in_what_the_others_show(images):
    """The others' mean is over their pictures, not over their means."""
    labels, latents = images
    few = [n for n, names in enumerate(labels) if "dog" not in names or n % 5 == 1]
    table = table_of(([labels[n] for n in few], {t: values[few] for t, values in latents.items()}))
    own = plain_means(images, lambda names: "cat" in names)
    rest = [n for n in few if "cat" not in labels[n]]
    assert len({sum(name in labels[n] for n in rest) for name in ("dog", "bird")}) == 2
    pooled = torch.stack([latents[t][rest].double().mean(0) for t in TIMESTEPS])
    expected = own / own.sum(-1, keepdim=True) - pooled / pooled.sum(-1, keepdim=True)
    torch.testing.assert_close(table.scores("cat").double(), expected, **CLOSE)


def test_another_concept_without_pictures_has_no_mean_to_be_largest(images):
    labels, latents = images
    chosen = [n for n, names in enumerate(labels) if "bird" not in names]
    table = table_of(([labels[n] for n in chosen], {t: values[chosen] for t, values in latents.items()}))
    dog = plain_means(images, lambda names: "dog" in names)
    torch.testing.assert_close(table.max_other_mean("cat").double(), dog, **CLOSE)
    assert table.max_other_mean("cat").isfinite().all()


def test_a_table_in_which_nothing_ever_fires_scores_nothing():
    statistics = new_statistics()
    statistics.counts += 3
    table = WholeTable(statistics)
    assert not table.scores("cat").any() and not table.max_other_mean("cat").any()
    assert table.select("cat", 3).means.tolist() == [[0.0] * 3] * 3


def test_the_largest_mean_of_another_concept_is_one_of_its_kind_s():
    statistics = new_statistics()
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(3))
    statistics.counts += 1
    table = WholeTable(statistics)
    for name, kind in CONCEPTS.items():
        others = [table.means(other) for other in CONCEPTS if CONCEPTS[other] == kind and other != name]
        assert torch.equal(table.max_other_mean(name), torch.stack(others).amax(0))
