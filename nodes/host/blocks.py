"""The blocks of a ComfyUI model by the names that diffusers gives them."""

from collections.abc import Iterable

import comfy.model_sampling
import comfy.utils
import torch
from comfy.model_base import BaseModel

from ...saeuron import Hookpoint, SaeuronError, SparseAutoencoder
from ...saeuron.errors import nearest
from ...saeuron.families import UNET, Family, Grid, Stream, family_of, width_of


def block_of(model: BaseModel, hookpoint: Hookpoint) -> torch.nn.Module:
    """The block at ``hookpoint``; raises SaeuronError with the nearest names."""
    paths = _paths(model)
    check_known(hookpoint.name, paths)
    return root_of(model).get_submodule(paths[hookpoint.name])


def widths_of(model: BaseModel) -> dict[str, int]:
    """Every hookpoint of ``model`` and the width of the tokens there."""
    root = root_of(model)
    return {name: _width(root, root.get_submodule(path)) for name, path in _paths(model).items()}


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


def check_known(name: str, known: Iterable[str]) -> None:
    """Raise SaeuronError with the nearest names unless ``name`` is one of those ``known``."""
    if name not in known:
        raise SaeuronError(f"hookpoint {name!r} is not in this model; the nearest are {nearest(name, known, 3)}")


def check_width(sae: SparseAutoencoder, model: BaseModel, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless ``sae`` reads tokens as wide as those at ``hookpoint``, which has to be there."""
    width = _width(root_of(model), block_of(model, hookpoint))
    check_same_width("this SAE", sae.d_in, width, hookpoint)


def check_same_width(sae_name: str, d_in: int, width: int, hookpoint: Hookpoint) -> None:
    """Raise SaeuronError unless tokens of ``width`` are what the SAE reads."""
    if width != d_in:
        raise SaeuronError(
            f"{sae_name} reads tokens of width {d_in} and {hookpoint.name} of this model gives {width}: "
            "it belongs to another model or another block"
        )


def _width(root: torch.nn.Module, block: torch.nn.Module) -> int:
    return width_of(root) if family_of(root) else block.in_channels


def _paths(model: BaseModel) -> dict[str, str]:
    """Diffusers' name of every block → ComfyUI's."""
    root, config = root_of(model), model.model_config
    family = family_of(root)
    paths = _transformer_paths(family, root) if family else _unet_paths(config.unet_config)
    if not paths:
        raise SaeuronError(f"models of the family {type(config).__name__} are not supported yet")
    return paths


def _transformer_paths(family: Family, root: torch.nn.Module) -> dict[str, str]:
    return {
        f"transformer.{blocks.diffusers}.{n}": f"{blocks.comfyui}.{n}"
        for blocks in family.blocks
        for n in range(len(getattr(root, blocks.comfyui)))
    }


def _unet_paths(config: dict) -> dict[str, str]:
    end, native = ".norm.weight", comfy.utils.unet_to_diffusers(config)
    return {
        f"unet.{n[: -len(end)]}": m[: -len(end)] for n, m in native.items() if n.endswith(end) and ".attentions." in n
    }
