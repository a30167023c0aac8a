"""What a concept adds on average is taken away where the concept is."""

from dataclasses import replace

import pytest
import torch

from saeuron import ConceptTable, SaeuronError, Selection, Setting, Shift, default_setting, removal

ACTIVATIONS = pytest.mark.parametrize("options", [{}, {"activation": "batch_topk", "threshold": 1.2}], ids=str)
# The same terms summed in another order, in float32 and in float64.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def selected(sae, latents, means, thresholds, strength=-2.0, floors=None):
    shape = (2, len(latents))
    fields = [torch.tensor(values, dtype=torch.float32).expand(shape).clone() for values in (means, thresholds)]
    floors = None if floors is None else torch.full(shape, floors)
    strengths, latents = torch.full(shape, strength), torch.tensor(latents).expand(shape).clone()
    return Selection(torch.tensor([901, 101]), latents, *fields, strengths, ("cat",), sae.fingerprint, floors)


@pytest.fixture
def case(make_sae, make_tokens):
    """``case(options)``: an edit, its SAE, the tokens of four maps, and which two of them show the concept."""

    def make(options):
        sae, tokens = make_sae(**options), make_tokens(4, 60, 16)
        latent = int((sae.encode(tokens) > 0).flatten(0, 1).sum(0).argmax())
        means = sae.encode(tokens)[..., latent].mean(1)
        middle = float(means.sort().values[1:3].mean())
        detector = selected(sae, [latent], [1.0], [0.0], floors=middle)
        return Shift(sae, selected(sae, [3, 7], [0.9, 0.2], [0.4, 0.5]), detector), sae, tokens, means > middle

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


def test_without_floors_the_average_over_the_kind_decides(case):
    edit, sae, tokens, _ = case({})
    watched = edit.detector
    fires = sae.encode(tokens)[..., int(watched.latents[0, 0])].mean(1)
    average = float(fires.sort().values[:2].mean())
    thresholds = torch.full_like(watched.thresholds, average)
    got = replace(edit, detector=replace(watched, floors=None, thresholds=thresholds))(tokens, 901)
    assert torch.equal((got != tokens).flatten(1).any(1), fires > average)


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


def table_of(sae):
    table = ConceptTable(
        {"cat": "object", "dog": "object", "oil": "style", "ink": "style"}, [901, 101], sae.n_latents, sae.fingerprint
    )
    table.sums = torch.rand(table.sums.shape, generator=torch.Generator().manual_seed(0))
    table.counts += 1
    return table


def test_a_setting_comes_to_one_shift_a_concept_told_by_its_assigned_latent(make_sae):
    sae = make_sae()
    sae.config["assignment"] = {"cat": 5, "dog": 6, "oil": 9, "ink": 2}
    table = table_of(sae)
    settings = {name: replace(default_setting(sae, table.concepts[name]), latents=4) for name in ("cat", "oil")}
    cat, oil = removal(sae, table, settings)
    assert (
        isinstance(cat, Shift) and cat.detector.latents.tolist() == [[5], [5]] and cat.selection.latents.shape == (2, 4)
    )
    assert oil.detector.latents.tolist() == [[9], [9]] and cat.selection.strengths[0, 0] < oil.selection.strengths[0, 0]


def test_an_sae_without_assigned_latents_is_used_as_saeuron_does(make_sae):
    sae = make_sae()
    assert default_setting(sae, "object") == Setting()
    (edit,) = removal(sae, table_of(sae), {"cat": Setting(4, edit="shift", presence=0.5)})
    best = table_of(sae).scores("cat").mean(0).argmax()
    assert edit.detector.latents.tolist() == [[int(best)]] * 2
