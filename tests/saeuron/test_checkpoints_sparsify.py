import json

import pytest
import torch
from safetensors.torch import save_file

from saeuron import SaeuronError, load_sae

# cfg.json as sparsify writes it, key for key.
SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 4,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": 16,
}


@pytest.fixture
def publish(tmp_path, make_tokens):
    """Writes a folder as sparsify would; options go into cfg.json, ``more`` beside its tensors."""

    def write(more=None, **options):
        tensors = {
            "encoder.weight": make_tokens(64, 16, seed=1),
            "encoder.bias": make_tokens(64, seed=2),
            "W_dec": make_tokens(64, 16, seed=3),
            "b_dec": make_tokens(16, seed=4),
        }
        with open(tmp_path / "cfg.json", "w") as file:
            json.dump(SPARSIFY | options, file)
        save_file(tensors | (more or {}), tmp_path / "sae.safetensors")
        return tensors

    return write


@pytest.mark.parametrize("options", [{}, {"num_latents": 64}, {"multi_topk": True, "normalize_decoder": False}])
def test_it_encodes_and_decodes_as_the_formula_says(publish, tmp_path, make_tokens, options):
    stored, tokens = publish(**options), make_tokens(50, 16, seed=9)
    sae = load_sae(tmp_path)
    pre = torch.relu((tokens - stored["b_dec"]) @ stored["encoder.weight"].T + stored["encoder.bias"])
    code = torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0)
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(tokens), code @ stored["W_dec"] + stored["b_dec"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"transcode": True}, "cfg.json sets transcode"),
        ({"skip_connection": True}, "cfg.json sets skip_connection"),
        ({"activation": "groupmax"}, "cfg.json sets activation 'groupmax'"),
        ({"more": {"W_skip": torch.zeros(16, 16)}}, "sae.safetensors holds W_skip"),
    ],
)
def test_what_is_not_an_autoencoder_of_this_kind_is_refused_by_its_field(publish, tmp_path, options, complaint):
    publish(**options)
    with pytest.raises(SaeuronError, match=complaint):
        load_sae(tmp_path)
