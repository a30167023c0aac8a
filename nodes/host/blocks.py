"""The blocks of a ComfyUI model by the names that diffusers gives them."""

from collections.abc import Iterable

import comfy.utils
import torch
from comfy.model_base import BaseModel

from ...saeuron import Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.errors import nearest


def block_of(model: BaseModel, hookpoint: Hookpoint) -> torch.nn.Module:
    """The block at ``hookpoint``; raises SaeuronError with the nearest names."""
    root = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
    blocks = native_blocks(model.model_config.unet_config)
    if not blocks:
        raise SaeuronError(f"models of the family {type(model.model_config).__name__} are not supported yet")
    check_known(hookpoint.name, blocks)
    return root.get_submodule(blocks[hookpoint.name])


def native_blocks(unet_config: dict) -> dict[str, str]:
    """Diffusers' name of every block → ComfyUI's, none where the model is no UNet."""
    end = ".norm.weight"
    native = comfy.utils.unet_to_diffusers(unet_config)
    return {
        f"unet.{n[: -len(end)]}": m[: -len(end)] for n, m in native.items() if n.endswith(end) and ".attentions." in n
    }


def check_known(name: str, blocks: Iterable[str]) -> None:
    """Raise SaeuronError with the nearest names unless ``name`` is one of ``blocks``."""
    if name not in blocks:
        raise SaeuronError(f"hookpoint {name!r} is not in this model; the nearest are {nearest(name, blocks, 3)}")


def check_width(sae: SparseAutoencoder, block: torch.nn.Module, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless ``sae`` reads tokens as wide as ``block``'s."""
    check_same_width("this SAE", sae.d_in, getattr(block, "in_channels", sae.d_in), hookpoint)


def check_same_width(sae_name: str, d_in: int, width: int, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless tokens of ``width`` are what the SAE reads."""
    if width != d_in:
        raise SaeuronError(
            f"{sae_name} reads tokens of width {d_in} and {hookpoint.name} of this model gives {width}: "
            "it belongs to another model or another block"
        )
