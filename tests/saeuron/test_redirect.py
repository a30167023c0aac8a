"""Maps that show a concept come to show another one of its kind; all others leave as they came."""

from dataclasses import replace

import pytest
import torch

from saeuron import ConceptStatistics, Redirect, SaeuronError, Setting, build_edits
from saeuron.compact_table import CompactTable
from saeuron.concept_table import WholeTable
from saeuron.contrasts import Contrasts
from saeuron.edits import join
from saeuron.redirect import AWAY, HIGH, LOW, SHARE

KINDS = {"cat": "object", "dog": "object", "bird": "object", "oil": "style", "ink": "style"}
TIMESTEPS = (901, 101)


@pytest.fixture
def case(make_sae):
    """``case()``: an SAE, a table of concepts that add directions of their own, maps ``[B, 30, 16]``, pairs."""

    def make(activation="topk", **options):
        sae = make_sae(k=16, activation=activation, **options)
        generator = torch.Generator().manual_seed(3)
        parts = {name: torch.randn(16, generator=generator) for name in KINDS}
        pairs = [(thing, style) for thing in ("cat", "dog", "bird") for style in ("oil", "ink")]

        def draw(copies, seed):
            own = torch.Generator().manual_seed(seed)
            middle = torch.stack([sae.b_dec + sum(parts[name] for name in pair) for pair in pairs * copies])
            return middle[:, None] + torch.randn(len(middle), 30, 16, generator=own)

        statistics = ConceptStatistics(KINDS, TIMESTEPS, sae.n_latents, sae.fingerprint)
        for seed, timestep in enumerate(TIMESTEPS):
            statistics.observe(sae, pairs * 20, timestep, draw(20, seed))
        return sae, WholeTable(statistics), draw(1, 9), pairs

    return make


def amount_by_hand(contrasts, sae, tokens, name, goal, column=0):
    """The rule in plain words, one map after another, from the latents' own pre-activations."""
    found = []
    for picture in tokens:
        pre = sae.pre_activations(picture.mean(0))

        def score(concept, pre=pre):
            row = contrasts.row(concept)
            latents, weights = contrasts.latents[column, row], contrasts.weights[column, row]
            return float(weights @ pre[latents] - contrasts.offsets[column, row])

        rivals = [score(other) for other in contrasts.others(name) if other != goal]
        evidence = score(name) - SHARE * max([0.0, *rivals])
        found.append(min(max((evidence - LOW) / (HIGH - LOW), 0.0), 1.0))
    return found


@pytest.mark.parametrize(
    "options", [{}, {"activation": "batch_topk", "threshold": 0.4}, {"activation": "sigmoid_topk"}]
)
def test_maps_move_towards_the_goal_as_far_as_they_show_the_concept(case, options):
    sae, table, tokens, _ = case(**options)
    contrasts = table.contrasts(sae)
    goal = contrasts.goal("cat")
    got = Redirect(sae, contrasts, {"cat": -2.0})(tokens, 901)
    amounts = torch.tensor(amount_by_hand(contrasts, sae, tokens, "cat", goal))
    change = 2.0 * contrasts.change(sae, "cat", goal)[0]
    expected = tokens + amounts[:, None, None] * change
    # The same dot products, folded with the encoder in another order.
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert 0 < float(amounts.sum()) < len(tokens)


def test_what_shows_nothing_leaves_as_the_very_same_tensor_and_the_rest_bit_for_bit(case):
    sae, table, tokens, pairs = case()
    edit = Redirect(sae, table.contrasts(sae), {"cat": -2.0})
    untouched = torch.tensor(amount_by_hand(edit.contrasts, sae, tokens, "cat", edit.contrasts.goal("cat"))) == 0
    got = edit(tokens, 901)
    shows = torch.tensor(["cat" in pair for pair in pairs])
    assert untouched.sum() >= 3 and not bool((untouched & shows).any())
    assert torch.equal(got[untouched], tokens[untouched])
    others = tokens[untouched]
    assert edit(others, 901) is others and Redirect(sae, edit.contrasts, {"cat": 0.0})(tokens, 901) is tokens
    assert replace(edit, start=500)(tokens, 901) is tokens


def test_the_concept_s_score_falls_and_the_other_kind_s_stays(case):
    sae, table, tokens, pairs = case()
    contrasts = table.contrasts(sae)
    shows = torch.tensor(["cat" in pair for pair in pairs])
    got = Redirect(sae, contrasts, {"cat": -1.0})(tokens, 901)

    def score(maps, name):
        vectors, offsets = contrasts.probe(sae, name)
        return maps.mean(1) @ vectors[0] - offsets[0]

    assert float((score(tokens, "cat") - score(got, "cat"))[shows].min()) > 0.5
    assert float((score(tokens, "oil") - score(got, "oil"))[shows].abs().max()) < 0.35


