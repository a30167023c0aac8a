import pytest
import torch

from saeuron import SaeuronError
from saeuron.edits import Steer

ACTIVATIONS = pytest.mark.parametrize(
    "options",
    [{}, {"activation": "batch_topk", "threshold": 1.2}, {"activation": "sigmoid_topk"}],
    ids=["topk", "batch_topk", "sigmoid_topk"],
)
RELATIVE = 1e-5  # float32 against float64: a few dozen terms in another order


def plainly(sae, latents, tokens, add, scale):
    """``x + Σ (f' − f) W_dec`` dense and in float64, with every latent of every token worked out."""
    f = sae.encode(tokens).double()
    steered = f.clone()
    steered[..., latents] = scale * f[..., latents] + add
    return tokens.double() + (steered - f) @ sae.W_dec.double()


@ACTIVATIONS
@pytest.mark.parametrize(("add", "scale"), [(0.0, 3.0), (2.5, 1.0), (-1.0, 0.0), (0.5, -2.0)])
def test_it_agrees_with_the_rule_written_plainly(make_sae, make_tokens, options, add, scale):
    sae, tokens = make_sae(**options), make_tokens(2, 60, 16)
    latents = [3, 17, 40]
    got, expected = Steer(sae, latents, add, scale)(tokens, 501), plainly(sae, latents, tokens, add, scale)
    assert ((got - expected).abs().max() / expected.abs().max()).item() < RELATIVE
    assert not torch.equal(got, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scaling_leaves_tokens_on_which_no_latent_fires_bit_for_bit(make_sae, make_tokens, dtype):
    sae, tokens = make_sae(), make_tokens(2, 60, 16).to(dtype)
    fires = (sae.encode(tokens)[..., [3, 17]] > 0).any(-1)
    got = Steer(sae, (3, 17), scale=5.0)(tokens, 501)
    assert fires.any() and not fires.all() and got.dtype == dtype
    assert torch.equal(got[~fires], tokens[~fires]) and (got[fires] != tokens[fires]).any(-1).all()


def test_what_changes_nothing_hands_back_the_very_tokens(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 5, 16)
    assert Steer(sae, [3])(tokens, 501) is tokens
    assert Steer(sae, [], add=3.0)(tokens, 501) is tokens
    assert Steer(sae, [3], add=1.0)(tokens, 501, torch.zeros(1, 5)) is tokens
    assert not torch.equal(Steer(sae, [3], add=1.0)(tokens, 501), tokens)


def test_a_mask_shares_out_the_change(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    mask = make_tokens(2, 60, seed=2).clamp(0, 1)
    edit = Steer(sae, [3, 17], add=0.7, scale=2.0)
    expected = tokens + mask[..., None] * (edit(tokens, 501) - tokens)
    got = edit(tokens, 501, mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # float32 in another order
    assert torch.equal(got[mask == 0], tokens[mask == 0])


def test_outside_its_window_it_is_the_identity(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(1, 5, 16)
    edit = Steer(sae, [3], add=1.0, start=600, end=300)
    assert edit(tokens, 601) is tokens and edit(tokens, 299) is tokens
    assert torch.equal(edit(tokens, 450), Steer(sae, [3], add=1.0)(tokens, 999))


def test_latents_may_be_a_tensor(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 60, 16)
    one, other = Steer(sae, torch.tensor([3, 17]), add=1.0), Steer(sae, (3, 17), add=1.0)
    assert one.latents == other.latents == (3, 17)
    assert torch.equal(one(tokens, 501), other(tokens, 501))


@pytest.mark.parametrize(
    ("latents", "complaint"),
    [([64], "0 to 63, and 64 is none"), ([-1], "0 to 63, and -1 is none"), ([3, 3], "given twice")],
)
def test_latents_that_are_not_there_or_come_twice_are_refused(make_sae, latents, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        Steer(make_sae(), latents)


def test_tokens_of_another_width_are_refused_with_both_widths_named(make_sae, make_tokens):
    with pytest.raises(SaeuronError, match=r"width 16 .* gives 24"):
        Steer(make_sae(), [3])(make_tokens(1, 5, 24), 501)
