"""Which pictures show a concept: judged by whole maps, beside the other concepts of its kind."""

import pytest
import torch

from saeuron import ConceptStatistics, SaeuronError, Setting
from saeuron.compact_table import CompactTable
from saeuron.concept_table import WholeTable
from saeuron.detector import SHARE, Detector, Detectors

CONCEPTS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
LATENTS = {"cat": 3, "dog": 7, "bird": 11}
ACTIVATIONS = pytest.mark.parametrize(
    "options",
    [{}, {"activation": "batch_topk", "threshold": 0.4}, {"activation": "sigmoid_topk"}, {"k": 16}],
    ids=str,
)


def table_of(fingerprint, n_latents=64):
    statistics = ConceptStatistics(CONCEPTS, [901, 101], n_latents, fingerprint)
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 2
    return WholeTable(statistics)


def detector(sae, own, others, floor):
    """Detects latent ``own``, given as (number, mean), beside ``others``."""
    numbers, means = zip(own, *others, strict=True)
    timesteps, means = torch.tensor([901, 101]), torch.tensor(means).expand(2, -1)
    return Detector(timesteps, torch.tensor(numbers), means, torch.full((2,), float(floor)), sae.fingerprint)


def shown(detectors, sae, tokens, timestep):
    """What all maps show, ``[B, len(detectors)]``."""
    found = torch.zeros(len(tokens), len(detectors), dtype=torch.bool)
    maps, own = Detectors(detectors).shown(sae, tokens, timestep)
    return found.index_copy(0, maps, own)


def by_hand(sae, tokens, one):
    """The rule in plain words, on the dense code."""
    found = []
    for code in sae.encode(tokens).mean(1):
        own, *others = (float(code[latent] / mean) for latent, mean in zip(one.latents, one.means[0], strict=True))
        found.append(float(code[one.latents[0]]) > float(one.floors[0]) and all(own >= SHARE * o for o in others))
    return found


@ACTIVATIONS
def test_a_map_shows_what_fires_over_its_floor_and_beside_its_rivals(make_sae, make_tokens, options):
    sae, tokens = make_sae(**options), make_tokens(40, 12, 16)
    maps = sae.encode(tokens).mean(1)
    (own, *others), (mean, *means) = maps.mean(0).topk(4).indices.tolist(), maps.mean(0).topk(4).values.tolist()
    # Half as large a mean makes a rival about twice as strong beside the concept, where the rule divides.
    rivals = [(number, 0.5 * value) for number, value in zip(others, means, strict=True)]
    one, free = (detector(sae, (own, mean), r, maps[:, own].quantile(0.2)) for r in (rivals, []))
    both = shown([one, free], sae, tokens, 901)
    assert both.T.tolist() == [by_hand(sae, tokens, one), by_hand(sae, tokens, free)]
    # Rivals rule out some of the maps that lie over the floor, and the floor some of all maps.
    assert 0 < both[:, 0].sum() < both[:, 1].sum() < len(tokens)


def test_a_map_is_judged_alone(make_sae, make_tokens):
    """What else is in the batch changes nothing."""
    sae, tokens = make_sae(), make_tokens(40, 12, 16)
    maps = sae.encode(tokens).mean(1)
    latent = int(maps.mean(0).argmax())
    # Between two maps: matrix products of other sizes may sum in another order.
    one = detector(sae, (latent, 0.2), [], maps[:, latent].sort().values[19:21].mean())
    alone = torch.cat([shown([one], sae, own[None], 901) for own in tokens])
    assert torch.equal(alone, shown([one], sae, tokens, 901)) and alone.sum() == 20


def test_a_rival_that_never_fires_under_its_own_concept_is_none(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(10, 12, 16)
    own, other = sae.encode(tokens).mean((0, 1)).topk(2).indices.tolist()
    alone, beside = (detector(sae, (own, 0.2), others, 0.0) for others in ([], [(other, 0.0)]))
    found = [shown([one], sae, tokens, 101) for one in (alone, beside)]
    assert torch.equal(*found) and found[0].any()


@pytest.mark.parametrize("presence", [0.0, 0.5, 1.0])
def test_floors_lie_between_the_strongest_rival_and_the_concept(presence):
    table = table_of("sae")
    found = Detector.of(table, "cat", LATENTS, presence)
    assert found.latents.tolist() == [3, 7, 11]
    for column in range(2):
        own, *others = (
            float(table.statistics.sums[table.statistics.row(name), column, 3]) / 2 for name in ("cat", "dog", "bird")
        )
        assert found.floors[column] == pytest.approx(max(others) + presence * (own - max(others)), rel=1e-6)
        assert found.means[column].tolist() == pytest.approx(
            [float(table.means(name)[column, latent]) for name, latent in LATENTS.items()], rel=1e-6
        )


def test_without_presence_the_average_of_the_kind_is_the_floor():
    table = table_of("sae")
    assert torch.equal(Detector.of(table, "dog", LATENTS).floors, table.kind_mean("dog")[:, 7])


def test_a_compact_table_tells_the_same():
    whole = table_of("sae")
    whole, compact = (Detector.of(t, "cat", LATENTS, 0.5) for t in (whole, CompactTable.of(whole, LATENTS)))
    # Numbers under 1, each rounded to float16 once; the floor comes from two.
    torch.testing.assert_close(compact.means, whole.means, rtol=0, atol=2**-11)
    torch.testing.assert_close(compact.floors, whole.floors, rtol=0, atol=2**-11)


def test_assigned_latents_detect_or_else_those_of_the_best_scores(make_sae):
    sae = make_sae()
    table = table_of(sae.fingerprint)
    best = [int(table.scores(name).mean(0).argmax()) for name in ("cat", "dog", "bird")]
    assert Setting(edit="shift").detector(sae, table, "cat").latents.tolist() == best
    sae.config["assignment"] = {"bird": 2, "cat": 5, "oil": 9}
    assert Setting(edit="shift", detect="assigned").detector(sae, table, "cat").latents.tolist() == [5, 2]
    with pytest.raises(SaeuronError, match="'dog' has no assigned latent"):
        Setting(edit="shift", detect="assigned").detector(sae, table, "dog")


def test_each_detector_has_its_own_latent_floor_and_means_at_each_timestep(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(60, 12, 16)
    maps = sae.encode(tokens).mean(1)
    one, two, rival = maps.mean(0).topk(3).indices.tolist()
    floors = {latent: maps[:, latent].quantile(torch.tensor([0.3, 0.7])) for latent in (one, two)}
    means = {latent: torch.tensor([[1.0, 0.8], [1.0, 1.6]]) * maps[:, [latent, rival]].mean(0) for latent in (one, two)}
    timesteps = torch.tensor([901, 101])
    first = Detector(timesteps, torch.tensor([one, rival]), means[one], floors[one], sae.fingerprint)
    # The other one's timesteps stand the other way round, so that each has to look up its own.
    second = Detector(timesteps.flip(0), torch.tensor([two]), means[two][:, :1], floors[two].flip(0), sae.fingerprint)
    both = {timestep: shown([first, second], sae, tokens, timestep) for timestep in (901, 101)}
    for column, timestep in enumerate((901, 101)):
        alone = (maps[:, one] / means[one][column, 0]) >= SHARE * (maps[:, rival] / means[one][column, 1])
        assert torch.equal(both[timestep][:, 0], (maps[:, one] > floors[one][column]) & alone)
        assert torch.equal(both[timestep][:, 1], maps[:, two] > floors[two][column])
    assert not torch.equal(both[901], both[101])
