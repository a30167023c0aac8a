"""SAEs as models that ComfyUI manages: loaded, counted, offloaded and cloned with the diffusion model they edit."""

import copy
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ...saeuron import SaeuronError, SparseAutoencoder
from ...saeuron.checkpoints import load_sae

KEY = "saeuron"
"""Under which a MODEL keeps its patches, and the SAEs they need."""


def manage(module: torch.nn.Module, disable_dynamic: bool = False) -> ModelPatcher:
    """``module`` as a model for ComfyUI's memory management, with the dynamic one where ComfyUI has it on."""
    newest = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    return (ModelPatcher if disable_dynamic else newest)(
        module,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def manage_sae(sae: SparseAutoencoder, path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """``sae`` of the file ``path`` as a managed model.

    ComfyUI makes a clone for another device, or without dynamic memory, from the file, so that it shares no weights.
    """
    patcher = manage(sae, disable_dynamic)
    patcher.cached_patcher_init = (_manage_again, (path, sae.fingerprint))
    return patcher


def _manage_again(path: Path, fingerprint: str, disable_dynamic: bool = False) -> ModelPatcher:
    sae = load_sae(path)
    if sae.fingerprint != fingerprint:
        raise SaeuronError(f"{path.name} has changed since it was loaded: run the workflow again")
    return manage_sae(sae, path, disable_dynamic)


def own_sae(sae: SparseAutoencoder, model: BaseModel, device: torch.device) -> SparseAutoencoder:
    """``sae``, or the one like it that ComfyUI manages with ``model``: clones on other devices have their own.

    Where neither is on ``device``, a passing copy that is.
    """
    patcher = getattr(model, "current_patcher", None)
    managed = [] if patcher is None else [other.model for other in patcher.get_additional_models_with_key(KEY)]
    if not any(other is sae for other in managed):
        sae = next((other for other in managed if other.fingerprint == sae.fingerprint), sae)
    return on_device(sae, device)


def on_device(sae: SparseAutoencoder, device: torch.device) -> SparseAutoencoder:
    """``sae`` itself, or a passing copy on ``device`` where memory management has left it elsewhere."""
    if sae.W_enc.device == device:
        return sae
    moved = copy.copy(sae)
    moved._parameters = {name: None if p is None else p.to(device) for name, p in sae._parameters.items()}
    moved._buffers = {name: None if b is None else b.to(device) for name, b in sae._buffers.items()}
    return moved
