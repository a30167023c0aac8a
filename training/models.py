"""Diffusion models by name: ``tinycanvas``, a diffusers folder, or a single-file checkpoint."""

from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from transformers.utils.logging import disable_progress_bar

from saeuron import SaeuronError, SparseAutoencoder
from saeuron.errors import nearest

disable_progress_bar()  # of a text encoder, loaded in a moment: what a command prints is its own

SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}


def load_model(model: str, device: str = "cpu", sampler: str = "ddim") -> StableDiffusionPipeline:
    """Load a pipeline onto ``device``: float16 on a GPU, float32 on the CPU.

    Raises SaeuronError where nothing is at the path, or what is there is not a Stable Diffusion model.
    """
    if sampler not in SAMPLERS:
        raise SaeuronError(f"sampler {sampler!r} is unknown; the nearest are {nearest(sampler, SAMPLERS)}")
    if device != "cpu" and not torch.cuda.is_available():
        raise SaeuronError(f"device {device!r} is not there; use --device cpu")
    if model == "tinycanvas":
        from tinycanvas.model import load_pipeline

        pipeline = load_pipeline()
    else:
        pipeline = _load(Path(model), torch.float32 if device == "cpu" else torch.float16)
    scheduler, options = SAMPLERS[sampler]
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def check_fits(sae: SparseAutoencoder, pipeline: StableDiffusionPipeline) -> None:
    """Raise SaeuronError where ``sae`` names no hookpoint, or one the model lacks or has in another width."""
    if sae.hookpoint is None:
        raise SaeuronError("the SAE does not say where it reads; add `hookpoint` to its cfg.json")
    sae.check_width(torch.empty(0, sae.hookpoint.module(pipeline.unet).config.in_channels))


def _load(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    if not path.exists():
        raise SaeuronError(f"model {path} does not exist; give `tinycanvas`, a diffusers folder or a .safetensors file")
    try:
        if path.is_dir():
            return StableDiffusionPipeline.from_pretrained(
                path, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False, local_files_only=True
            )
        return StableDiffusionPipeline.from_single_file(
            str(path), torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
        )
    except Exception as error:  # diffusers raises many kinds; all of them mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SaeuronError(f"model {path} could not be loaded as Stable Diffusion: {reason}") from error
