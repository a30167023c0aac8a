from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from saeuron import SaeuronError
from training.common.pictures import from_picture
from training.evaluation.vit import VisionTransformer, VitJudge, load_classifier, prepared


def by_torch(weights, images):
    """The same network of PyTorch's own encoder layers."""
    width = weights["cls_token"].shape[-1]
    conv = nn.Conv2d(3, width, 16, 16)
    conv.load_state_dict({part: weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias")})
    tokens = conv(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([weights["cls_token"].expand(len(images), -1, -1), tokens], 1) + weights["pos_embed"]
    names = {"self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1."}
    names |= {"linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}
    for block in range(2):
        layer = nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        layer.load_state_dict(
            {
                f"{theirs}{part}": weights[f"blocks.{block}.{ours}{part}"]
                for theirs, ours in names.items()
                for part in ("weight", "bias")
            }
        )
        tokens = layer(tokens)
    tokens = nn.functional.layer_norm(tokens[:, 0], (width,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    return tokens @ weights["head.weight"].T + weights["head.bias"]


@torch.no_grad()
def test_it_computes_what_a_transformer_of_pytorch_s_own_layers_does(vit_weights):
    model = VisionTransformer(vit_weights())
    model.load_state_dict(vit_weights())
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images), by_torch(vit_weights(), images), rtol=1e-4, atol=1e-5)
    assert model.size == 48


def test_it_computes_what_timm_does(vit_weights):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ours = VisionTransformer(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_pictures_are_judged_as_8_bit_files_would_be():
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    scaled = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BILINEAR)
    # Normalise(.5, .5) of a picture in 0..1
    expected = (from_picture(scaled).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(prepared(images, 48)[0], expected)
    assert prepared(images, 48).shape == (2, 3, 48, 48)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model_state_dict": w, "epoch": 3}, "safetensors"])
def test_a_judge_names_the_largest_logit_of_each_kind(tmp_path, vit_weights, wrap):
    names = {"object": ("bear", "cat", "dog"), "style": ("ink", "oil")}
    paths = {}
    for kind, labels in names.items():
        own = vit_weights(len(labels))
        own["head.bias"][1] += 1000
        paths[kind] = tmp_path / f"{kind}.pth"
        if wrap == "safetensors":
            paths[kind] = tmp_path / f"{kind}.safetensors"
            save_file(own, paths[kind])
        else:
            torch.save(wrap({f"module.{name}": value for name, value in own.items()}), paths[kind])
    judge = VitJudge(paths, names, "cpu")
    assert judge(torch.rand(3, 3, 64, 64)) == {"object": ["cat"] * 3, "style": ["oil"] * 3}


def test_a_file_that_is_no_such_classifier_is_named_in_one_line(tmp_path, vit_weights):
    good = vit_weights()
    files = {
        "labels.pth": (good, "tells 5 labels apart and the task has 51"),
        "lacking.pth": ({k: v for k, v in good.items() if k != "blocks.1.attn.qkv.bias"}, "not a vision transformer"),
        "other.pth": ({"fc.weight": torch.zeros(2, 2)}, "not a vision transformer"),
        "list.pth": ([torch.zeros(2)], "holds a list where a dictionary is expected"),
        "code.pth": ({"x": Path("x")}, "is not a pickle of tensors, numbers and strings alone"),
    }
    for name, (content, complaint) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(SaeuronError, match=complaint) as refused:
            load_classifier(tmp_path / name, 51)
        assert name in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(SaeuronError, match=r"none\.pth does not exist"):
        load_classifier(tmp_path / "none.pth", 51)
