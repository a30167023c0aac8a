"""Which model it is: a name for the weights, so that what two checkpoints give is never mixed unseen."""

import hashlib
from collections.abc import Iterator

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

HEAD = 16
"""Values of each tensor that are looked at: training moves all of a tensor, so its first ones tell as much."""


def identity(model: ModelPatcher) -> str:
    """The model's family and a hash of its weights, ``SDXL 3f2a9c81d0e4``; a second hash tells what LoRAs add to them.

    It is the same in every run and on every device, and reads a few values of every tensor only.
    """
    root = getattr(model.model.diffusion_model, "_orig_mod", model.model.diffusion_model)
    return f"{type(model.model.model_config).__name__} {_hashes(model, root, 'diffusion_model.')}"


def text_identity(clip: comfy.sd.CLIP) -> str:
    """The same of a text encoder, and at which layer it is left."""
    # A projection that a checkpoint does not bring is whatever the memory held, and is not used.
    return f"{_hashes(clip.patcher, clip.cond_stage_model, '')} layer {clip.layer_idx}"


def surroundings(model: ModelPatcher) -> str:
    """A hash of what else changes a model's output: replaced parts, patches of attention, guidance of other nodes.

    Functions count by name and by the numbers they enclose.
    """
    return _digest([model.object_patches, model.model_options, model.wrappers])


def _hashes(patcher: ModelPatcher, root: torch.nn.Module, prefix: str) -> str:
    names = sorted(name for name, _ in root.named_parameters() if "text_projection" not in name)
    # What is loaded may carry patches already; ComfyUI keeps the weights as they were in `backup`.
    own = [(name, _original(patcher, prefix + name, root.get_parameter(name))) for name in names]
    patches = [(key, [(p[0], p[2], p[1]) for p in patcher.patches[key]]) for key in sorted(patcher.patches)]
    return f"{_digest(own)} patched {_digest(patches)}" if patches else _digest(own)


def _original(model: ModelPatcher, key: str, weight: torch.Tensor) -> torch.Tensor:
    return model.backup[key].weight if key in model.backup else weight


def _digest(content: object) -> str:
    digest = hashlib.sha256()
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()[:12]


def _parts(content: object) -> Iterator[bytes]:
    """``content`` as bytes: a tensor as its shape and first values, an adapter as its weights, all else as written."""
    if isinstance(content, torch.Tensor):
        yield str(tuple(content.shape)).encode()
        yield content.detach().reshape(-1)[:HEAD].float().cpu().numpy().tobytes()
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _parts(part)
    elif isinstance(content, dict):
        for name in sorted(content, key=str):
            yield from _parts((str(name), content[name]))
    elif hasattr(content, "weights"):
        yield from _parts(content.weights)
    elif hasattr(content, "__code__"):
        cells = [cell.cell_contents for cell in content.__closure__ or ()]
        yield content.__qualname__.encode()
        yield from _parts([cell for cell in cells if isinstance(cell, str | int | float | torch.Tensor)])
    else:
        yield repr(content).encode() if isinstance(content, str | int | float) else type(content).__name__.encode()
