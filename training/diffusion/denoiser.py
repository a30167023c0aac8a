"""The model inside a pipeline, UNet or transformer, and what one call of it says about the picture."""

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import nn

from saeuron import SaeuronError
from saeuron.families import Family, Grid


def denoiser(pipeline: DiffusionPipeline) -> nn.Module:
    return getattr(pipeline, "unet", None) or pipeline.transformer


def reads_one_text(pipeline: DiffusionPipeline) -> bool:
    """Whether a model is told of a prompt what one text encoder makes of it, and no more: a UNet of SD 1 or 2."""
    return hasattr(pipeline, "unet") and not hasattr(pipeline, "text_encoder_2")


def own_side(pipeline: DiffusionPipeline) -> int:
    """Pixels a side of the pictures that a pipeline draws where no size is asked for."""
    config = denoiser(pipeline).config
    latents = config.sample_size if "sample_size" in config else getattr(pipeline, "default_sample_size", 128)
    return latents * pipeline.vae_scale_factor


def options_of(pipeline: DiffusionPipeline, guidance: float, negative: str, count: int) -> dict[str, Any]:
    """How a pipeline of its kind is told to guide ``count`` pictures away from the ``negative`` prompt."""
    told = {"negative_prompt": [negative] * count} if negative else {}
    names = inspect.signature(pipeline.__call__).parameters
    longest = getattr(getattr(pipeline, "tokenizer_2", None), "model_max_length", 512)
    told |= {"max_sequence_length": longest} if type(pipeline) is FluxPipeline and longest < 512 else {}
    told |= {"use_resolution_binning": False} if "use_resolution_binning" in names else {}  # the size is the user's
    if "true_cfg_scale" not in names or getattr(denoiser(pipeline).config, "guidance_embeds", False):
        # Z-Image counts from 0, where the prompt alone is followed.
        scale = guidance - 1 if type(pipeline).__name__ == "ZImagePipeline" else guidance
        return {"guidance_scale": scale} | {name: value for name, value in told.items() if name in names}
    told |= {"negative_prompt": [negative or ""] * count} if guidance > 1 else {}
    return {"true_cfg_scale": guidance} | told


def token_grid(family: Family | None, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Grid | None:
    """The grid of the picture's tokens in a call of ``model``; None of a UNet, whose maps have their own."""
    if family is None:
        return None
    if family.grid == "ids":
        places = kwargs["img_ids"]
        places = places[0] if places.ndim == 3 else places
        own = places[places[:, 0] == 0]
        height, width = (int(own[:, axis].max()) + 1 for axis in (1, 2))
        return Grid(height, width, len(places) - len(own))
    if family.grid == "shapes":
        shapes = kwargs["img_shapes"][0]
        frames, height, width = (shapes if isinstance(shapes, list) else [shapes])[0]
        return Grid(frames * height, width)
    latents = kwargs.get("hidden_states", args[0] if args else None)
    height, width = latents[0].shape[-2:]
    patch = getattr(model.config, "patch_size", None) or model.config.all_patch_size[0]
    _check_captions(kwargs.get("encoder_attention_mask") if family.name == "Lumina 2" else None)
    return Grid(height // patch, width // patch)


def call_timestep(family: Family | None, args: tuple, kwargs: dict[str, Any]) -> float:
    """The timestep of a call, 0…1000."""
    told = kwargs["timestep"] if "timestep" in kwargs else args[1]
    timestep = float(told.flatten()[0] if isinstance(told, torch.Tensor) else told)
    unit = family.timestep if family else "whole"
    return timestep if unit == "whole" else 1000 * (1 - timestep if unit == "reversed" else timestep)


class Guidance:
    """Which rows of a call follow the prompt, and which its negative."""

    def __init__(self, pipeline: DiffusionPipeline, family: Family | None) -> None:
        self.pipeline, self.order = pipeline, family.guided if family else "negative rows first"
        self.last: float | None = None
        self.negative_call = False

    def begin(self, timestep: float) -> None:
        """A call begins. Where a pipeline calls the model once for each prompt, the negative's comes second."""
        self.negative_call = self.order == "positive call first" and timestep == self.last and not self.negative_call
        self.last = timestep

    def conditional(self, count: int) -> slice:
        if self.order == "positive call first":
            return slice(0, 0 if self.negative_call else count)
        if not self._guides():
            return slice(0, count)
        return slice(0, count // 2) if self.order == "positive rows first" else slice(count // 2, count)

    def _guides(self) -> bool:
        guides = getattr(self.pipeline, "do_classifier_free_guidance", None)
        return getattr(self.pipeline, "_guidance_scale", 1.0) > 1 if guides is None else guides


def _check_captions(mask: torch.Tensor | None) -> None:
    if mask is not None and len(set(mask.sum(1).tolist())) > 1:
        raise SaeuronError("prompts of different lengths put the picture's tokens at different places: use --batch 1")
