"""Pictures that begin alike are drawn once, up to the step at which they part.

An edit leaves most of a picture's way alone: where it first changes a token, and not before, the edited picture parts
from the unedited one. So the unedited pictures are drawn once, with every step kept and every edit asked what it would
change; and each edited one is drawn from where it parts, or not at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from saeuron import Hookpoint

from ..common.progress import track
from .denoiser import reads_one_text
from .hook import Edit, Tap, editing, hooked
from .sampling import Sampling, guided_texts

Edits = Mapping[Hookpoint, Sequence[Edit]]
MEMORY = 2 * 10**9
"""Bytes that the steps of all pictures may take."""


@dataclass(frozen=True, eq=False)
class Unedited:
    """The unedited pictures ``images`` ``[N, 3, H, W]`` in 0..1 of ``prompts`` and ``seeds``.

    ``latents[s]`` ``[N, C, h, w]`` are those before step ``s``, and ``parts[name]`` ``[N]`` is the step at which the
    edits called ``name`` first change something of each picture: the number of steps where they never do.
    """

    pipeline: StableDiffusionPipeline
    prompts: Sequence[str]
    sampling: Sampling
    images: torch.Tensor
    latents: torch.Tensor
    parts: Mapping[str, torch.Tensor]

    def edited(self, name: str, edits: Edits) -> torch.Tensor:
        """The pictures ``[N, 3, H, W]`` under the ``edits`` that were called ``name``."""
        images, steps = self.images.clone(), len(self.latents)
        order = self.parts[name].argsort(stable=True)
        order = order[self.parts[name][order] < steps]
        for chosen in track(order.split(self.sampling.batch) if len(order) else [], name):
            starts = self.parts[name][chosen]

            def entering(step: int, chosen=chosen, starts=starts) -> torch.Tensor:
                return self.latents[step][chosen[starts == step]]

            prompts = [self.prompts[n] for n in chosen.tolist()]
            images[chosen] = denoise(self.pipeline, prompts, self.sampling, entering, editing(edits))
        return images


def can_part(pipeline: StableDiffusionPipeline, sampling: Sampling, pictures: int) -> bool:
    """Whether a step depends on nothing but the latents before it, and all steps may be kept."""
    if not reads_one_text(pipeline) or getattr(pipeline, "safety_checker", None) is not None:
        return False
    side, scale = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    height, width = ((given or side * scale) // scale for given in (sampling.height, sampling.width))
    needed = 4 * pictures * sampling.steps * pipeline.unet.config.in_channels * height * width
    return isinstance(pipeline.scheduler, DDIMScheduler) and sampling.init_image is None and needed <= MEMORY


def draw_unedited(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    edits: Mapping[str, Edits],
) -> Unedited:
    """Draw the unedited pictures, and find where they would part under each of ``edits``."""
    parts = {name: torch.full((len(prompts),), sampling.steps) for name in edits}
    images, latents = [], []
    for start in track(range(0, len(prompts), sampling.batch), "unedited"):
        part = slice(start, start + sampling.batch)
        kept: list[torch.Tensor] = []
        taps = _asking(edits, {name: own[part] for name, own in parts.items()}, kept)
        noise = _noise(pipeline, seeds[part], sampling)
        images.append(
            denoise(pipeline, prompts[part], sampling, lambda step, x=noise: x[: 0 if step else None], taps, kept)
        )
        latents.append(torch.stack(kept))
    return Unedited(pipeline, prompts, sampling, torch.cat(images), torch.cat(latents, 1), parts)


def _asking(edits: Mapping[str, Edits], parts: Mapping[str, torch.Tensor], kept: Sequence) -> dict[Hookpoint, Tap]:
    """Taps that change nothing, and write to ``parts`` at which step edits would; ``kept`` has an entry a step."""

    def tap_for(hookpoint: Hookpoint) -> Tap:
        def tap(tokens: torch.Tensor, timestep: float, conditional: slice, **where: torch.Tensor) -> torch.Tensor:
            for name, own in edits.items():
                edited = tokens
                for edit in own.get(hookpoint, ()):
                    edited = edit(edited, timestep, **where)
                if edited is not tokens:
                    changed = (edited != tokens).flatten(1).any(1).view(-1, len(parts[name])).any(0).cpu()
                    parts[name][changed] = parts[name][changed].clamp(max=len(kept) - 1)
            return tokens

        return tap

    return {hookpoint: tap_for(hookpoint) for hookpoint in {place for own in edits.values() for place in own}}


def _noise(pipeline: StableDiffusionPipeline, seeds: Sequence[int], sampling: Sampling) -> torch.Tensor:
    """The latents that pictures of these ``seeds`` begin from, as the pipeline itself makes them."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = sampling.height or side, sampling.width or side
    channels, dtype, device = pipeline.unet.config.in_channels, pipeline.unet.dtype, pipeline.unet.device
    return pipeline.prepare_latents(len(seeds), channels, *size, dtype, device, generators)


@torch.no_grad()
def denoise(pipeline, prompts: Sequence[str], sampling: Sampling, entering, taps, kept: list | None = None):
    """Pictures ``[B, 3, H, W]`` in 0..1 of ``prompts``, in the order in which their latents enter.

    ``entering(step)`` ``[b, C, h, w]`` are the latents that come in before a step. ``kept`` is given all before each.
    """
    device, guided = pipeline.unet.device, sampling.guidance > 1
    pipeline._guidance_scale = sampling.guidance  # what hooks ask the pipeline for
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(sampling.steps, device=device)
    text, nothing = guided_texts(pipeline, prompts, sampling)
    latents = None
    with hooked(pipeline, taps, sampling.mask), torch.autocast(device.type, torch.bfloat16, enabled=sampling.bf16):
        for step, timestep in enumerate(scheduler.timesteps):
            new = entering(step).to(device)
            latents = new if latents is None else torch.cat([latents, new])
            if len(latents) == 0:
                continue
            if kept is not None:
                kept.append(latents.cpu())
            own = text[: len(latents)]
            given = torch.cat([nothing[: len(own)], own]) if guided else own
            noise = torch.cat([latents] * 2) if guided else latents
            noise = pipeline.unet(noise, timestep, encoder_hidden_states=given, return_dict=False)[0]
            if guided:
                without, under = noise.chunk(2)
                noise = without + sampling.guidance * (under - without)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    return pipeline.image_processor.postprocess(images, output_type="pt").float().cpu()