def test_each_timestep_has_its_own_numbers(case):
    sae, table, tokens, _ = case()
    edit = Redirect(sae, table.contrasts(sae), {"cat": -2.0})
    assert not torch.equal(edit(tokens, 901), edit(tokens, 101))
    assert torch.equal(edit(tokens, 880.5), edit(tokens, 901)), "the nearest recorded timestep holds"


def test_concepts_removed_together_are_nobody_s_goal(case):
    sae, table, _, _ = case()
    contrasts = table.contrasts(sae)
    goal = contrasts.goal("cat")
    both = Redirect(sae, contrasts, {"cat": -2.0, goal: -2.0})
    third = contrasts.goal("cat", without=[goal])
    direction = both.folded.at(901, torch.device("cpu")).directions[0]
    torch.testing.assert_close(direction, 2.0 * contrasts.change(sae, "cat", third)[0])
    all_three = Redirect(sae, contrasts, {"cat": -2.0, "dog": -2.0, "bird": -2.0})
    direction = all_three.folded.at(901, torch.device("cpu")).directions[0]
    torch.testing.assert_close(direction, 2.0 * AWAY * contrasts.change(sae, "cat", None)[0])


def test_two_of_them_join_into_the_edit_that_names_both(case):
    sae, table, tokens, _ = case()
    contrasts = table.contrasts(sae)
    one, other = (Redirect(sae, contrasts, {name: -2.0}) for name in ("cat", "oil"))
    together = Redirect(sae, contrasts, {"cat": -2.0, "oil": -2.0})
    assert torch.equal(join(one, other)(tokens, 901), together(tokens, 901))
    assert join(one, replace(other, start=500)) is None


def test_a_mask_moves_each_token_that_far(case):
    sae, table, tokens, _ = case()
    edit = Redirect(sae, table.contrasts(sae), {"cat": -2.0})
    mask = torch.linspace(0, 1, 30)[None]
    got, whole = edit(tokens, 901, mask), edit(tokens, 901)
    torch.testing.assert_close(got, tokens + mask[..., None] * (whole - tokens), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[:, 0], tokens[:, 0]) and edit(tokens, 901, torch.zeros(1, 30)) is tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision(case, dtype):
    sae, table, tokens, _ = case()
    got = Redirect(sae, table.contrasts(sae), {"cat": -2.0})(tokens.to(dtype), 901)
    whole = Redirect(sae, table.contrasts(sae), {"cat": -2.0})(tokens, 901)
    assert got.dtype == dtype
    # One rounding of numbers up to about 8, and an amount judged on rounded tokens.
    torch.testing.assert_close(got.float(), whole, rtol=0, atol=0.1)


def test_a_map_is_judged_alone(case):
    sae, table, tokens, _ = case()
    edit = Redirect(sae, table.contrasts(sae), {"cat": -2.0})
    alone = torch.cat([edit(picture[None], 901) for picture in tokens])
    torch.testing.assert_close(alone, edit(tokens, 901), rtol=1e-5, atol=1e-5)


def test_moving_the_sae_folds_nothing_anew(case):
    sae, table, _, _ = case()
    edit = Redirect(sae, table.contrasts(sae), {"cat": -2.0})
    assert replace(edit, sae=sae).folded is edit.folded


def test_a_setting_comes_to_it_by_a_whole_table_and_a_compact_one(case):
    sae, table, tokens, _ = case()
    compact = CompactTable.of(table, contrasts=table.contrasts(sae))
    whole, shared = (
        build_edits(sae, own, {"cat": Setting(strength=-2.0, edit="redirect")})[0] for own in (table, compact)
    )
    assert torch.equal(whole(tokens, 901), shared(tokens, 901))


def test_what_does_not_belong_is_refused(case, make_sae):
    sae, table, _, _ = case()
    with pytest.raises(SaeuronError, match="belong together"):
        Redirect(make_sae(seed=9), table.contrasts(sae), {"cat": -2.0})
    with pytest.raises(SaeuronError, match="width"):
        Redirect(sae, table.contrasts(sae), {"cat": -2.0})(torch.randn(1, 5, 17), 901)
    old = CompactTable.of(table)
    with pytest.raises(SaeuronError, match="means alone"):
        build_edits(sae, old, {"cat": Setting(edit="redirect")})
    with pytest.raises(SaeuronError, match="'cta' is not in the table; the nearest are cat"):
        build_edits(sae, table, {"cta": Setting(edit="redirect")})
    assert isinstance(table.contrasts(sae), Contrasts)
