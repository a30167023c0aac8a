"""diffusers as a host: the one file that hooks a pipeline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionPipeline

from saeuron.hookpoints import Hookpoint, to_maps, to_tokens

Edit = Callable[[torch.Tensor, float], torch.Tensor]
"""``tokens [B, N, d], timestep → tokens``."""

Tap = Callable[[torch.Tensor, float, slice], torch.Tensor]
"""Like an Edit, but also told which rows are conditional. Returning its argument leaves the model untouched."""


@contextmanager
def hooked(pipeline: StableDiffusionPipeline, taps: Mapping[Hookpoint, Tap]) -> Iterator[None]:
    """Run every ``tap`` at its hookpoint while the block lasts; afterwards nothing of it stays in the model."""
    timestep = 0.0

    def remember(_module, args, kwargs):
        nonlocal timestep
        timestep = float(kwargs["timestep"] if "timestep" in kwargs else args[1])

    def hook_for(hookpoint: Hookpoint, tap: Tap):
        def hook(_module, args, kwargs, output):
            maps = output[0]
            before = args[0] if args else kwargs["hidden_states"]
            residual = hookpoint.site == "residual"
            tokens = to_tokens(maps - before if residual else maps)
            # The pipeline stacks [unconditional, conditional] when it guides, and runs the conditional alone otherwise.
            conditional = slice(len(maps) // 2 if pipeline.do_classifier_free_guidance else 0, len(maps))
            with torch.autocast(maps.device.type, enabled=False):
                edited = tap(tokens, timestep, conditional)
            if edited is tokens:
                return None
            # The difference is added to the output, not the input to the result: an untouched token keeps every bit.
            maps = output[0] + to_maps(edited - tokens, maps) if residual else to_maps(edited, maps)
            return (maps, *output[1:])

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


def editing(edits: Mapping[Hookpoint, Sequence[Edit]]) -> dict[Hookpoint, Tap]:
    """Taps that apply edits in order to all rows, conditional or not."""

    def tap_for(chain: Sequence[Edit]) -> Tap:
        def tap(tokens: torch.Tensor, timestep: float, _conditional: slice) -> torch.Tensor:
            for edit in chain:
                tokens = edit(tokens, timestep)
            return tokens

        return tap

    return {hookpoint: tap_for(chain) for hookpoint, chain in edits.items()}
