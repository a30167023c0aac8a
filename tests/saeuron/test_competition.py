"""A few latents' competition is settled by rounded numbers, and yet exactly."""

import pytest
import torch

from saeuron import Ablate, competition
from tests.saeuron.test_edits import RELATIVE, plainly, relative_difference, select

SIZE = {"d_in": 32, "n_latents": 1024, "k": 8}


@pytest.fixture
def rounding(monkeypatch):
    """Every CPU is taken for one that multiplies bfloat16, so that the rule is tested on all."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture
def in_full(monkeypatch, rounding):
    """The numbers of tokens that were worked out in full."""
    counts, original = [], competition._in_full

    def counting(sae, tokens, latents):
        counts.append(len(tokens))
        return original(sae, tokens, latents)

    monkeypatch.setattr(competition, "_in_full", counting)
    return counts


def by_hand(sae, tokens, latents):
    """Who wins, in float64, and by how much of the winners' size."""
    W_enc, b_enc, b_dec = (w.double() for w in (sae.W_enc, sae.b_enc, sae.b_dec))
    pre = (tokens.double() - b_dec) @ W_enc.T + b_enc
    weakest = pre.topk(sae.k, dim=1).values[:, -1:]
    return pre[:, latents] >= weakest, ((pre[:, latents] - weakest) / weakest).abs()


@pytest.mark.parametrize("activation", ["topk", "sigmoid_topk"])
@pytest.mark.parametrize("spread", [1.0, 0.01], ids=["apart", "close"])
def test_whoever_wins_in_full_precision_wins(make_sae, make_tokens, rounding, activation, spread):
    sae, tokens = make_sae(activation=activation, **SIZE), make_tokens(200, 32)
    # Rows that are nearly alike give values nearly alike, which rounded numbers cannot tell apart.
    sae.W_enc.copy_(sae.W_enc[0] + spread * (sae.W_enc - sae.W_enc[0]))
    latents = torch.arange(0, 1024, 5)
    expected, apart = by_hand(sae, tokens, latents)
    _, wins = competition.compete(sae, tokens, latents, torch.zeros(len(latents)))
    told = apart > 1e-5  # float32 itself cannot tell what is closer
    positive = sae.pre_activations(tokens, latents) > 0
    assert torch.equal((wins & told & positive), (expected & told & positive)) and expected.any()
    assert told.float().mean() > 0.99


def test_only_close_calls_are_worked_out_in_full(make_sae, make_tokens, in_full):
    sae, tokens = make_sae(**SIZE), make_tokens(200, 32)
    tokens[::2] += 20 * sae.W_dec[7]
    _, wins = competition.compete(sae, tokens, torch.tensor([7]), torch.tensor([0.5]))
    assert wins[::2].all() and not wins[1::2].all() and sum(in_full) < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_edit_whose_competition_is_rounded_agrees_with_the_rule_written_plainly(
    make_sae, make_tokens, rounding, dtype
):
    sae, tokens = make_sae(**SIZE), make_tokens(2, 100, 32).to(dtype)
    selection = select(sae, sae.encode(tokens).flatten(0, 1).sum(0).topk(40).indices.tolist())
    got = Ablate(sae, selection)(tokens, 501)
    tolerance = RELATIVE if dtype == torch.float32 else torch.finfo(dtype).eps
    assert relative_difference(got, plainly(sae, selection, tokens, 501)) < tolerance


def test_gradients_flow_through_what_was_settled(make_sae, make_tokens, rounding):
    sae, tokens = make_sae(**SIZE), make_tokens(1, 100, 32)
    selection = select(sae, sae.encode(tokens).flatten(0, 1).sum(0).topk(3).indices.tolist())
    given = tokens.clone().requires_grad_(True)
    exact = tokens.double().requires_grad_(True)
    Ablate(sae, selection)(given, 501).sum().backward()
    plainly(sae, selection, exact, 501).sum().backward()
    # The same sums of up to 1 024 terms, in float32 and in float64.
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)
