"""diffusers as a host: the one file that hooks a pipeline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline

from saeuron.families import family_of
from saeuron.hookpoints import Hookpoint, place_of

from .denoiser import Guidance, call_timestep, denoiser, token_grid

Edit = Callable[[torch.Tensor, float], torch.Tensor]
"""``tokens [B, N, d], timestep → tokens``."""

Tap = Callable[[torch.Tensor, float, slice], torch.Tensor]
"""Like an Edit, but also told which rows are conditional. Returning its argument leaves the model untouched."""


@contextmanager
def hooked(
    pipeline: DiffusionPipeline, taps: Mapping[Hookpoint, Tap], mask: torch.Tensor | None = None
) -> Iterator[None]:
    """Run every ``tap`` at its hookpoint while the block lasts; afterwards nothing of it stays in the model.

    ``mask`` ``[H, W]`` in 0..1 says where in the picture edits count; where there is one, taps are given ``mask`` at
    the resolution of their map, ``[1, N]``.
    """
    model = denoiser(pipeline)
    family = family_of(model)
    guidance, timestep, grid = Guidance(pipeline, family), 0.0, None

    def remember(_module, args, kwargs):
        nonlocal timestep, grid
        timestep, grid = call_timestep(family, args, kwargs), token_grid(family, model, args, kwargs)
        guidance.begin(timestep)

    def hook_for(hookpoint: Hookpoint, tap: Tap):
        stream = hookpoint.stream(model)

        def hook(_module, args, kwargs, output):
            image = stream.returned(output)
            place, height, width = place_of(stream, image, grid)
            tokens = hookpoint.read(image, stream.given(args, kwargs), place)
            where = {} if mask is None else {"mask": token_mask(mask.to(image), height, width)}
            with torch.autocast(image.device.type, enabled=False):
                edited = tap(tokens, timestep, guidance.conditional(len(image)), **where)
            if edited is tokens:
                return None
            return stream.replaced(output, hookpoint.write(image, tokens, edited, place))

        return hook

    handles = []
    try:
        modules = {hookpoint: hookpoint.module(model) for hookpoint in taps}
        handles.append(model.register_forward_pre_hook(remember, with_kwargs=True))
        for hookpoint, tap in taps.items():
            handles.append(modules[hookpoint].register_forward_hook(hook_for(hookpoint, tap), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_mask(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``mask`` ``[H, W]`` at the resolution of a picture's tokens, ``[1, height·width]``."""
    return torch.nn.functional.adaptive_avg_pool2d(mask[None], (height, width)).flatten(1)


def editing(edits: Mapping[Hookpoint, Sequence[Edit]]) -> dict[Hookpoint, Tap]:
    """Taps that apply edits in order to all rows, conditional or not."""

    def tap_for(chain: Sequence[Edit]) -> Tap:
        def tap(tokens: torch.Tensor, timestep: float, _conditional: slice, **where: torch.Tensor) -> torch.Tensor:
            for edit in chain:
                tokens = edit(tokens, timestep, **where)
            return tokens

        return tap

    return {hookpoint: tap_for(chain) for hookpoint, chain in edits.items()}


def reading(see: Callable[[torch.Tensor, float, torch.Tensor | None], None]) -> Tap:
    """A tap that shows ``see`` the prompt's tokens, the timestep, and the unconditional tokens where there are any.

    Some pipelines call the model once for each of the two, and ``see`` is then shown the prompt's alone.
    """

    def tap(tokens: torch.Tensor, timestep: float, conditional: slice) -> torch.Tensor:
        own = tokens[conditional]
        if len(own):
            rest = tokens[: conditional.start] if conditional.start else tokens[conditional.stop :]
            see(own, timestep, rest if len(rest) else None)
        return tokens

    return tap
