"""What sets concepts apart, fitted from sums alone: on maps made of known parts, and on random ones."""

import dataclasses

import pytest
import torch

from saeuron import ConceptStatistics, SaeuronError
from saeuron.concept_table import WholeTable
from saeuron.contrasts import Contrasts

KINDS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style", "pen": "style"}
OBJECTS, STYLES = list(KINDS)[:3], list(KINDS)[3:]
TIMESTEPS = (901, 101)


@pytest.fixture
def world(make_sae):
    """An SAE, and ``draw(pairs, seed)``: maps ``[2, B, 30, 16]`` to which every concept adds a direction of its own."""
    sae = make_sae(k=16)
    generator = torch.Generator().manual_seed(7)
    parts = {name: torch.randn(16, generator=generator) for name in KINDS}
    # Near neighbours on purpose: what a dog adds is mostly what a cat adds.
    parts["dog"] = 0.7 * parts["cat"] + 0.5 * parts["dog"]

    def draw(pairs, seed):
        own = torch.Generator().manual_seed(seed)
        middle = torch.stack([sae.b_dec + sum(parts[name] for name in names) for names in pairs])
        noise = 0.5 * torch.randn(2, len(pairs), 1, 16, generator=own)
        return middle[None, :, None] + noise + torch.randn(2, len(pairs), 30, 16, generator=own)

    return sae, draw


def gathered(sae, draw, pairs, seed=0):
    statistics = ConceptStatistics(KINDS, TIMESTEPS, sae.n_latents, sae.fingerprint)
    for timestep, maps in zip(TIMESTEPS, draw(pairs, seed), strict=True):
        statistics.observe(sae, pairs, timestep, maps)
    return statistics


def every_pair(copies):
    return [(thing, style) for thing in OBJECTS for style in STYLES] * copies


def scores(contrasts, sae, maps, concept, column=0):
    vectors, offsets = contrasts.probe(sae, concept)
    return maps[column].mean(1) @ vectors[column] - offsets[column]


def test_a_score_is_1_where_the_concept_is_shown_and_0_beside_others(world):
    sae, draw = world
    contrasts = Contrasts.fit(gathered(sae, draw, every_pair(30)), sae)
    pairs = every_pair(40)
    maps = draw(pairs, seed=1)
    for name in KINDS:
        found = scores(contrasts, sae, maps, name)
        shown = torch.tensor([name in pair for pair in pairs])
        # Means of 120 and 240 maps; the fit itself knows 270.
        assert abs(float(found[shown].mean()) - 1) < 0.15 and abs(float(found[~shown].mean())) < 0.15, name
        assert float((found[shown] > 0.5).float().mean()) > 0.9 and float((found[~shown] < 0.5).float().mean()) > 0.85


def test_few_and_unbalanced_pictures_are_enough(world):
    """Every oil painting is of a cat: their mean is a cat's too, and still only oil is found for oil."""
    sae, draw = world
    pairs = [("cat", "oil")] * 12 + [
        ("cat", "ink"),
        ("cat", "pen"),
        ("dog", "ink"),
        ("dog", "pen"),
        ("bird", "ink"),
    ] * 6
    contrasts = Contrasts.fit(gathered(sae, draw, pairs), sae)
    maps = draw([("bird", "oil")] * 60 + [("cat", "ink")] * 60, seed=2)
    found = scores(contrasts, sae, maps, "oil")
    # Twelve pictures leave the scores of 60 unseen maps somewhere near 1 and 0; their order is what counts.
    assert float(found[:60].mean()) > 0.5 and float(found[60:].mean()) < 0.25


def test_the_goal_is_near_and_ordinary_and_stays(world):
    sae, draw = world
    contrasts = Contrasts.fit(gathered(sae, draw, every_pair(30)), sae)
    assert contrasts.goal("cat") == "dog" and contrasts.goal("dog") == "cat"
    assert contrasts.goal("cat", without=["dog"]) == "bird"
    assert contrasts.goal("cat", without=["dog", "bird"]) is None
    # As near as the other, but far from the rest of the kind: b lies between a and c, and d beyond a.
    places = torch.tensor([0.0, 1.0, 2.0, -1.0])
    apart = (places[:, None] - places).square()
    line = dataclasses.replace(contrasts, concepts=dict.fromkeys("abcd", "object"), distances=apart)
    assert line.goal("a") == "b"


def test_a_change_turns_one_concept_s_map_into_the_other_s(world):
    sae, draw = world
    contrasts = Contrasts.fit(gathered(sae, draw, every_pair(60)), sae)
    # Latents stand for directions, through a sparse code: not quite the same way, but nearly.
    change = contrasts.change(sae, "cat", "bird")[0]
    cats, birds = (draw([(name, "ink")] * 400, seed=3)[0].mean((0, 1)) for name in ("cat", "bird"))
    assert (
        float(torch.cosine_similarity(change, birds - cats, dim=0)) > 0.85
    )  # 192 latents stand for 16 dimensions, through a sparse code
    back = contrasts.change(sae, "bird", "cat")[0]
    torch.testing.assert_close(back, -change)


