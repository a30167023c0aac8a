"""Patches: what a patched MODEL carries, and how it acts while the model samples.

A patched MODEL is a clone that carries patches. Each call of the model registers forward hooks on the blocks that the
patches name and removes them when the call ends, however it ends. Nothing else of the model is touched, so a MODEL
without patches computes what it always did.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import comfy.model_management
import numpy
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch.utils.hooks import RemovableHandle

from ...saeuron import Edit, Hookpoint, Window
from ...saeuron.edits import join
from ...saeuron.families import UNET
from ...saeuron.hookpoints import place_of
from .blocks import block_of, check_width, stream_of, timestep_of, token_grid
from .masks import check_mask, on_tokens
from .memory import KEY, own_sae
from .roles import rows_of, tell_conditionings, tell_roles

WORKSPACE = 256 * 2**20
"""Bytes that an encode may take at once: an SAE has no memory of its own reserved beside the model's."""


class Observer(Protocol):
    """Reads tokens while a model samples. ``begin`` and ``end`` enclose a run; ``end`` is told whether it finished."""

    def begin(self, model: ModelPatcher) -> None: ...
    def see(self, tokens: torch.Tensor, place: "Place") -> None: ...
    def end(self, finished: bool) -> None: ...


@dataclass(frozen=True, eq=False)
class Patch:
    """What happens at one hookpoint: an ``edit``, or an ``observer`` that only looks.

    ``applies_to`` names the conditionings whose rows are meant; ``start`` and ``end`` are fractions of the sampling;
    ``mask`` ``[1 or B, H, W]`` in 0..1 says where in the picture; ``curve`` how much of the edit is made over the
    sampling, as points (fraction of the sampling, amount) that lines join. What comes ``first`` sees the tokens ahead
    of all edits, those of earlier nodes too.
    """

    hookpoint: Hookpoint
    edit: Edit | None = None
    observer: Observer | None = None
    applies_to: str = "both"
    start: float = 0.0
    end: float = 1.0
    mask: torch.Tensor | None = None
    curve: tuple[tuple[float, float], ...] = ()
    first: bool = False

    def window(self, sampling: Any) -> Window:
        """The timesteps at which the patch acts, by the model's ``sampling`` of this very call: nodes replace it."""
        sigmas = torch.tensor([sampling.percent_to_sigma(self.start), sampling.percent_to_sigma(self.end)])
        start, end = timestep_of(sampling, sigmas).tolist()
        return Window(start=start, end=end)

    def amount(self, timestep: float, sampling: Any) -> float:
        """How much of the edit is made at ``timestep``, by ``curve``."""
        if not self.curve:
            return 1.0
        sigmas = torch.tensor([sampling.percent_to_sigma(share) for share, _ in self.curve])
        points = sorted(zip(timestep_of(sampling, sigmas).tolist(), (amount for _, amount in self.curve), strict=True))
        return float(numpy.interp(timestep, *zip(*points, strict=True)))


@dataclass(frozen=True, eq=False)
class Place:
    """Where in the sampling a block's tokens come from; ``rows`` ``[B]`` bool are those that a patch is meant for.

    ``pictures`` ``[B]`` is the number of the picture that each row shows; ``height`` and ``width`` are those of the
    feature map; ``model`` is the one being called, which may be a clone on another device.
    """

    timestep: float
    height: int
    width: int
    rows: torch.Tensor
    pictures: torch.Tensor
    model: BaseModel


def attach(model: ModelPatcher, patch: Patch, sae: ModelPatcher | None = None) -> ModelPatcher:
    """A clone of ``model`` with ``patch`` added; ``sae`` is loaded, offloaded and cloned with it.

    Raises SaeuronError where the hookpoint is not in the model or the SAE is of another width.
    """
    block_of(model.model, patch.hookpoint)
    if patch.edit is not None:
        check_width(patch.edit.sae, model.model, patch.hookpoint)
    model = model.clone()
    patches = _with(model.get_attachment(KEY) or (), patch)
    model.set_attachments(KEY, patches)
    wrappers = {
        WrappersMP.OUTER_SAMPLE: _around_sampling(patches),
        WrappersMP.PREDICT_NOISE: tell_conditionings,
        WrappersMP.CALC_COND_BATCH: tell_roles,
        WrappersMP.APPLY_MODEL: _around_call(patches),
    }
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    if sae is not None:
        loaded = model.get_additional_models_with_key(KEY)
        if not any(other.model is sae.model for other in loaded):
            model.set_additional_models(KEY, [*loaded, sae])
    return model


