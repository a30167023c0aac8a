import json

import pytest
import torch

from saeuron import Hookpoint, SaeuronError, load_sae

CONFIG = {"input_dim": 16, "nb_concepts": 64, "top_k": 4}


@pytest.fixture
def publish(tmp_path, make_tokens):
    """Writes a folder of overcomplete's names, and returns its tensors."""

    def write(prefix="", wrap=None, drop=(), more=None, **options):
        stored = {
            "encoder.final_block.0.weight": make_tokens(64, 16, seed=1),
            "encoder.final_block.0.bias": make_tokens(64, seed=2),
            "dictionary._weights": make_tokens(64, 16, seed=3),
            "dictionary.multiplier": torch.tensor(0.7),
        }
        content = {prefix + name: tensor for name, tensor in stored.items() if name not in drop} | (more or {})
        torch.save({wrap: content, "epoch": 3} if wrap else content, tmp_path / "model.pt")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | options))
        return stored

    return write


@pytest.mark.parametrize(
    "options", [{}, {"prefix": "_orig_mod."}, {"wrap": "model_state_dict", "prefix": "_orig_mod."}]
)
def test_it_encodes_and_decodes_as_the_formula_says(publish, tmp_path, make_tokens, options):
    stored, tokens = publish(**options), make_tokens(100, 16, seed=9)
    sae = load_sae(tmp_path)
    pre = torch.relu(tokens @ stored["encoder.final_block.0.weight"].T + stored["encoder.final_block.0.bias"])
    code = torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0)
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=1e-5)
    rows = stored["dictionary._weights"]
    dictionary = rows / rows.norm(dim=1, keepdim=True) * torch.exp(torch.tensor(0.7))
    torch.testing.assert_close(sae.decode(code), code @ dictionary, rtol=1e-5, atol=1e-5)
    assert not sae.b_dec.any()


def test_no_multiplier_means_unit_rows(publish, tmp_path):
    publish(drop=("dictionary.multiplier",))
    torch.testing.assert_close(load_sae(tmp_path).W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"drop": ("dictionary._weights",)}, "model.pt lacks dictionary._weights"),
        (
            {"more": {"encoder.mlp_blocks.0.0.weight": torch.zeros(16, 16)}},
            "model.pt holds encoder.mlp_blocks.0.0.weight",
        ),
        ({"nb_concepts": 32}, r"model.pt has encoder.final_block.0.weight of shape \[64, 16\] .* says \[32, 16\]"),
        ({"top_k": None}, "config.json has no usable value for top_k"),
        ({"top_k": 65}, "config.json does not fit: k is 65"),
        ({"nb_concepts": None}, "config.json has no usable value for nb_concepts"),
        ({"input_dim": None}, "config.json has no usable value for input_dim"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(publish, tmp_path, options, complaint):
    publish(**options)
    with pytest.raises(SaeuronError, match=complaint):
        load_sae(tmp_path)


def test_a_folder_named_after_a_hookpoint_says_it_and_half_precision_stays(publish, tmp_path):
    stored = publish(more={}, drop=())
    halves = {name: tensor.half() for name, tensor in stored.items()}
    folder = tmp_path / "unet.mid_block.attentions.0"
    folder.mkdir()
    torch.save(halves, folder / "model.pt")
    (tmp_path / "config.json").rename(folder / "config.json")
    sae = load_sae(folder)
    assert sae.hookpoint == Hookpoint("unet.mid_block.attentions.0")
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float16}


def test_a_whole_pickled_model_is_refused(publish, tmp_path):
    publish()
    torch.save(torch.nn.Linear(16, 64), tmp_path / "model.pt")
    with pytest.raises(SaeuronError, match=r"model\.pt is not a pickle of tensors, .* asks for torch\.nn"):
        load_sae(tmp_path)
