"""Edits that touch only the pictures that show a concept."""

from dataclasses import replace

import pytest
import torch

from saeuron import Ablate, ConceptTable, Replace, SaeuronError, Selection, Setting
from saeuron.compact import CompactTable

CONCEPTS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
ACTIVATIONS = pytest.mark.parametrize(
    "options", [{}, {"activation": "batch_topk", "threshold": 1.2}, {"activation": "sigmoid_topk"}], ids=str
)
EDITS = pytest.mark.parametrize("make", [Ablate, Replace, lambda *given: Ablate(*given, scale="norm")])


@pytest.fixture
def case(make_sae, make_tokens):
    """``case(options)``: an SAE, the tokens of four maps, and a selection whose floors two of the maps exceed."""

    def make(options):
        sae, tokens = make_sae(**options), make_tokens(4, 60, 16)
        code = sae.encode(tokens)
        # Such that what fires without competition from other latents would lift the mean of a map over its floor.
        latent = int((code > 0).flatten(0, 1).sum(0).topk(3).indices[-1])
        means = code[..., latent].mean(1)
        middle = means.sort().values[1:3].mean()
        one = torch.ones(3, 1)
        floors = middle * one
        selection = Selection(
            torch.tensor([901, 501, 101]),
            latent * one.long(),
            one,
            0.1 * one,
            -3 * one,
            ("cat",),
            sae.fingerprint,
            floors,
        )
        return sae, tokens, selection, means > middle

    return make


@ACTIVATIONS
@EDITS
def test_only_maps_that_show_the_concept_are_edited(case, options, make):
    sae, tokens, selection, shows = case(options)
    got = make(sae, selection)(tokens, 501)
    expected = make(sae, replace(selection, floors=None))(tokens, 501)
    assert shows.sum() == 2 and torch.equal(got[~shows], tokens[~shows])
    assert torch.equal(got[shows], expected[shows]) and not torch.equal(got[shows], tokens[shows])


@EDITS
def test_a_batch_without_the_concept_leaves_as_the_very_same_tensor(case, make):
    sae, tokens, selection, shows = case({})
    others = tokens[~shows]
    assert make(sae, selection)(others, 501) is others


def test_a_map_is_judged_alone(case):
    """What else is in the batch changes nothing."""
    sae, tokens, selection, _ = case({})
    edit = Ablate(sae, selection)
    together, alone = edit(tokens, 501), torch.cat([edit(one[None], 501) for one in tokens])
    # Matrix products of other sizes may sum in another order.
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def table_of(fingerprint, n_latents=6):
    table = ConceptTable(CONCEPTS, [901, 101], n_latents, fingerprint)
    table.sums = torch.rand(table.sums.shape, generator=torch.Generator().manual_seed(0))
    table.counts += 2
    return table


@pytest.mark.parametrize("presence", [0.0, 0.5, 1.0])
def test_floors_lie_between_the_strongest_rival_and_the_concept(presence):
    table = table_of("sae")
    selection = table.select("cat", 3, presence=presence)
    for column in range(2):
        for place, latent in enumerate(selection.latents[column].tolist()):
            own, *others = (table.sums[table.row(name), column, latent] / 2 for name in ("cat", "dog", "bird"))
            rival = max(others)
            assert selection.floors[column, place] == pytest.approx((rival + presence * (own - rival)).item(), rel=1e-6)


def test_a_compact_table_sets_the_same_floors():
    whole = table_of("sae")
    expected, got = (t.select("cat", 3, presence=0.5).floors for t in (whole, CompactTable.of(whole)))
    # Two numbers under 1, each rounded to float16 once.
    torch.testing.assert_close(got, expected, rtol=0, atol=2**-11)


def test_merging_keeps_each_concept_its_own_floors():
    table = table_of("sae")
    gated, free = table.select("cat", 2, presence=0.5), table.select("oil", 2)
    merged = Selection.merge([gated, free])
    for column in range(2):
        floors = dict(zip(merged.latents[column].tolist(), merged.floors[column].tolist(), strict=True))
        for latent in set(gated.latents[column].tolist()) - set(free.latents[column].tolist()):
            assert floors[latent] in gated.floors[column].tolist()
        for latent in set(free.latents[column].tolist()) - set(gated.latents[column].tolist()):
            assert floors[latent] == -torch.inf
    assert Selection.merge([free, table.select("ink", 1)]).floors is None


@pytest.mark.parametrize("values", [{"presence": "high"}, {"edit": "melt"}, {"colour": 1}, {"latents": None}])
def test_a_setting_that_cannot_be_is_refused(values):
    with pytest.raises(SaeuronError):
        Setting.parse(values)


def test_a_setting_comes_back_from_its_own_values():
    setting = Setting(4, -2.5, False, "replace", "norm", True, 0.25)
    assert Setting.parse(vars(setting)) == setting
