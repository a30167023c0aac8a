import pytest
import torch

from saeuron import Ablate, ConceptTable, SaeuronError, save_sae
from saeuron.files import read_tensors, write_tensors

CONCEPTS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
TIMESTEPS = [901, 501, 101]

# Means of a few float32 values of order 1, summed in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def new_table(**options):
    named = {"concepts": CONCEPTS, "timesteps": TIMESTEPS, "n_latents": 12, "fingerprint": "sae"} | options
    return ConceptTable(**named)


@pytest.fixture
def images(make_tokens):
    """Labels and latents of 30 images: ``latents[timestep][image]``; every object is seen in every style."""
    objects, styles = ("cat", "dog", "bird"), ("oil", "ink")
    labels = [(objects[n % 3], styles[n % 2]) for n in range(30)]
    return labels, {t: make_tokens(30, 12, seed=t).relu() for t in TIMESTEPS}


def fill(table, images, rows=slice(None), batch=7):
    labels, latents = images
    labels = labels[rows]
    for timestep, values in latents.items():
        values = values[rows]
        for start in range(0, len(labels), batch):
            table.add(labels[start : start + batch], timestep, values[start : start + batch])
    return table


def plain_means(images, shows):
    """[timesteps, latents] of the images whose labels ``shows`` accepts, in float64."""
    labels, latents = images
    chosen = [n for n, names in enumerate(labels) if shows(names)]
    return torch.stack([latents[t][chosen].double().mean(0) for t in TIMESTEPS])


def test_streaming_means_equal_plain_means(images):
    table = fill(new_table(), images)
    for name in CONCEPTS:
        expected = plain_means(images, lambda names, name=name: name in names)
        torch.testing.assert_close(table.means(name).double(), expected, **CLOSE)


def test_memory_does_not_grow_with_the_number_of_images(images, tmp_path):
    def size():
        table.save(tmp_path / "table")
        return (tmp_path / "table").stat().st_size, sum(v.nbytes for v in vars(table).values() if torch.is_tensor(v))

    table = fill(new_table(), images)
    before = size()
    for _ in range(5):
        fill(table, images)
    assert size() == before


def test_scores_are_the_paper_s(images):
    table = fill(new_table(), images)
    for name, kind in CONCEPTS.items():
        others = {other for other in CONCEPTS if CONCEPTS[other] == kind and other != name}
        own = plain_means(images, lambda names, name=name: name in names)
        rest = plain_means(images, lambda names, others=others: others & set(names))
        expected = own / own.sum(1, keepdim=True) - rest / rest.sum(1, keepdim=True)
        torch.testing.assert_close(table.scores(name).double(), expected, **CLOSE)


def test_latents_that_never_fire_score_nothing():
    table = new_table()
    for timestep in TIMESTEPS:
        table.add([["cat"], ["dog"]], timestep, torch.zeros(2, 12))
    assert torch.equal(table.scores("cat"), torch.zeros(3, 12))


def test_kinds_are_kept_apart(images):
    """What styles do changes neither the scores nor the averages of objects."""
    table = fill(new_table(), images)
    before = table.scores("cat").clone(), table.average("cat").clone()
    for timestep in TIMESTEPS:
        table.add([["oil"], ["ink"]], timestep, 100 * torch.ones(2, 12))
    assert torch.equal(table.scores("cat"), before[0]) and torch.equal(table.average("cat"), before[1])


def test_the_average_weighs_concepts_alike_and_skips_those_without_images(images):
    table = fill(new_table(concepts=CONCEPTS | {"unseen": "object"}), images)
    table.add([["cat"]] * 9, 901, torch.ones(9, 12))
    expected = torch.stack([table.means(name) for name in ("cat", "dog", "bird")]).mean(0)
    torch.testing.assert_close(table.average("cat"), expected, **CLOSE)


def test_an_image_without_any_concept_counts_for_none(images):
    table = fill(new_table(), images)
    before = table.sums.clone()
    table.add([[], []], 901, torch.ones(2, 12))
    table.add([], 901, torch.ones(0, 12))
    assert torch.equal(table.sums, before)


def test_the_best_latents_are_selected_at_each_timestep(images):
    table = fill(new_table(), images)
    selection = table.select("cat", 3, strength=-7)
    assert selection.latents.tolist() == table.scores("cat").argsort(1, descending=True)[:, :3].tolist()
    assert selection.timesteps.tolist() == TIMESTEPS and selection.concepts == ("cat",)
    for column in range(3):
        chosen = selection.latents[column]
        assert torch.equal(selection.means[column], table.means("cat")[column, chosen])
        assert torch.equal(selection.thresholds[column], table.average("cat")[column, chosen])
    assert (selection.strengths == -7).all()


