"""ComfyUI as a host: the one file that hooks a MODEL.

A patched MODEL is a clone that carries patches. While it samples, each model call registers forward hooks on the blocks
that the patches name and removes them when the call ends, however it ends. Nothing else of the model is touched, so a
MODEL without patches computes what it always did.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...saeuron import Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.edits import join
from ...saeuron.errors import nearest
from ...saeuron.hookpoints import to_maps, to_tokens

KEY = "saeuron"
CONDITIONINGS, ROLES = f"{KEY}_conditionings", f"{KEY}_roles"
APPLIES_TO = ("both", "positive", "negative")
WORKSPACE = 256 * 2**20
"""Bytes that an encode may take at once: an SAE has no memory of its own reserved beside the model's."""


class Observer(Protocol):
    """Reads tokens while a model samples. ``begin`` and ``end`` enclose a run; ``end`` is told whether it finished."""

    def begin(self) -> None: ...
    def see(self, tokens: torch.Tensor, place: "Place") -> None: ...
    def end(self, finished: bool) -> None: ...


@dataclass(frozen=True, eq=False)
class Patch:
    """What happens at one hookpoint: an ``edit``, or an ``observer`` that only looks.

    ``applies_to`` names the conditionings whose rows are meant; ``start`` and ``end`` are fractions of the sampling;
    ``mask`` ``[1 or B, H, W]`` in 0..1 says where in the picture.
    """

    hookpoint: Hookpoint
    edit: Callable[..., torch.Tensor] | None = None
    observer: Observer | None = None
    applies_to: str = "both"
    start: float = 0.0
    end: float = 1.0
    mask: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Place:
    """Where in the sampling a block's tokens come from; ``rows`` ``[B]`` bool are those that a patch is meant for.

    ``images`` ``[B]`` is each row's picture in the batch; ``height`` and ``width`` are those of the feature map.
    """

    timestep: float
    height: int
    width: int
    rows: torch.Tensor
    images: torch.Tensor