def test_halves_added_up_fit_as_the_whole(world):
    sae, draw = world
    pairs = every_pair(10)
    maps = draw(pairs, 0)
    whole, one, two = (ConceptStatistics(KINDS, TIMESTEPS, sae.n_latents, sae.fingerprint) for _ in range(3))
    for timestep, own in zip(TIMESTEPS, maps, strict=True):
        whole.observe(sae, pairs, timestep, own)
        one.observe(sae, pairs[:33], timestep, own[:33])
        two.observe(sae, pairs[33:], timestep, own[33:])
    one.merge(two)
    for name in KINDS:
        together, apart = (scores(Contrasts.fit(s, sae), sae, maps, name) for s in (whole, one))
        # Sums in another order, through an inverse and a rounding to float16.
        torch.testing.assert_close(apart, together, rtol=0, atol=2e-2)


def test_what_a_file_keeps_is_what_was_fitted(world):
    sae, draw = world
    table = WholeTable(gathered(sae, draw, every_pair(5)))
    contrasts = table.contrasts(sae)
    assert table.contrasts(sae) is contrasts, "fitted once"
    tensors, about = contrasts.pack()
    again = Contrasts.unpack(tensors, about, KINDS, table.timesteps, sae)
    for name in KINDS:
        for got, expected in zip(again.probe(sae, name), contrasts.probe(sae, name), strict=True):
            # Weights come back from float16 exactly; they are multiplied and divided by the same unit in float32.
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.change(sae, name, None), contrasts.change(sae, name, None))


def test_a_concept_alone_in_its_kind_is_told_from_pictures_without_it(make_sae, world):
    sae, draw = world
    statistics = ConceptStatistics({"oil": "learnt"}, TIMESTEPS, sae.n_latents, sae.fingerprint)
    pairs = every_pair(12)
    for timestep, maps in zip(TIMESTEPS, draw(pairs, 0), strict=True):
        statistics.observe(sae, [["oil"] if "oil" in pair else [] for pair in pairs], timestep, maps)
    contrasts = Contrasts.fit(statistics, sae)
    assert contrasts.goal("oil") is None
    found = scores(contrasts, sae, draw([("dog", "oil")] * 50 + [("dog", "ink")] * 50, seed=4), "oil")
    assert float(found[:50].mean()) > 0.7 and float(found[50:].mean()) < 0.3


def test_statistics_that_cannot_tell_are_refused_with_the_way_out(world, make_sae):
    sae, draw = world
    means = ConceptStatistics(KINDS, TIMESTEPS, sae.n_latents, sae.fingerprint)
    means.add([["cat"]], 901, torch.ones(1, sae.n_latents))
    with pytest.raises(SaeuronError, match=r"means alone, .*: run `score` again"):
        Contrasts.fit(means, sae)
    with pytest.raises(SaeuronError, match="concept 'bird' has no images at some timesteps"):
        Contrasts.fit(gathered(sae, draw, [("cat", "oil"), ("dog", "ink"), ("dog", "pen")]), sae)
    with pytest.raises(SaeuronError, match="made with the SAE"):
        Contrasts.fit(gathered(sae, draw, every_pair(1)), make_sae(seed=9))


def test_contrasts_that_are_merged_tell_what_each_told(world):
    """Those of a few more concepts, in fewer latents each."""
    sae, draw = world
    old = WholeTable(gathered(sae, draw, every_pair(5))).contrasts(sae)
    few = {"latents": old.latents[:, :3, :5], "weights": old.weights[:, :3, :5], "offsets": old.offsets[:, :3]}
    few |= {"changed": old.changed[:, :3, :4], "effects": old.effects[:, :3, :4], "distances": old.distances[:3, :3]}
    new = dataclasses.replace(old, concepts={"cat": "object", "wood": "style", "clay": "style"}, unit=0.5, **few)
    merged = old.merged(new)
    assert list(merged.concepts) == [*list(KINDS)[1:], "cat", "wood", "clay"]
    assert merged.fingerprint == sae.fingerprint and merged.unit == max(old.unit, 0.5)
    for name, own in {"dog": old, "pen": old, "cat": new, "wood": new, "clay": new}.items():
        for got, expected in zip(merged.probe(sae, name), own.probe(sae, name), strict=True):
            torch.testing.assert_close(got, expected)
    assert merged.latents.shape[2] == old.latents.shape[2] and merged.changed.shape[2] == old.changed.shape[2]
    assert merged.distances[0, -1] == torch.inf and torch.equal(merged.distances[-3:, -3:], new.distances)


def test_a_file_takes_no_more_than_it_needs_and_gives_all_back(world):
    sae, draw = world
    contrasts = WholeTable(gathered(sae, draw, every_pair(5))).contrasts(sae)
    tensors, about = contrasts.pack()
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    assert kinds["contrasts.latents"] == kinds["contrasts.changed"] == torch.uint16
    assert kinds["contrasts.weights"] == kinds["contrasts.effects"] == torch.float16
    again = Contrasts.unpack(tensors, about, KINDS, contrasts.timesteps, sae)
    assert (again.unit, again.fingerprint) == (contrasts.unit, sae.fingerprint)
    for name in ("latents", "changed", "offsets", "distances"):
        assert torch.equal(getattr(again, name), getattr(contrasts, name)), name
    with pytest.raises(SaeuronError, match="its contrasts do not have the shape its description gives"):
        Contrasts.unpack(tensors | {"contrasts.offsets": torch.zeros(1)}, about, KINDS, contrasts.timesteps, sae)