def test_the_best_latents_once_for_all_timesteps_are_those_of_the_mean_score(images):
    table = fill(new_table(), images)
    selection = table.select("cat", 2, per_timestep=False)
    assert selection.latents.tolist() == [table.scores("cat").mean(0).argsort(descending=True)[:2].tolist()] * 3
    assert torch.equal(selection.means[1], table.means("cat")[1, selection.latents[1]])


def test_no_latents_make_an_empty_selection(images):
    table = fill(new_table(), images)
    assert table.select("cat", 0).is_empty and table.select("cat", 0, per_timestep=False).is_empty


@pytest.mark.parametrize("count", [-1, 13])
def test_an_impossible_number_of_latents_is_refused(images, count):
    with pytest.raises(SaeuronError, match="between 0 and 12"):
        fill(new_table(), images).select("cat", count)


def test_an_unknown_concept_is_refused_with_the_nearest(images):
    table = fill(new_table(), images)
    for ask in (lambda: table.select("brid", 1), lambda: table.add([["brid"]], 901, torch.ones(1, 12))):
        with pytest.raises(SaeuronError, match="'brid' is not in the table; the nearest are bird"):
            ask()


def test_an_unrecorded_timestep_is_refused():
    with pytest.raises(SaeuronError, match="timestep 7 is not one of the table's 3"):
        new_table().add([["cat"]], 7, torch.ones(1, 12))


def test_a_concept_without_images_is_refused(images):
    table = new_table()
    table.add([["cat"]], 901, torch.ones(1, 12))
    with pytest.raises(SaeuronError, match="'cat' has no images at some timesteps"):
        table.select("cat", 1)


def test_a_concept_without_another_of_its_kind_has_no_score():
    table = ConceptTable({"cat": "object", "oil": "style"}, [1], 12, "sae")
    table.add([["cat", "oil"]], 1, torch.ones(1, 12))
    with pytest.raises(SaeuronError, match="'cat' is the only object"):
        table.scores("cat")


def test_a_table_comes_back_as_it_was_saved(images, tmp_path):
    table = fill(new_table(origin={"hookpoint": "unet.mid_block.attentions.0"}), images)
    table.save(tmp_path / "table.safetensors")
    again = ConceptTable.load(tmp_path / "table.safetensors")
    assert list(again.concepts.items()) == list(CONCEPTS.items())
    assert (again.fingerprint, again.origin["hookpoint"], again.n_latents) == ("sae", "unet.mid_block.attentions.0", 12)
    for name in ("timesteps", "sums", "counts"):
        assert torch.equal(getattr(again, name), getattr(table, name)), name


def test_two_processes_give_the_table_of_one(images, tmp_path):
    for name, rows in (("a", slice(0, 11)), ("b", slice(11, None))):
        fill(new_table(), images, rows).save(tmp_path / name)
    merged = ConceptTable.load(tmp_path / "a")
    merged.merge(ConceptTable.load(tmp_path / "b"))
    whole = fill(new_table(), images)
    assert torch.equal(merged.counts, whole.counts)
    torch.testing.assert_close(merged.sums, whole.sums, **CLOSE)
    assert ConceptTable.load(tmp_path / "a").counts.sum() < merged.counts.sum(), "the file is not the table"


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": "another"}, {"timesteps": [901, 501, 1]}, {"concepts": dict(reversed(CONCEPTS.items()))}],
    ids=["sae", "timesteps", "order of concepts"],
)
def test_tables_that_do_not_belong_together_are_refused(images, other):
    with pytest.raises(SaeuronError):
        new_table().merge(new_table(**other))


def test_the_table_of_another_sae_is_refused_with_both_named(images, make_sae):
    table, sae = fill(new_table(), images), make_sae()
    for use in (lambda: table.check_belongs(sae.fingerprint), lambda: Ablate(sae, table.select("cat", 1))):
        with pytest.raises(SaeuronError) as refusal:
            use()
        assert "the SAE sae and this SAE is " + sae.fingerprint in " ".join(str(refusal.value).split())


def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, make_sae, images):
    path = tmp_path / "table.safetensors"
    save_sae(make_sae(), tmp_path)
    (tmp_path / "sae.safetensors").rename(path)
    with pytest.raises(SaeuronError, match=r"table\.safetensors is not a concept table"):
        ConceptTable.load(path)

    fill(new_table(), images).save(path)
    tensors, metadata = read_tensors(path)
    spoilt = [
        (tensors, {"saeuron": metadata["saeuron"].replace('"version": 1', '"version": 2')}),
        (tensors, {"saeuron": "[]"}),
        (tensors, {"saeuron": "{"}),
        (tensors | {"sums": torch.zeros(2, 3, 12)}, metadata),
        ({"sums": tensors["sums"]}, metadata),
    ]
    for content, description in spoilt:
        write_tensors(path, content, description)
        with pytest.raises(SaeuronError, match=r"table\.safetensors is not a concept table"):
            ConceptTable.load(path)

    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SaeuronError, match=r"table\.safetensors is not a readable"):
        ConceptTable.load(path)
