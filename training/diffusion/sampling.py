"""Pictures from prompts and seeds, with or without edits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import get_annotations
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline

from saeuron import Hookpoint, SaeuronError
from saeuron.hookpoints import whole_timestep

from ..common.options import Pictures
from ..common.results import Plan
from .denoiser import denoiser, options_of, reads_one_text
from .hook import Edit, Tap, editing, hooked
from .load import from_image


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. ``height`` and ``width`` are in pixels; None is the model's own size.

    With an ``init_image`` ``[3, H, W]`` in 0..1 pictures start from it in place of noise, and go ``denoise`` (0…1) of
    the way from it. Edits count where ``mask`` ``[H, W]`` in 0..1 says.
    """

    steps: int = 25
    guidance: float = 3.0
    batch: int = 30
    bf16: bool = False
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    init_image: torch.Tensor | None = field(default=None, compare=False, repr=False)
    denoise: float = 1.0
    mask: torch.Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise SaeuronError("--steps and --batch have to be at least 1")
        check_size(self.height, self.width)

    @classmethod
    def of(cls, options: Pictures) -> "Sampling":
        """What a command's options say."""
        return cls(**{name: getattr(options, name) for name in get_annotations(Pictures) if hasattr(cls, name)})


def check_size(height: int | None, width: int | None, multiple: int = 8) -> None:
    """Raise SaeuronError where a size in pixels is none that a model can draw."""
    if any(side is not None and (side < multiple or side % multiple) for side in (height, width)):
        raise SaeuronError(f"--height and --width have to be multiples of {multiple}, and are {height} and {width}")


@torch.no_grad()
def generate(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | torch.Tensor,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    taps: Mapping[Hookpoint, Tap] | None = None,
    **how: object,
) -> torch.Tensor:
    """One batch of images ``[B, 3, H, W]`` in 0..1. ``prompts`` may come encoded already, as ``[B, length, d_text]``.

    ``how`` are fields of Sampling, and win over those of ``sampling``.

    An image depends on its prompt and seed alone, not on the batch it is made in, so that runs with and without an edit
    are paired by seed.
    """
    device, sampling = denoiser(pipeline).device, replace(sampling or Sampling(), **how)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"height": sampling.height, "width": sampling.width}
    if sampling.init_image is not None:
        pipeline = from_image(pipeline)
        options = {"image": sampling.init_image.expand(len(seeds), -1, -1, -1), "strength": sampling.denoise}
    if reads_one_text(pipeline):
        options["prompt_embeds"], options["negative_prompt_embeds"] = guided_texts(pipeline, prompts, sampling)
        options["guidance_scale"] = sampling.guidance
    else:
        options["prompt"] = list(prompts)
        options |= options_of(pipeline, sampling.guidance, sampling.negative_prompt, len(seeds))
    if not hasattr(pipeline, "do_classifier_free_guidance"):
        pipeline._guidance_scale = sampling.guidance  # which PixArt's call keeps to itself
    with (
        hooked(pipeline, taps or {}, sampling.mask),
        torch.autocast(device.type, torch.bfloat16, enabled=sampling.bf16),
    ):
        images = pipeline(
            generator=generators,
            num_inference_steps=sampling.steps,
            output_type="pt",
            **options,
        ).images
    return images.float().cpu()


def guided_texts(
    pipeline: DiffusionPipeline, prompts: Sequence[str] | torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``prompts`` and as many negative ones ``[B, length, d_text]``; None for these where nothing is guided."""
    given = prompts if isinstance(prompts, torch.Tensor) else text_embeddings(pipeline, prompts, sampling.bf16)
    if sampling.guidance <= 1:
        return given, None
    return given, text_embeddings(pipeline, [sampling.negative_prompt], sampling.bf16).expand(len(given), -1, -1)


_texts: WeakKeyDictionary[torch.nn.Module, dict] = WeakKeyDictionary()
KEPT = 256
"""Texts that are remembered: a prompt file may have any number, and each takes a quarter of a megabyte."""


@torch.no_grad()
def text_embeddings(pipeline: DiffusionPipeline, prompts: Sequence[str], bf16: bool = False) -> torch.Tensor:
    """What a UNet of SD 1 or 2 is told ``[B, length, d_text]``; the last `KEPT` texts are not encoded again."""
    encoder = pipeline.text_encoder
    known = _texts.setdefault(encoder, {})
    new = list(dict.fromkeys(text for text in prompts if (text, bf16) not in known))
    for start in range(0, len(new), 32):
        part = new[start : start + 32]
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=bf16):
            found = pipeline.encode_prompt(part, encoder.device, 1, False)[0]
        # Copies, or each would keep the whole part.
        known.update({(text, bf16): own.to("cpu", copy=True) for text, own in zip(part, found, strict=True)})
    asked = [(text, bf16) for text in prompts]
    known.update({key: known.pop(key) for key in dict.fromkeys(asked)})  # the latest stand last
    embeddings = torch.stack([known[key] for key in asked]).to(encoder.device)
    for key in list(known)[:-KEPT]:
        del known[key]
    return embeddings


def draw_all(
    pipeline: DiffusionPipeline,
    rows: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    sampling: Sampling,
    edits: Mapping[Hookpoint, Sequence[Edit]] | None = None,
) -> torch.Tensor:
    """Pictures ``[len(rows), 3, H, W]`` in 0..1, one a row and seed."""
    parts = []
    for start in range(0, len(rows), sampling.batch):
        part = slice(start, start + sampling.batch)
        prompts = [row["prompt"] for row in rows[part]]
        parts.append(generate(pipeline, prompts, seeds[part], sampling, editing(edits or {})))
    return torch.cat(parts)


def plan(pipeline: DiffusionPipeline, sampling: Sampling, pictures: int, bytes: int = 0) -> Plan:
    """What it takes to draw so many ``pictures``, as two tell that are drawn now in one step and in two."""
    taken = []
    for steps in (1, 1, 2):  # the first warms up
        began = time.perf_counter()
        generate(pipeline, [""], [0], sampling, steps=steps, init_image=None, mask=None)
        taken.append(time.perf_counter() - began)
    each = taken[1] + (sampling.steps - 1) * max(taken[2] - taken[1], 0.0)
    return Plan({"pictures": pictures, "denoising steps": pictures * sampling.steps}, bytes, pictures * each)


class _Reached(Exception):
    pass


def timesteps_of(pipeline: DiffusionPipeline, sampling: Sampling) -> list[int]:
    """The timesteps that ``sampling`` goes through, by the names that recordings and tables give them."""
    if hasattr(pipeline, "unet"):
        pipeline.scheduler.set_timesteps(sampling.steps)
        return [whole_timestep(t) for t in pipeline.scheduler.timesteps]

    def reached(*_: object) -> None:
        raise _Reached

    # Each pipeline of a transformer shifts its own timesteps by the picture's size, in its call and nowhere else.
    handle = denoiser(pipeline).register_forward_pre_hook(reached)
    try:
        generate(pipeline, [""], [0], sampling, init_image=None, mask=None)
    except _Reached:
        return [whole_timestep(t) for t in pipeline.scheduler.timesteps]
    finally:
        handle.remove()
    raise AssertionError("a pipeline calls its model")
