"""Which model it is: a name for the weights, so that what two checkpoints give is never mixed unseen."""

import hashlib
from collections.abc import Iterator

import torch
from comfy.model_patcher import ModelPatcher

HEAD = 16
"""Values of each tensor that are looked at: training moves all of a tensor, so its first ones tell as much."""


def identity(model: ModelPatcher) -> str:
    """The model's family and a hash of its weights, ``SDXL 3f2a9c81d0e4``; a second hash tells what LoRAs add to them.

    It is the same in every run and on every device, and reads a few values of every tensor only.
    """
    root = getattr(model.model.diffusion_model, "_orig_mod", model.model.diffusion_model)
    names = sorted(root.named_parameters(), key=lambda named: named[0])
    # What is loaded may carry patches already; ComfyUI keeps the weights as they were in `backup`.
    own = [(name, _original(model, f"diffusion_model.{name}", weight)) for name, weight in names]
    name = f"{type(model.model.model_config).__name__} {_digest(own)}"
    patches = [(key, [(patch[0], patch[2], patch[1]) for patch in model.patches[key]]) for key in sorted(model.patches)]
    return f"{name} patched {_digest(patches)}" if patches else name


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
    elif hasattr(content, "weights"):
        yield from _parts(content.weights)
    else:
        yield repr(content).encode() if isinstance(content, str | int | float) else b"?"
