"""diffusers as a host: the one file that hooks a pipeline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionPipeline

from saeuron.hookpoints import Hookpoint

Edit = Callable[[torch.Tensor, float], torch.Tensor]
"""``tokens [B, N, d], timestep → tokens``."""

Tap = Callable[[torch.Tensor, float, slice], torch.Tensor]
"""Like an Edit, but also told which rows are conditional. Returning its argument leaves the model untouched."""


@contextmanager
def hooked(
    pipeline: StableDiffusionPipeline, taps: Mapping[Hookpoint, Tap], mask: torch.Tensor | None = None
) -> Iterator[None]:
    """Run every ``tap`` at its hookpoint while the block lasts; afterwards nothing of it stays in the model.

    ``mask`` ``[H, W]`` in 0..1 says where in the picture edits count; where there is one, taps are given ``mask`` at
    the resolution of their map, ``[1, N]``.
    """
    timestep = 0.0

    def remember(_module, args, kwargs):
        nonlocal timestep
        timestep = float(kwargs["timestep"] if "timestep" in kwargs else args[1])

    def hook_for(hookpoint: Hookpoint, tap: Tap):
        def hook(_module, args, kwargs, output):
            maps = output[0]
            tokens = hookpoint.read(maps, args[0] if args else kwargs["hidden_states"])
            # The pipeline stacks [unconditional, conditional] when it guides, and runs the conditional alone otherwise.
            conditional = slice(len(maps) // 2 if pipeline.do_classifier_free_guidance else 0, len(maps))
            where = {} if mask is None else {"mask": token_mask(mask, maps)}
            with torch.autocast(maps.device.type, enabled=False):
                edited = tap(tokens, timestep, conditional, **where)
            return None if edited is tokens else (hookpoint.write(maps, tokens, edited), *output[1:])

        return hook

    handles = []
    try:
        modules = {hookpoint: hookpoint.module(pipeline.unet) for hookpoint in taps}
        handles.append(pipeline.unet.register_forward_pre_hook(remember, with_kwargs=True))
        for hookpoint, tap in taps.items():
            handles.append(modules[hookpoint].register_forward_hook(hook_for(hookpoint, tap), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_mask(mask: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """``mask`` ``[H, W]`` at the resolution of ``maps`` ``[B, d, h, w]``, as ``[1, h·w]``."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None].to(maps), maps.shape[-2:]).flatten(1)


def editing(edits: Mapping[Hookpoint, Sequence[Edit]]) -> dict[Hookpoint, Tap]:
    """Taps that apply edits in order to all rows, conditional or not."""

    def tap_for(chain: Sequence[Edit]) -> Tap:
        def tap(tokens: torch.Tensor, timestep: float, _conditional: slice, **where: torch.Tensor) -> torch.Tensor:
            for edit in chain:
                tokens = edit(tokens, timestep, **where)
            return tokens

        return tap

    return {hookpoint: tap_for(chain) for hookpoint, chain in edits.items()}
