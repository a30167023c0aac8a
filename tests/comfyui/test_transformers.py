"""Both hosts read the same tokens of every family of transformers, at every hookpoint, and edit those alone."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saeuron import Hookpoint
from saeuron.hookpoints import names
from training.diffusion.hook import hooked

INSIDE = Path(__file__).parent / "inside"
sys.path.append(str(Path(__file__).parent))
from families_given import CHANNELS, FAMILIES, LENGTH, POOLED, SIGMA, TEXT, cases  # noqa: E402


def build(family: str) -> nn.Module:
    torch.manual_seed(5)
    model = getattr(diffusers, family)(**FAMILIES[family]["diffusers"]).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.ndim == 1 and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(std=0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return model


def inputs(family: str) -> dict[str, torch.Tensor]:
    generator, found = torch.Generator().manual_seed(6), {}
    for name, case in cases(family).items():
        batch = case["batch"]
        found[f"{name}.x"] = torch.randn(batch, CHANNELS, *case["size"], generator=generator)
        found[f"{name}.context"] = torch.randn(batch, LENGTH, TEXT, generator=generator)
        found[f"{name}.pooled"] = torch.randn(batch, POOLED, generator=generator)
        if case["reference"]:
            found[f"{name}.reference"] = torch.randn(batch, CHANNELS, 4, 8, generator=generator)
    return found


def packed(latents: torch.Tensor, patch: int, number: int, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of ``latents`` and their ids: the picture's ``number``, row and column."""
    height, width = (side // patch for side in latents.shape[-2:])
    tokens = nn.functional.pixel_unshuffle(latents, patch).flatten(2).mT
    ids = torch.zeros(height, width, dims)
    ids[..., 0], ids[..., 1], ids[..., 2] = number, torch.arange(height)[:, None], torch.arange(width)
    return tokens, ids.flatten(0, 1)


def whole(latents: torch.Tensor, patch: int = 2) -> torch.Tensor:
    """``latents`` continued to whole patches, as ComfyUI does it."""
    height, width = latents.shape[-2:]
    return nn.functional.pad(latents, (0, -width % patch, 0, -height % patch), mode="circular")


@torch.no_grad()
def call(model: nn.Module, family: str, x, context, pooled, reference) -> None:
    level = torch.full((len(x),), SIGMA)
    if family.startswith(("Flux", "Chroma")):
        second = family.startswith("Flux2")
        patch, dims = (1, 4) if second else (2, 3)
        parts = [packed(whole(x, patch), patch, 0, dims)]
        parts += [packed(reference, patch, 10 if second else 1, dims)] if reference is not None else []
        text = torch.zeros(context.shape[1], dims)
        text[:, -1] = torch.arange(len(text)) if second else 0
        tokens, ids = torch.cat([t for t, _ in parts], 1), torch.cat([i for _, i in parts])
        options = {} if family.startswith("Chroma") else {"guidance": torch.full((len(x),), 3.5)}
        options |= {"pooled_projections": pooled} if family == "FluxTransformer2DModel" else {}
        model(tokens, context, timestep=level, img_ids=ids, txt_ids=text, **options)
    elif family.startswith("SD3"):
        model(whole(x), context, pooled, timestep=level * 1000)
    elif family.startswith("Qwen"):
        pictures = [whole(x), *([reference] if reference is not None else [])]
        tokens = torch.cat([packed(picture, 2, 0, 3)[0] for picture in pictures], 1)
        shapes = [[(1, *(side // 2 for side in picture.shape[-2:])) for picture in pictures]] * len(x)
        mask = torch.ones(context.shape[:2], dtype=torch.long)
        model(tokens, context, mask, timestep=level, img_shapes=shapes)
    elif family.startswith("ZImage"):
        model(list(whole(x)[:, :, None]), 1 - level, list(context))
    else:
        options = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        model(x, encoder_hidden_states=context, timestep=level * 1000, **options)


@pytest.mark.comfyui
@pytest.mark.parametrize("family", FAMILIES)
def test_both_hosts_read_the_same_tokens(comfyui, tmp_path, family):
    model, given, ours = build(family), inputs(family), {}
    pipeline = SimpleNamespace(transformer=model, do_classifier_free_guidance=False)
    for case in cases(family):
        for site in ("output", "residual"):
            seen = {}

            def tap_for(name, seen=seen):
                return lambda tokens, timestep, _: seen.setdefault(name, (tokens.clone(), timestep)) and tokens

            taps = {Hookpoint(name, site): tap_for(name) for name in names(model)}
            parts = (given.get(f"{case}.{part}") for part in ("x", "context", "pooled", "reference"))
            with hooked(pipeline, taps):
                call(model, family, *parts)
            for name, (read, when) in seen.items():
                assert when == 500
                ours[f"{case}|{name}|{site}"] = read
    weights = {f"weights.{name}": tensor for name, tensor in model.state_dict().items()}
    asked = {f"tokens|{name}": torch.zeros(1) for name in names(model)}
    save_file({**given, **weights, **asked}, tmp_path / "given.safetensors")
    environment = os.environ | {"COMFYUI_PATH": str(comfyui.path), "PYTHONPATH": str(INSIDE)}
    command = [str(comfyui.python), str(INSIDE / "transformers_run.py"), family]
    command += [str(tmp_path / "given.safetensors"), str(tmp_path / "theirs.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    theirs = load_file(tmp_path / "theirs.safetensors")
    for key, read in ours.items():
        height, width = theirs[f"{key}|grid"].tolist()
        assert read.shape == theirs[key].shape and read.shape[1] == height * width
        # The hosts' attention and normalisation round differently in float32.
        assert (read - theirs[key]).norm() / read.norm() < 1e-3, key
