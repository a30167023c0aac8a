"""The blocks of a ComfyUI model by the names that diffusers gives them."""

import comfy.utils
import torch
from comfy.model_base import BaseModel

from ...saeuron import Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.errors import nearest


def block_of(model: BaseModel, hookpoint: Hookpoint) -> torch.nn.Module:
    """The block at ``hookpoint``; raises SaeuronError with the nearest names."""
    root = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
    native = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    end = ".norm.weight"
    blocks = {f"unet.{n[: -len(end)]}": m[: -len(end)] for n, m in native.items() if n.endswith(end)}
    blocks = {name: path for name, path in blocks.items() if ".attentions." in name}
    if hookpoint.name not in blocks:
        raise SaeuronError(
            f"hookpoint {hookpoint.name!r} is not in this model; the nearest are {nearest(hookpoint.name, blocks)}"
        )
    return root.get_submodule(blocks[hookpoint.name])


def check_width(sae: SparseAutoencoder, block: torch.nn.Module, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless ``sae`` reads tokens as wide as ``block``'s."""
    width = getattr(block, "in_channels", sae.d_in)
    if width != sae.d_in:
        raise SaeuronError(
            f"this SAE reads tokens of width {sae.d_in} and {hookpoint.name} of this model gives {width}: "
            "it belongs to another model or another block"
        )
