"""What a concept adds on average is taken away where the concept is."""

from dataclasses import replace

import pytest
import torch

from saeuron import ConceptStatistics, SaeuronError, Selection, Setting, Shift, build_edits, default_setting
from saeuron.concept_table import WholeTable
from saeuron.detector import Detector
from saeuron.edits import join

ACTIVATIONS = pytest.mark.parametrize("options", [{}, {"activation": "batch_topk", "threshold": 1.2}], ids=str)
# The same terms summed in another order, in float32 and in float64.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def selected(sae, latents, means, thresholds, strength=-2.0):
    shape = (2, len(latents))
    fields = [torch.tensor(values, dtype=torch.float32).expand(shape).clone() for values in (means, thresholds)]
    strengths, latents = torch.full(shape, strength), torch.tensor(latents).expand(shape).clone()
    return Selection(torch.tensor([901, 101]), latents, *fields, strengths, ("cat",), sae.fingerprint)


def watching(sae, latent, floor):
    one = torch.ones(2)
    return Detector(torch.tensor([901, 101]), torch.tensor([latent]), one[:, None], floor * one, sae.fingerprint)


@pytest.fixture
def case(make_sae, make_tokens):
    """``case(options)``: an edit, its SAE, the tokens of four maps, and which two of them show the concept."""

    def make(options):
        sae, tokens = make_sae(**options), make_tokens(4, 60, 16)
        latent = int((sae.encode(tokens) > 0).flatten(0, 1).sum(0).argmax())
        means = sae.encode(tokens)[..., latent].mean(1)
        middle = float(means.sort().values[1:3].mean())
        selection, detector = selected(sae, [3, 7], [0.9, 0.2], [0.4, 0.5]), watching(sae, latent, middle)
        return Shift(sae, [selection], [detector]), sae, tokens, means > middle

    return make


@ACTIVATIONS
def test_maps_that_show_the_concept_move_by_the_difference_of_means(case, options):
    edit, sae, tokens, shows = case(options)
    got = edit(tokens, 901)
    direction = -2.0 * ((0.9 - 0.4) * sae.W_dec[3].double() + (0.2 - 0.5) * sae.W_dec[7].double())
    assert shows.sum() == 2 and torch.equal(got[~shows], tokens[~shows])
    torch.testing.assert_close(got[shows].double(), tokens[shows].double() + direction, **CLOSE)


def test_where_no_map_shows_it_the_very_same_tensor_leaves(case):
    edit, _, tokens, shows = case({})
    others = tokens[~shows]
    assert edit(others, 901) is others
    assert replace(edit, start=500)(tokens, 901) is tokens


def test_several_concepts_are_judged_on_the_map_as_it_came(case):
    edit, sae, tokens, shows = case({})
    latent = int(edit.detectors[0].latents[0])
    # The first concept's shift pulls the very latent that detects both: one after the other, it would hide the second.
    first = selected(sae, [latent], [50.0], [0.0])
    both = Shift(sae, [first, *edit.selections], edit.detectors * 2)
    one, two = Shift(sae, [first], edit.detectors), edit
    assert torch.equal(two(one(tokens, 901), 901), one(tokens, 901)) and shows.any()
    expected = tokens + (one(tokens, 901) - tokens) + (two(tokens, 901) - tokens)
    # Differences of numbers near 100 with float32's 7 digits.
    torch.testing.assert_close(both(tokens, 901), expected, rtol=1e-5, atol=1e-4)


def test_two_shifts_of_different_concepts_join(case):
    edit, sae, tokens, _ = case({})
    dog = replace(selected(sae, [9], [0.7], [0.2]), concepts=("dog",))
    other = Shift(sae, [dog], edit.detectors)
    together = Shift(sae, [*edit.selections, dog], edit.detectors * 2)
    assert torch.equal(join(edit, other)(tokens, 901), together(tokens, 901))
    assert join(edit, edit) is None and join(edit, replace(other, start=500)) is None


def test_a_mask_moves_each_token_that_far(case):
    edit, _, tokens, _ = case({})
    mask = torch.linspace(0, 1, 60)[None]
    got, whole = edit(tokens, 901, mask), edit(tokens, 901)
    torch.testing.assert_close(got, tokens + mask[..., None] * (whole - tokens), **CLOSE)
    assert torch.equal(got[:, 0], tokens[:, 0]) and edit(tokens, 901, torch.zeros(1, 60)) is tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision(case, dtype):
    edit, _, tokens, shows = case({})
    got = edit(tokens.to(dtype), 901)
    assert got.dtype == dtype and torch.equal(got[~shows], tokens.to(dtype)[~shows])


def test_tokens_and_selections_of_another_sae_are_refused(case, make_sae, make_tokens):
    edit, sae, _, _ = case({})
    with pytest.raises(SaeuronError, match="width"):
        edit(torch.randn(1, 5, sae.d_in + 1), 901)
    with pytest.raises(SaeuronError, match="belong together"):
        replace(edit, sae=make_sae(seed=9))
    with pytest.raises(SaeuronError, match="belong together"):
        replace(edit, detectors=[watching(make_sae(seed=9), 0, 0.0)])


def table_of(sae):
    statistics = ConceptStatistics(
        {"cat": "object", "dog": "object", "oil": "style", "ink": "style"}, [901, 101], sae.n_latents, sae.fingerprint
    )
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    return WholeTable(statistics)


def test_settings_come_to_one_shift_that_assigned_latents_guide(make_sae):
    sae = make_sae()
    sae.config["assignment"] = {"cat": 5, "dog": 6, "oil": 9, "ink": 2}
    table = table_of(sae)
    settings = {name: replace(default_setting(sae, table, name), latents=4) for name in ("cat", "oil")}
    (edit,) = build_edits(sae, table, settings)
    cat, oil = edit.detectors
    assert isinstance(edit, Shift) and cat.latents.tolist() == [5, 6] and oil.latents.tolist() == [9, 2]
    assert [one.concepts for one in edit.selections] == [("cat",), ("oil",)]
    assert edit.selections[0].latents.shape == (2, 4)
    assert edit.selections[0].strengths[0, 0] < edit.selections[1].strengths[0, 0]


def test_an_sae_without_assigned_latents_is_used_as_saeuron_does(make_sae):
    sae = make_sae()
    assert default_setting(sae, table_of(sae), "cat") == Setting()
    (edit,) = build_edits(sae, table_of(sae), {"cat": Setting(4, edit="shift", presence=0.5)})
    best = table_of(sae).scores("cat").mean(0).argmax()
    assert edit.detectors[0].latents[0] == best


@pytest.mark.parametrize("timestep", [901, 101])
def test_each_timestep_has_its_own_means(case, timestep):
    edit, sae, tokens, shows = case({})
    means = torch.tensor([[0.9, 0.2], [0.1, 0.7]])
    edit = replace(edit, selections=[replace(edit.selections[0], means=means)])
    mean = means[0 if timestep == 901 else 1].double()
    direction = -2.0 * ((mean - torch.tensor([0.4, 0.5])) @ sae.W_dec[[3, 7]].double())
    torch.testing.assert_close(edit(tokens, timestep)[shows].double(), tokens[shows].double() + direction, **CLOSE)


def test_each_timestep_has_its_own_floor(case):
    edit, _, tokens, _ = case({})
    never = replace(edit.detectors[0], floors=torch.tensor([1e9, 0.0]))
    edit = replace(edit, detectors=[never])
    assert edit(tokens, 901) is tokens
    assert not torch.equal(edit(tokens, 101), tokens)