def attach(model: ModelPatcher, patch: Patch, sae: ModelPatcher | None = None) -> ModelPatcher:
    """A clone of ``model`` with ``patch`` added; ``sae`` is loaded and offloaded with it.

    Raises SaeuronError where the hookpoint is not in the model or the SAE is of another width.
    """
    block = find(model, patch.hookpoint)
    if patch.edit is not None:
        check_width(patch.edit.sae, block, patch.hookpoint)
    model = model.clone()
    patches = _with(model.get_attachment(KEY) or (), patch)
    model.set_attachments(KEY, patches)
    wrappers = {
        WrappersMP.OUTER_SAMPLE: _around_sampling(patches),
        WrappersMP.PREDICT_NOISE: _tell_conditionings,
        WrappersMP.CALC_COND_BATCH: _tell_roles,
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


def find(model: ModelPatcher, hookpoint: Hookpoint) -> torch.nn.Module:
    """The block of this name, in diffusers' naming; raises SaeuronError with the nearest names."""
    return _block(model.model, hookpoint)


def check_width(sae: SparseAutoencoder, block: torch.nn.Module, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless ``sae`` reads tokens as wide as ``block``'s."""
    width = getattr(block, "in_channels", sae.d_in)
    if width != sae.d_in:
        raise SaeuronError(
            f"this SAE reads tokens of width {sae.d_in} and {hookpoint.name} of this model gives {width}: "
            "it belongs to another model or another block"
        )


def _block(base: torch.nn.Module, hookpoint: Hookpoint) -> torch.nn.Module:
    root = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)
    native = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
    end = ".norm.weight"
    blocks = {f"unet.{n[: -len(end)]}": m[: -len(end)] for n, m in native.items() if n.endswith(end)}
    blocks = {name: path for name, path in blocks.items() if ".attentions." in name}
    if hookpoint.name not in blocks:
        raise SaeuronError(
            f"hookpoint {hookpoint.name!r} is not in this model; the nearest are {nearest(hookpoint.name, blocks)}"
        )
    return root.get_submodule(blocks[hookpoint.name])


def _with(patches: tuple[Patch, ...], new: Patch) -> tuple[Patch, ...]:
    """``patches`` and ``new``; two edits alike in all but their concepts become one, which costs one encode."""
    for index, old in enumerate(patches):
        alike = old.edit is not None and new.edit is not None and old.mask is new.mask
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
                    stack.enter_context(_observing(patch.observer))
            return executor(noise, *args, **kwargs)

    return wrapper


@contextmanager
def _observing(observer: Observer) -> Iterator[None]:
    observer.begin()
    try:
        yield
    except BaseException:
        observer.end(False)
        raise
    observer.end(True)


def check_mask(mask: torch.Tensor | None, shape: torch.Size) -> None:
    """Raise SaeuronError unless ``mask`` ``[M, H, W]`` fits latents of ``shape`` ``[B, C, h, w]``."""
    if mask is None:
        return
    images, height, width = mask.shape
    if images not in (1, shape[0]):
        raise SaeuronError(f"the mask holds {images} pictures and {shape[0]} are sampled: give one mask, or {shape[0]}")
    if abs(height * shape[-1] / (width * shape[-2]) - 1) > 0.05:
        raise SaeuronError(
            f"the mask is {width} × {height} and the latent {shape[-1]} × {shape[-2]}: "
            "make a mask of the picture's proportions"
        )


def _tell_conditionings(executor, x, timestep, model_options=None, seed=None):
    """Which list of conditionings is called what is known here, and asked for in `_tell_roles`."""
    options = _options(model_options or {})
    # In a tuple: ComfyUI merges dictionaries and lists of these options into others.
    options["transformer_options"][CONDITIONINGS] = tuple(executor.class_obj.conds.items())
    return executor(x, timestep, options, seed)


def _tell_roles(executor, model, conds, x_in, timestep, model_options):
    """Name the role of each conditioning by identity: its index alone means something else in every guider."""
    options = _options(model_options)
    named = options["transformer_options"].pop(CONDITIONINGS, ())
    roles = [next((name for name, cond in named if cond is given), None) for given in conds]
    options["transformer_options"][ROLES] = tuple(roles)
    return executor(model, conds, x_in, timestep, options)


def _options(model_options: dict) -> dict:
    return {**model_options, "transformer_options": dict(model_options.get("transformer_options", {}))}


def _around_call(patches: tuple[Patch, ...]) -> Callable:
    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        transformer_options = transformer_options or {}
        base, sigma = executor.class_obj, float(t.flatten()[0])
        handles = []
        try:
            for patch in patches:
                if _is_on(patch, base.model_sampling, sigma):
                    timestep = float(base.model_sampling.timestep(t.flatten()[:1])[0])
                    rows, images = _rows(len(x), transformer_options, patch.applies_to)
                    hook = _hook(patch, timestep, rows, images)
                    handles.append(_block(base, patch.hookpoint).register_forward_hook(hook))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    return wrapper


def _is_on(patch: Patch, sampling: Any, sigma: float) -> bool:
    return sampling.percent_to_sigma(patch.end) <= sigma <= sampling.percent_to_sigma(patch.start)


def _rows(count: int, options: dict, applies_to: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of ``count`` rows a patch is meant for, and the picture each belongs to.

    Rows come chunk by chunk, one chunk a conditioning; ``cond_or_uncond`` says which conditioning each chunk is.
    """
    pictures = len(options["sigmas"]) if "sigmas" in options else count
    which = options.get("cond_or_uncond") or [0]
    roles = options.get(ROLES) or ()
    row = torch.arange(count)
    chunk = (row // pictures) % len(which)
    names = [(roles[i] if i < len(roles) else None) or ("positive", "negative")[min(i, 1)] for i in which]
    meant = torch.tensor([applies_to == "both" or ("negative" in name) == (applies_to == "negative") for name in names])
    return meant[chunk], row % pictures


def _hook(patch: Patch, timestep: float, rows: torch.Tensor, images: torch.Tensor) -> Callable:
    @torch.compiler.disable
    def hook(_module, args, output):
        residual = patch.hookpoint.site == "residual"
        maps = output - args[0] if residual else output
        tokens = to_tokens(maps)
        place = Place(timestep, maps.shape[-2], maps.shape[-1], rows, images)
        if patch.observer is not None:
            patch.observer.see(tokens, place)
            return None
        edited = _edited(patch, tokens, place)
        if edited is tokens:
            return None
        # The difference is added to the output, not the input to the result: an untouched token keeps every bit.
        return output + to_maps(edited - tokens, maps) if residual else to_maps(edited, maps)

    return hook


def _edited(patch: Patch, tokens: torch.Tensor, place: Place) -> torch.Tensor:
    """``tokens`` with the rows that are meant edited; the very same tensor where nothing changed."""
    chosen = place.rows.nonzero().squeeze(-1)
    sae = on_device(patch.edit.sae, tokens.device)
    edit = patch.edit if sae is patch.edit.sae else replace(patch.edit, sae=sae)
    maps = max(1, WORKSPACE // (4 * tokens.shape[1] * edit.sae.n_latents))
    result = tokens
    for part in chosen.split(maps):
        given = tokens if len(part) == len(tokens) else tokens[part.to(tokens.device)]
        edited = edit(given, place.timestep, mask=_token_mask(patch.mask, place, part, tokens.device))
        if edited is given:
            continue
        if edited.shape == tokens.shape:
            return edited
        result = tokens.clone() if result is tokens else result
        result[part.to(tokens.device)] = edited
    return result


def _token_mask(
    mask: torch.Tensor | None, place: Place, part: torch.Tensor, device: torch.device
) -> torch.Tensor | None:
    """``mask`` at the resolution of the feature map, ``[rows, tokens]``."""
    if mask is None:
        return None
    small = torch.nn.functional.interpolate(mask[:, None].float(), (place.height, place.width), mode="area")
    return small.flatten(1)[place.images[part] % len(mask)].to(device)


def on_device(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """``sae`` itself, or a passing copy on ``device`` where memory management has left it elsewhere."""
    if sae.W_enc.device == device:
        return sae
    moved = copy.copy(sae)
    moved._parameters = {name: None if p is None else p.to(device) for name, p in sae._parameters.items()}
    moved._buffers = {name: None if b is None else b.to(device) for name, b in sae._buffers.items()}
    return moved
