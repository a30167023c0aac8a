import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import Hookpoint, SaeuronError, load_sae

# cfg.json as SAELens 6 writes it, key for key.
CONFIG = {
    "d_in": 16,
    "d_sae": 64,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.18.0", "hook_name": None},
}
TOPK = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": False}
JUMPRELU, STANDARD = {"architecture": "jumprelu"}, {"architecture": "standard"}


@pytest.fixture
def publish(tmp_path, make_tokens):
    """Writes a folder as SAELens would, and returns its tensors."""

    def write(more=None, **options):
        config = {key: value for key, value in (CONFIG | options).items() if value is not ...}
        stored = {
            "W_enc": make_tokens(16, 64, seed=1),
            "b_enc": make_tokens(64, seed=2),
            "W_dec": 0.5 * make_tokens(64, 16, seed=3),
            "b_dec": make_tokens(16, seed=4),
        }
        if config.get("architecture") == "jumprelu":
            stored["threshold"] = torch.linspace(-1, 6, 64)
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        save_file(stored | (more or {}), tmp_path / "sae_weights.safetensors")
        return stored

    return write


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("options", [TOPK, TOPK | {"rescale_acts_by_decoder_norm": True}, JUMPRELU, STANDARD])
def test_it_encodes_and_decodes_as_the_formula_says(publish, tmp_path, make_tokens, options, centred):
    stored, tokens = publish(apply_b_dec_to_input=centred, **options), make_tokens(100, 16, seed=9)
    sae = load_sae(tmp_path)
    norms = stored["W_dec"].norm(dim=1) if options.get("rescale_acts_by_decoder_norm") else torch.ones(64)
    pre = ((tokens - centred * stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]) * norms
    if options["architecture"] == "topk":
        values, latents = pre.topk(4)
        code = torch.zeros_like(pre).scatter_(1, latents, torch.relu(values))
    else:
        code = torch.relu(pre) * (pre > stored.get("threshold", torch.zeros(64)))
    # Sums of 16 terms of order 1 and a bias folded in and out again: a few float32 roundings of values up to 20.
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae.decode(code), code / norms @ stored["W_dec"] + stored["b_dec"], rtol=1e-5, atol=1e-4)


def test_a_hook_name_in_the_metadata_is_the_hookpoint(publish, tmp_path):
    publish(**TOPK, metadata={"hook_name": "unet.mid_block.attentions.0"})
    assert load_sae(tmp_path).hookpoint == Hookpoint("unet.mid_block.attentions.0")


def test_a_hook_name_of_a_language_model_is_none(publish, tmp_path):
    publish(**TOPK, metadata={"hook_name": "blocks.5.hook_resid_pre"})
    assert load_sae(tmp_path).hookpoint is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"architecture": ...}, "cfg.json lacks architecture: load it with SAELens 6"),
        ({"architecture": "gated"}, "cfg.json has architecture 'gated', which is not supported; the nearest are"),
        ({"architecture": "batchtopk"}, "cfg.json has architecture 'batchtopk', which .* the nearest are topk"),
        (TOPK | {"normalize_activations": "layer_norm"}, "cfg.json sets normalize_activations to 'layer_norm'"),
        (TOPK | {"normalize_activations": "expected_average_only_in"}, "cfg.json sets normalize_activations"),
        (TOPK | {"reshape_activations": "hook_z"}, "cfg.json sets reshape_activations to 'hook_z'"),
        (TOPK | {"d_sae": None}, "cfg.json has no usable value for d_sae"),
        (TOPK | {"k": 65}, "cfg.json does not fit: k is 65"),
        (TOPK | {"k": ...}, "cfg.json has no usable value for k"),
        (
            TOPK | {"d_in": 24},
            r"sae_weights.safetensors has W_enc of shape \[16, 64\] where its config says \[24, 64\]",
        ),
        (TOPK | {"more": {"log_threshold": torch.zeros(64)}}, "sae_weights.safetensors holds log_threshold"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_file_and_field(publish, tmp_path, options, complaint):
    publish(**options)
    with pytest.raises(SaeuronError, match=complaint):
        load_sae(tmp_path)
