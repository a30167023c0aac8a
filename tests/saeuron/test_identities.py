"""What holds of every edit and all statistics, whatever the numbers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saeuron import Ablate, ConceptStatistics, Redirect, Replace, Selection, Shift, SparseAutoencoder, Steer
from saeuron.contrasts import Contrasts
from saeuron.detector import Detector
from tests.fuzz.readers import CONCEPTS, D, N, make_sae, make_table

# Numbers of size 1 to 10 in float32, a few dozen terms in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIMESTEPS = torch.tensor([1, 501])
SEEDS = st.integers(0, 2**32 - 1)
KINDS = ("ablate", "published", "norm", "replace", "shift", "steer", "redirect")


def tokens_of(seed: int, maps: int = 3, length: int = 7) -> torch.Tensor:
    return 2 * torch.randn(maps, length, D, generator=torch.Generator().manual_seed(seed))


def selection_of(sae: SparseAutoencoder, latents: list[int], strength: float = -2.0) -> Selection:
    shape = (2, len(latents))
    numbers = torch.tensor(latents, dtype=torch.long).expand(shape).clone()
    fields = [torch.full(shape, value) for value in (0.5, 0.1, strength)]
    return Selection(TIMESTEPS, numbers, *fields, ("cat",), sae.fingerprint)


def edit_of(kind: str, sae: SparseAutoencoder, latents: list[int], strength: float = -2.0):
    selection = selection_of(sae, latents, strength)
    if kind == "steer":
        return Steer(sae, tuple(latents), 0.5, 1.5)
    if kind == "shift":
        ones = torch.ones(2, 1)
        return Shift(
            sae, [selection], [Detector(TIMESTEPS, torch.tensor([3]), ones, 0.1 * ones[:, 0], sae.fingerprint)]
        )
    if kind == "redirect":
        table = make_table(sae)
        return Redirect(sae, table.contrasts(sae), {"cat": strength} if latents else {})
    options = {"published": {"paper_exact": True}, "norm": {"scale": "norm"}}.get(kind, {})
    return Replace(sae, selection) if kind == "replace" else Ablate(sae, selection, **options)


@QUICK
@given(seed=SEEDS, kind=st.sampled_from(("ablate", "published", "norm", "replace", "steer")))
def test_an_empty_selection_is_the_identity(seed, kind):
    tokens = tokens_of(seed)
    assert edit_of(kind, make_sae(), [])(tokens, 501) is tokens


@QUICK
@given(seed=SEEDS, kind=st.sampled_from(KINDS), order=st.permutations(range(3)))
def test_maps_in_another_order_give_the_same_maps_in_that_order(seed, kind, order):
    edit, tokens = edit_of(kind, make_sae(), [3, 7]), tokens_of(seed)
    torch.testing.assert_close(edit(tokens[order], 501), edit(tokens, 501)[order], **CLOSE)


@QUICK
@given(seed=SEEDS, kind=st.sampled_from([kind for kind in KINDS if kind != "replace"]), order=st.permutations(range(7)))
def test_tokens_in_another_order_give_the_same_tokens_in_that_order(seed, kind, order):
    """But for Replace, which draws by place."""
    edit, tokens = edit_of(kind, make_sae(), [3, 7]), tokens_of(seed)
    torch.testing.assert_close(edit(tokens[:, order], 501), edit(tokens, 501)[:, order], **CLOSE)


@QUICK
@given(seed=SEEDS, kind=st.sampled_from(("ablate", "norm", "steer")), order=st.permutations(range(N)))
def test_latents_in_another_order_are_the_same_sae(seed, kind, order):
    """Numbered otherwise, the same latents are taken and the same tokens leave."""
    sae, tokens, places = make_sae(), tokens_of(seed), torch.tensor(order)
    other = make_sae()
    for name in ("W_enc", "b_enc", "W_dec"):
        getattr(other, name).copy_(getattr(sae, name)[places])
    latents = [int((places == own).nonzero()) for own in (3, 7)]
    expected, got = edit_of(kind, sae, [3, 7])(tokens, 501), edit_of(kind, other, latents)(tokens, 501)
    torch.testing.assert_close(got, expected, **CLOSE)


@QUICK
@given(seed=SEEDS, latents=st.lists(st.integers(0, N - 1), min_size=2, max_size=6, unique=True))
def test_steering_disjoint_latents_by_a_number_commutes(seed, latents):
    sae, tokens = make_sae(), tokens_of(seed)
    one, two = Steer(sae, tuple(latents[:1]), add=0.7), Steer(sae, tuple(latents[1:]), add=-0.4)
    both = Steer(sae, tuple(latents), add=0.0)
    assert both(tokens, 501) is tokens
    torch.testing.assert_close(one(two(tokens, 501), 501), two(one(tokens, 501), 501), **CLOSE)


@QUICK
@given(seed=SEEDS, latents=st.lists(st.integers(0, N - 1), min_size=2, max_size=6, unique=True), data=st.data())
def test_disjoint_selections_merge_in_any_order_into_the_same_edit(seed, latents, data):
    sae, tokens = make_sae(), tokens_of(seed)
    at = data.draw(st.integers(1, len(latents) - 1))
    one, two = selection_of(sae, latents[:at]), selection_of(sae, latents[at:], -3.0)
    merged = [Ablate(sae, Selection.merge(order))(tokens, 501) for order in ([one, two], [two, one])]
    torch.testing.assert_close(*merged, **CLOSE)


@QUICK
@given(seed=SEEDS, kind=st.sampled_from([kind for kind in KINDS if kind != "published"]), amount=st.floats(0, 1))
def test_a_mask_goes_that_far_of_the_way(seed, kind, amount):
    edit, tokens = edit_of(kind, make_sae(), [3, 7]), tokens_of(seed)
    expected = tokens + amount * (edit(tokens, 501) - tokens)
    torch.testing.assert_close(edit(tokens, 501, torch.full((1, 7), amount)), expected, **CLOSE)


def gathered(sae, pictures, seed) -> ConceptStatistics:
    statistics = ConceptStatistics(CONCEPTS, [1, 501], N, sae.fingerprint, sae.origin)
    for timestep in (1, 501):
        for number in pictures:
            names = [["cat", "neon"], ["dog", "oil"], ["cat", "oil"], []][number % 4]
            tokens = tokens_of(seed + number + timestep, 1)
            statistics.observe(sae, [names], timestep, tokens, tokens / 2)
    return statistics


@QUICK
@given(seed=st.integers(0, 2**31), count=st.integers(2, 8), data=st.data())
def test_statistics_of_the_parts_merge_into_those_of_the_whole(seed, count, data):
    sae, pictures = make_sae(), list(range(count))
    cut = data.draw(st.integers(1, count - 1))
    whole = gathered(sae, pictures, seed)
    one, two = gathered(sae, pictures[:cut], seed), gathered(sae, pictures[cut:], seed)
    one.merge(two)
    for name, own in whole.tensors.items():
        torch.testing.assert_close(one.tensors[name], own, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 7, D), (1, 1, D), (2, 0, D)])
def test_no_picture_and_no_token_and_one_token_are_edited_too(kind, shape):
    edit, tokens = edit_of(kind, make_sae(), [3, 7]), torch.ones(shape)
    assert edit(tokens, 501).shape == shape
    if kind != "published":
        assert torch.equal(edit(tokens, 501, torch.zeros(1, shape[1])), tokens), "masked as a whole"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("steer", "redirect")])
def test_tokens_at_the_end_of_half_precision_stay_finite(kind):
    edit = edit_of(kind, make_sae(), [3, 7])
    tokens = torch.full((1, 3, D), 3000.0).half()
    assert edit(tokens, 501).isfinite().all()


def test_contrasts_of_pictures_that_are_all_alike_are_finite():
    sae, statistics = make_sae(), None
    statistics = ConceptStatistics(CONCEPTS, [1], N, sae.fingerprint, sae.origin)
    for names in (["cat", "neon"], ["dog", "oil"]):
        statistics.observe(sae, [names], 1, torch.ones(1, 4, D))
    fitted = Contrasts.fit(statistics, sae)
    assert all(getattr(fitted, name).isfinite().all() for name in ("weights", "offsets", "effects"))
    edit = Redirect(sae, replace(fitted), {"cat": -2.0})
    assert edit(torch.ones(1, 4, D), 1).isfinite().all()
