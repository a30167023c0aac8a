from math import prod

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.ldm import SD15, SD21, SDXL, UNET, VAE, Size, shapes
from benchmarks.random_sd15 import write
from saeuron import SaeuronError
from saeuron.hookpoints import names
from training.diffusion.load import load_model
from training.diffusion.sampling import generate
from training.diffusion.single_file import configs, family

FAMILIES = {"SD 1": SD15, "SD 2": SD21, "SDXL": SDXL}
SMALL = {
    "SD 1": Size(unet=32, vae=32, clip=(64, 2)),
    "SD 2": Size(unet=64, vae=32, linear=True, open_clip=(64, 3)),
    "SDXL": Size(unet=64, vae=32, depths=(0, 1, 2), linear=True, clip=(64, 2), open_clip=(128, 3)),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def weights(size, *prefixes):
    return sum(prod(shape) for name, shape in shapes(size).items() if name.startswith(prefixes))


@pytest.mark.parametrize(
    ("size", "unet"), [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)], ids=["1.5", "2.1", "XL"]
)
def test_the_full_size_shapes_are_those_of_the_real_models(size, unet):
    # As counted in the published checkpoints, by everybody.
    assert weights(size, UNET) == unet and weights(size, VAE) == 83_653_863


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_full_size_file_is_told_by_its_shapes_and_built_to_them(kind):
    found = configs(shapes(FAMILIES[kind]))
    assert family(shapes(FAMILIES[kind])) == kind
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(found["unet"]), AutoencoderKL.from_config(found["vae"])
        text = CLIPTextModel(CLIPTextConfig(**found["text_encoder"]))
        second = found.get("text_encoder_2") and CLIPTextModelWithProjection(CLIPTextConfig(**found["text_encoder_2"]))
    assert count(unet) == weights(FAMILIES[kind], UNET)
    assert count(vae) == weights(FAMILIES[kind], VAE)
    if kind == "SD 2":  # diffusers builds one layer fewer, and no projection
        assert text.config.num_hidden_layers == 23 and text.config.hidden_size == 1024
    else:
        assert count(text) == weights(FAMILIES[kind], "cond_stage_model.", "conditioner.embedders.0.")
    if second:
        assert count(second) == weights(FAMILIES[kind], "conditioner.embedders.1.")
    assert len(names(unet)) == {"SD 1": 16, "SD 2": 16, "SDXL": 11}[kind]


@pytest.mark.parametrize("kind", SMALL)
def test_a_single_file_of_every_family_is_loaded_and_draws(tmp_path, kind):
    write(tmp_path / "model.safetensors", SMALL[kind], seed=0)
    pipeline = load_model(str(tmp_path / "model.safetensors"))
    assert type(pipeline).__name__ == ("StableDiffusionXLPipeline" if kind == "SDXL" else "StableDiffusionPipeline")
    (image,) = generate(pipeline, ["a star"], [0], steps=2, guidance=3.0, height=64, width=64)
    assert image.shape == (3, 64, 64) and image.isfinite().all() and image.std() > 0.01
    other = generate(pipeline, ["many hearts in a row"], [0], steps=2, guidance=3.0, height=64, width=64)[0]
    assert (image - other).abs().max() > 1e-4, "it reads its prompt"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": None}, "holds no UNet"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "takes 9 channels"),
        ({"first_stage_model.": None}, "holds no VAE"),
        ({"cond_stage_model.": None}, "text encoder is not that of"),
    ],
    ids=["no UNet", "inpainting", "no VAE", "no text encoder"],
)
def test_what_is_no_whole_text_to_image_model_is_refused(change, complaint):
    ((start, shape),) = change.items()
    kept = {name: own for name, own in shapes(SD15).items() if not name.startswith(start)}
    with pytest.raises(SaeuronError, match=complaint):
        configs(kept | ({start: shape} if shape else {}))
