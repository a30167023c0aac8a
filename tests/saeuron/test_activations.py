"""jumprelu and sigmoid_topk, and that every activation says the same in its three ways of encoding."""

import pytest
import torch

from saeuron import SaeuronError, SparseAutoencoder

# Float32 sums of a few dozen terms of order 1, taken in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

JUMPRELU = {"activation": "jumprelu", "threshold": torch.linspace(-0.5, 2.5, 64)}
SIGMOID = {"activation": "sigmoid_topk"}
ALL = pytest.mark.parametrize(
    "options",
    [{}, {"activation": "batch_topk"}, {"activation": "batch_topk", "threshold": 1.5}, JUMPRELU, SIGMOID],
    ids=["topk", "batch_topk", "thresholded", "jumprelu", "sigmoid_topk"],
)


def plain_pre_activations(sae, tokens):
    return (tokens - sae.b_dec) @ sae.W_enc.T + sae.b_enc


def test_jumprelu_keeps_each_latent_over_its_own_threshold(make_sae, make_tokens):
    sae, tokens = make_sae(**JUMPRELU), make_tokens(2, 7, 16)
    pre = plain_pre_activations(sae, tokens)
    expected = torch.relu(pre) * (pre > JUMPRELU["threshold"])
    torch.testing.assert_close(sae.encode(tokens), expected, **CLOSE)
    assert (expected > 0).any() and (sae.encode(tokens) >= 0).all()


def test_jumprelu_at_threshold_0_is_a_relu(make_sae, make_tokens):
    sae, tokens = make_sae(activation="jumprelu", threshold=torch.zeros(64)), make_tokens(5, 16)
    torch.testing.assert_close(sae.encode(tokens), torch.relu(plain_pre_activations(sae, tokens)), **CLOSE)


def test_sigmoid_topk_gives_the_k_largest_as_probabilities_and_0_elsewhere(make_sae, make_tokens):
    sae, tokens = make_sae(**SIGMOID), make_tokens(2, 7, 16)
    pre, code = plain_pre_activations(sae, tokens), sae.encode(tokens)
    kept = pre >= pre.topk(4, dim=-1).values[..., -1:]
    torch.testing.assert_close(code, torch.where(kept, 1 / (1 + torch.exp(-pre)), 0), **CLOSE)
    assert ((code > 0).sum(-1) == 4).all() and (code < 1).all()


def test_sigmoid_topk_keeps_k_latents_even_where_all_are_negative(make_sae, make_tokens):
    sae, tokens = make_sae(**SIGMOID), make_tokens(5, 16)
    sae.b_enc -= 20
    assert (plain_pre_activations(sae, tokens) < 0).all()
    assert ((sae.encode(tokens) > 0).sum(-1) == 4).all()


@ALL
def test_sparse_and_dense_codes_say_the_same(make_sae, make_tokens, options):
    sae, tokens = make_sae(**options), make_tokens(2, 7, 16)
    for per_token in (False, True):
        sparse, dense = sae.encode_sparse(tokens, per_token), sae.encode(tokens, per_token)
        scattered = torch.zeros_like(dense).scatter_add_(-1, sparse.latents, sparse.values)
        torch.testing.assert_close(scattered, dense, **CLOSE)
    torch.testing.assert_close(sae(tokens), sae.decode(sae.encode(tokens)), **CLOSE)


@ALL
def test_a_few_latents_alone_are_exact_over_their_floor(make_sae, make_tokens, options):
    sae, tokens = make_sae(**options), make_tokens(200, 16)
    floor = torch.tensor([0.2, 0.5, 0.7])
    latents = (sae.encode(tokens) > 0.7).sum(0).topk(3).indices  # often active, though never everywhere
    few, dense = sae.encode_at(tokens, latents, floor), sae.encode(tokens)[:, latents]
    over = few > floor
    assert over.any(0).all() and not over.all(0).any()
    assert torch.equal(over, dense > floor)
    torch.testing.assert_close(few[over], dense[over], **CLOSE)


def test_jumprelu_s_thresholds_go_where_its_weights_go(make_sae, make_tokens):
    sae = make_sae(**JUMPRELU).to(torch.float64)
    assert sae.threshold.dtype == sae.encode(make_tokens(3, 16)).dtype == torch.float64
    assert "threshold" in sae.state_dict() and "threshold" not in make_sae().state_dict()


def test_the_thresholds_are_part_of_jumprelu_s_fingerprint(make_sae):
    other = {"activation": "jumprelu", "threshold": torch.zeros(64)}
    assert make_sae(**JUMPRELU).fingerprint == make_sae(**JUMPRELU).fingerprint != make_sae(**other).fingerprint


def test_fingerprints_of_other_saes_are_what_they_always_were(make_sae):
    """Tables on users' disks name them: SHA-256 over W_enc, b_enc, W_dec, b_dec, and nothing of the activation."""
    import hashlib

    sae = make_sae()
    content = b"".join(t.numpy().tobytes() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    for options in ({}, {"activation": "batch_topk", "threshold": 1.5}, SIGMOID):
        assert make_sae(**options).fingerprint == hashlib.sha256(content).hexdigest()[:16]


@pytest.mark.parametrize(
    ("activation", "threshold", "complaint"),
    [
        ("jumprelu", None, "one threshold per latent"),
        ("jumprelu", 0.5, "one threshold per latent"),
        ("jumprelu", torch.zeros(63), r"shape \[63\] and there are 64 latents"),
        ("batch_topk", torch.zeros(64), "one number as threshold, or none"),
        ("sigmoid_topk", torch.zeros(64), "no threshold"),
    ],
)
def test_a_threshold_of_the_wrong_kind_is_refused(activation, threshold, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        SparseAutoencoder(16, 64, 4, activation, threshold)
