import json

import pytest
import torch

from saeuron import Hookpoint, SaeuronError, load_sae


@pytest.fixture
def publish(tmp_path, make_tokens):
    """Writes a folder as dictionary_learning would, and returns its tensors; ``backup`` wraps them as training does."""

    def write(dict_class="BatchTopKSAE", threshold=2.5, backup=None, drop=(), **options):
        linear = dict_class in ("AutoEncoderTopK", "BatchTopKSAE")
        stored = {"b_dec": make_tokens(16, seed=4)}
        if linear:
            stored |= {"encoder.weight": make_tokens(64, 16, seed=1), "encoder.bias": make_tokens(64, seed=2)}
            stored |= {"decoder.weight": make_tokens(16, 64, seed=3)}
        else:
            stored |= {"W_enc": make_tokens(64, 16, seed=1).T, "b_enc": make_tokens(64, seed=2)}
            stored |= {"W_dec": make_tokens(16, 64, seed=3).T}
        if dict_class == "JumpReluAutoEncoder":
            stored["threshold"] = torch.linspace(-1, 6, 64)
        else:
            stored |= {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(threshold)}
        if dict_class == "MatryoshkaBatchTopKSAE":
            stored["group_sizes"] = torch.tensor([16, 48])
        content = {name: tensor for name, tensor in stored.items() if name not in drop}
        if backup is not None:
            content = {"step": 7, "ae": content, "optimizer": {"state": {}}, "config": {"lr": 0.1}} | backup
        torch.save(content, tmp_path / "ae.pt")
        trainer = {"trainer_class": "Any", "dict_class": dict_class, "activation_dim": 16, "dict_size": 64, "k": 4}
        (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer | options, "buffer": {}}))
        return stored

    return write


def plain(stored, tokens, activation, scale=1.0):
    """Latents as the library's formula gives them, and the decoder ``[64, 16]``."""
    W_enc = stored["encoder.weight"] if "encoder.weight" in stored else stored["W_enc"].T
    W_dec = stored["decoder.weight"].T if "decoder.weight" in stored else stored["W_dec"]
    bias = scale * stored["encoder.bias" if "encoder.bias" in stored else "b_enc"]
    shift = 0 if activation == "jumprelu" else scale * stored["b_dec"]  # JumpReLU alone is not centred
    pre = torch.relu((tokens - shift) @ W_enc.T + bias)
    if activation == "topk":
        return torch.where(pre >= pre.topk(4).values[:, -1:], pre, 0), W_dec
    return pre * (pre > scale * stored["threshold"]), W_dec


@pytest.mark.parametrize(
    ("dict_class", "activation"),
    [
        ("AutoEncoderTopK", "topk"),
        ("BatchTopKSAE", "batch_topk"),
        ("MatryoshkaBatchTopKSAE", "batch_topk"),
        ("JumpReluAutoEncoder", "jumprelu"),
    ],
)
def test_it_encodes_and_decodes_as_the_formula_says(publish, tmp_path, make_tokens, dict_class, activation):
    stored, tokens = publish(dict_class), make_tokens(100, 16, seed=9)
    sae = load_sae(tmp_path)
    assert sae.activation == activation
    code, decoder = plain(stored, tokens, activation)
    # Sums of 16 terms of order 1 and a bias folded in and out again: a few float32 roundings of values up to 20.
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae.decode(code), code @ decoder + stored["b_dec"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("backup", [{}, {"norm_factor": None}, {"norm_factor": 3.0}])
def test_a_training_backup_is_unwrapped_and_brought_to_raw_units(publish, tmp_path, make_tokens, backup):
    stored, tokens = publish(backup=backup), make_tokens(100, 16, seed=9)
    scale = backup.get("norm_factor") or 1.0
    code, _ = plain(stored, tokens, "batch_topk", scale)
    sae = load_sae(tmp_path)
    torch.testing.assert_close(sae.encode(tokens), code, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae.b_dec, scale * stored["b_dec"])


def test_a_threshold_that_training_never_set_means_topk(publish, tmp_path, make_tokens):
    stored, tokens = publish(threshold=-1.0), make_tokens(100, 16, seed=9)
    sae = load_sae(tmp_path)
    assert (sae.activation, sae.threshold) == ("batch_topk", None)
    torch.testing.assert_close(sae.encode(tokens), plain(stored, tokens, "topk")[0], rtol=1e-5, atol=2e-5)


def test_a_submodule_named_like_a_hookpoint_is_one(publish, tmp_path):
    publish(submodule_name="unet.mid_block.attentions.0")
    assert load_sae(tmp_path).hookpoint == Hookpoint("unet.mid_block.attentions.0")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"dict_class": "GatedAutoEncoder"},
            "config.json has dict_class 'GatedAutoEncoder', .* nearest are AutoEncoderTopK",
        ),
        ({"dict_size": 65}, r"ae.pt has encoder.weight of shape \[64, 16\] where its config says \[65, 16\]"),
        ({"activation_dim": "16"}, "config.json has no usable value for activation_dim"),
        ({"drop": ("b_dec",)}, "ae.pt lacks b_dec"),
        ({"drop": ("k",), "k": None}, "config.json has no usable value for k"),
        ({"threshold": [1.0, 2.0]}, "ae.pt has threshold as something other than one finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(publish, tmp_path, options, complaint):
    publish(**options)
    with pytest.raises(SaeuronError, match=complaint):
        load_sae(tmp_path)


def test_a_config_without_a_trainer_is_refused(publish, tmp_path):
    publish()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SaeuronError, match=r"config\.json lacks trainer"):
        load_sae(tmp_path)


def test_thresholds_of_each_latent_are_scaled_with_the_tokens(tmp_path, make_tokens):
    """A backup of a training in normalised units: in raw ones every threshold is ``norm_factor`` times as large."""
    generator, scale = torch.Generator().manual_seed(3), 2.5
    stored = {"W_enc": torch.randn(16, 64, generator=generator), "b_enc": torch.randn(64, generator=generator)}
    stored |= {"W_dec": torch.randn(64, 16, generator=generator), "b_dec": torch.randn(16, generator=generator)}
    stored["threshold"] = torch.rand(64, generator=generator) + 0.5
    torch.save({"ae": stored, "norm_factor": scale}, tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": "JumpReluAutoEncoder", "activation_dim": 16, "dict_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae, tokens = load_sae(tmp_path), make_tokens(100, 16, seed=9)
    pre = tokens / scale @ stored["W_enc"] + stored["b_enc"]
    expected = scale * torch.where(pre > stored["threshold"], pre, 0)
    torch.testing.assert_close(sae.encode(tokens), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(sae.threshold, scale * stored["threshold"])


@pytest.mark.parametrize("content", ["[1]", "3", '"x"', "null"])
def test_a_config_that_is_no_object_is_refused(publish, tmp_path, content):
    publish()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SaeuronError, match=r"config\.json holds a JSON .* where an object is expected"):
        load_sae(tmp_path)
