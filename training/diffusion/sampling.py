"""Pictures from prompts and seeds, with or without edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, SaeuronError

from .hook import Edit, Tap, editing, hooked


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. ``height`` and ``width`` are in pixels; None is the model's own size."""

    steps: int = 25
    guidance: float = 3.0
    batch: int = 30
    bf16: bool = False
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise SaeuronError("--steps and --batch have to be at least 1")


@torch.no_grad()
def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str] | torch.Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    height: int | None = None,
    width: int | None = None,
    bf16: bool = False,
    taps: Mapping[Hookpoint, Tap] | None = None,
) -> torch.Tensor:
    """One batch of images ``[B, 3, H, W]`` in 0..1. ``prompts`` may come encoded already, as ``[B, length, d_text]``.

    An image depends on its prompt and seed alone, not on the batch it is made in, so that runs with and without an edit
    are paired by seed.
    """
    device = pipeline.unet.device
    encoded = isinstance(prompts, torch.Tensor)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with hooked(pipeline, taps or {}), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        images = pipeline(
            prompt=None if encoded else list(prompts),
            prompt_embeds=prompts if encoded else None,
            generator=generators,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            output_type="pt",
        ).images
    return images.float().cpu()


def draw_all(
    pipeline: StableDiffusionPipeline,
    rows: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    sampling: Sampling,
    edits: Mapping[Hookpoint, Sequence[Edit]] | None = None,
) -> torch.Tensor:
    """Pictures ``[len(rows), 3, H, W]`` in 0..1, one a row and seed."""
    parts = []
    for start in range(0, len(rows), sampling.batch):
        part = slice(start, start + sampling.batch)
        parts.append(
            generate(
                pipeline,
                [row["prompt"] for row in rows[part]],
                seeds[part],
                steps=sampling.steps,
                guidance=sampling.guidance,
                height=sampling.height,
                width=sampling.width,
                bf16=sampling.bf16,
                taps=editing(edits or {}),
            )
        )
    return torch.cat(parts)
