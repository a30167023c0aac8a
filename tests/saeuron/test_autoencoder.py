import pytest
import torch

from saeuron import SaeuronError, SparseAutoencoder

# Float32 sums of a few dozen terms of order 1, taken in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def plain_pre_activations(sae, tokens):
    return torch.relu((tokens - sae.b_dec) @ sae.W_enc.T + sae.b_enc)


def test_topk_keeps_the_k_largest_latents_of_each_token(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(2, 7, 16)
    pre, code = plain_pre_activations(sae, tokens), sae.encode(tokens)
    assert code.shape == (2, 7, 64)
    for own, all_latents in zip(code.flatten(0, 1), pre.flatten(0, 1), strict=True):
        kept = own.nonzero().squeeze(-1)
        assert set(kept.tolist()) == set(all_latents.argsort(descending=True)[:4].tolist())
        torch.testing.assert_close(own[kept], all_latents[kept], **CLOSE)


def test_batch_topk_with_a_threshold_keeps_what_exceeds_it_whatever_the_batch(make_sae, make_tokens):
    sae, tokens = make_sae(activation="batch_topk", threshold=2.0), make_tokens(2, 7, 16)
    pre = plain_pre_activations(sae, tokens)
    torch.testing.assert_close(sae.encode(tokens), pre * (pre > 2.0), **CLOSE)
    torch.testing.assert_close(sae.encode(tokens[:1, :1]), sae.encode(tokens)[:1, :1], **CLOSE)


def test_batch_topk_without_a_threshold_runs_as_topk(make_sae, make_tokens):
    tokens = make_tokens(3, 16)
    assert torch.equal(make_sae(activation="batch_topk").encode(tokens), make_sae().encode(tokens))


def test_per_token_sets_the_threshold_aside(make_sae, make_tokens):
    thresholded, tokens = make_sae(activation="batch_topk", threshold=2.0), make_tokens(5, 16)
    assert torch.equal(thresholded.encode(tokens, per_token=True), make_sae().encode(tokens))
    assert thresholded.encode_sparse(tokens, per_token=True).values.shape == (5, 4)


@pytest.mark.parametrize("options", [{}, {"activation": "batch_topk", "threshold": 1.5}])
def test_sparse_and_dense_codes_say_the_same(make_sae, make_tokens, options):
    sae, tokens = make_sae(**options), make_tokens(2, 7, 16)
    sparse, dense = sae.encode_sparse(tokens), sae.encode(tokens)
    scattered = torch.zeros_like(dense).scatter_add_(-1, sparse.latents, sparse.values)
    torch.testing.assert_close(scattered, dense, **CLOSE)
    torch.testing.assert_close(sae(tokens), sae.decode(dense), **CLOSE)


def test_a_threshold_nothing_exceeds_decodes_to_the_bias(make_sae, make_tokens):
    sae = make_sae(activation="batch_topk", threshold=1e6)
    assert torch.equal(sae(make_tokens(2, 3, 16)), sae.b_dec.expand(2, 3, 16))


def test_tokens_of_half_precision_are_encoded_in_the_weights_precision(make_sae, make_tokens):
    sae, tokens = make_sae(), make_tokens(3, 16).half()
    assert torch.equal(sae.encode(tokens), sae.encode(tokens.float()))


def test_tokens_of_another_width_are_refused_with_both_widths_named(make_sae, make_tokens):
    with pytest.raises(SaeuronError, match=r"width 16 .* gives 24"):
        make_sae().encode(make_tokens(3, 24))


@pytest.mark.parametrize(
    ("k", "activation", "complaint"), [(0, "topk", "k is 0"), (65, "topk", "64"), (4, "gelu", "gelu")]
)
def test_an_impossible_sae_is_refused(k, activation, complaint):
    with pytest.raises(SaeuronError, match=complaint):
        SparseAutoencoder(16, 64, k, activation)


def test_the_fingerprint_names_the_weights_and_survives_a_conversion(make_sae):
    sae = make_sae()
    assert sae.fingerprint == make_sae().fingerprint != make_sae(seed=5).fingerprint
    assert len(sae.fingerprint) == 16
    assert sae.to(torch.float16).fingerprint == make_sae().fingerprint
