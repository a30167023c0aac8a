"""The blocks of a ComfyUI model by the names that diffusers gives them."""

import comfy.model_sampling
import comfy.utils
import torch
from comfy.model_base import BaseModel

from ...saeuron import Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.errors import nearest
from ...saeuron.families import UNET, Grid, Stream, family_of, width_of


def block_of(model: BaseModel, hookpoint: Hookpoint) -> torch.nn.Module:
    """The block at ``hookpoint``; raises SaeuronError with the nearest names."""
    root = root_of(model)
    blocks = _transformer_blocks(root) if family_of(root) else _unet_blocks(model)
    if hookpoint.name not in blocks:
        raise SaeuronError(
            f"hookpoint {hookpoint.name!r} is not in this model; the nearest are {nearest(hookpoint.name, blocks)}"
        )
    return root.get_submodule(blocks[hookpoint.name])


def root_of(model: BaseModel) -> torch.nn.Module:
    return getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)


def stream_of(model: BaseModel, hookpoint: Hookpoint) -> Stream:
    """How the block at ``hookpoint`` is given the picture's tokens and returns them."""
    family, kind = family_of(root_of(model)), hookpoint.name.split(".")[1]
    return next(b.in_comfyui for b in family.blocks if b.diffusers == kind) if family else UNET


def token_grid(model: BaseModel, x: torch.Tensor, options: dict) -> Grid | None:
    """The grid of the picture's tokens for latents ``x``, in a block that is told ``options``; None of a UNet."""
    root = root_of(model)
    if family_of(root) is None:
        return None
    patch = root.patch_size if isinstance(root.patch_size, int) else root.patch_size[-1]
    height, width = (-(-side // patch) for side in x.shape[-2:])
    return Grid(height, width, sum(options.get("reference_image_num_tokens", ())))


def timestep_of(sampling: object, sigma: torch.Tensor) -> torch.Tensor:
    """The timestep 0…1000 of ``sigma``. Flow models count it in units of their own, some from 0 to 1."""
    return sigma * 1000 if isinstance(sampling, comfy.model_sampling.CONST) else sampling.timestep(sigma)


def sigma_of(sampling: object, timestep: torch.Tensor) -> torch.Tensor:
    """The sigma of ``timestep`` 0…1000."""
    return timestep / 1000 if isinstance(sampling, comfy.model_sampling.CONST) else sampling.sigma(timestep)


def _transformer_blocks(root: torch.nn.Module) -> dict[str, str]:
    lists = family_of(root).blocks
    return {
        f"transformer.{b.diffusers}.{n}": f"{b.comfyui}.{n}"
        for b in lists
        for n in range(len(getattr(root, b.comfyui)))
    }


def _unet_blocks(model: BaseModel) -> dict[str, str]:
    native = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    end = ".norm.weight"
    blocks = {f"unet.{n[: -len(end)]}": m[: -len(end)] for n, m in native.items() if n.endswith(end)}
    return {name: path for name, path in blocks.items() if ".attentions." in name}


def check_width(sae: SparseAutoencoder, model: BaseModel, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless ``sae`` reads tokens as wide as those at ``hookpoint``, which has to be there."""
    block, root = block_of(model, hookpoint), root_of(model)
    width = width_of(root) if family_of(root) else getattr(block, "in_channels", sae.d_in)
    if width != sae.d_in:
        raise SaeuronError(
            f"this SAE reads tokens of width {sae.d_in} and {hookpoint.name} of this model gives {width}: "
            "it belongs to another model or another block"
        )