def _with(patches: tuple[Patch, ...], new: Patch) -> tuple[Patch, ...]:
    """``patches`` and ``new``; two edits alike in all but their concepts become one, which costs one encode."""
    if new.first:
        return (new, *patches)
    for index, old in enumerate(patches):
        alike = old.edit is not None and new.edit is not None and old.mask is new.mask
        alike = alike and old.curve == new.curve
        alike = alike and all(getattr(old, n) == getattr(new, n) for n in ("hookpoint", "applies_to", "start", "end"))
        edit = join(old.edit, new.edit) if alike else None
        if edit is not None:
            return (*patches[:index], replace(old, edit=edit), *patches[index + 1 :])
    return (*patches, new)


def _around_sampling(patches: tuple[Patch, ...]) -> Callable:
    def wrapper(executor, noise, *args, **kwargs):
        for patch in patches:
            check_mask(patch.mask, noise.shape)
        with ExitStack() as stack:
            for patch in patches:
                if patch.observer is not None:
                    stack.enter_context(_observing(patch.observer, executor.class_obj.model_patcher))
            return executor(noise, *args, **kwargs)

    return wrapper


@contextmanager
def _observing(observer: Observer, model: ModelPatcher) -> Iterator[None]:
    observer.begin(model)
    try:
        yield
    except BaseException:
        observer.end(False)
        raise
    observer.end(True)


def _around_call(patches: tuple[Patch, ...]) -> Callable:
    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        transformer_options = transformer_options or {}
        model = executor.class_obj
        timestep = float(timestep_of(model.model_sampling, t.flatten()[:1])[0])
        handles = []
        try:
            for patch in patches:
                if patch.window(model.model_sampling).covers(timestep):
                    rows, pictures = rows_of(len(x), transformer_options, patch.applies_to)
                    handles.extend(_hooked(patch, timestep, rows, pictures, model, x))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    return wrapper


def _hooked(
    patch: Patch, timestep: float, rows: torch.Tensor, pictures: torch.Tensor, model: BaseModel, x: torch.Tensor
) -> list[RemovableHandle]:
    """Hooks on the block of ``patch`` for one call of ``model`` with latents ``x``."""
    block, stream, before = block_of(model, patch.hookpoint), stream_of(model, patch.hookpoint), []

    def where(image: torch.Tensor, kwargs: dict) -> tuple[slice | None, int, int]:
        return place_of(stream, image, token_grid(model, x, kwargs.get("transformer_options") or {}))

    @torch.compiler.disable
    def keep(_module, args, kwargs):
        # A block may write into what it is given.
        image = stream.given(args, kwargs)
        before[:] = [image[:, where(image, kwargs)[0]].clone()]

    @torch.compiler.disable
    def hook(_module, args, kwargs, output):
        image = stream.returned(output)
        span, height, width = where(image, kwargs)
        tokens = patch.hookpoint.read(image, before.pop() if before else stream.given(args, kwargs), span)
        place = Place(timestep, height, width, rows, pictures, model)
        if patch.observer is not None:
            patch.observer.see(tokens, place)
            return None
        edited = _edited(patch, tokens, place)
        if edited is tokens:
            return None
        return stream.replaced(output, patch.hookpoint.write(image, tokens, edited, span))

    handles = [block.register_forward_hook(hook, with_kwargs=True)]
    if patch.hookpoint.site == "residual" and stream is not UNET:
        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    return handles


def _edited(patch: Patch, tokens: torch.Tensor, place: Place) -> torch.Tensor:
    """``tokens`` with the rows that are meant edited; the very same tensor where nothing changed.

    So many maps at once as `WORKSPACE` allows, and half as many each time that memory does not suffice.
    """
    chosen = place.rows.nonzero().squeeze(-1)
    sae = own_sae(patch.edit.sae, place.model, tokens.device)
    patch = patch if sae is patch.edit.sae else replace(patch, edit=replace(patch.edit, sae=sae))
    maps = min(max(1, WORKSPACE // (4 * tokens.shape[1] * sae.n_latents)), max(1, len(chosen)))
    while True:
        try:
            return _edited_by_parts(patch, tokens, place, chosen.split(maps))
        except comfy.model_management.OOM_EXCEPTION:
            if maps == 1:
                raise
            maps //= 2
        logging.warning("SAeUron: out of memory in an edit; trying again with %d maps at once", maps)
        comfy.model_management.soft_empty_cache()


def _edited_by_parts(patch: Patch, tokens: torch.Tensor, place: Place, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    amount = patch.amount(place.timestep, place.model.model_sampling)
    if amount == 0:
        return tokens
    result = tokens
    for part in parts:
        given = tokens if len(part) == len(tokens) else tokens[part.to(tokens.device)]
        mask = on_tokens(patch.mask, place.pictures[part], place.height, place.width, tokens.device)
        if amount != 1:
            mask = (torch.ones(1, tokens.shape[1], device=tokens.device) if mask is None else mask) * amount
        edited = patch.edit(given, place.timestep, mask=mask)
        if edited is given:
            continue
        if edited.shape == tokens.shape:
            return edited
        result = tokens.clone() if result is tokens else result
        result[part.to(tokens.device)] = edited
    return result
