"""What a workflow's MODEL will be, read from the header of its checkpoint before anything is loaded."""

import json
import struct
from functools import cache, lru_cache
from pathlib import Path

import comfy.model_detection
import folder_paths
import torch

from ...saeuron import SaeuronError
from . import files, headers, workflow
from .blocks import check_known, check_same_width, widths_of

TINYCANVAS = Path(__file__).parents[2] / "tinycanvas" / "weights" / "unet" / "diffusion_pytorch_model.safetensors"
LOADERS = {
    "CheckpointLoaderSimple": ("checkpoints", "ckpt_name"),
    "CheckpointLoader": ("checkpoints", "ckpt_name"),
    "unCLIPCheckpointLoader": ("checkpoints", "ckpt_name"),
    "UNETLoader": ("diffusion_models", "unet_name"),
}
"""Nodes that load a model, with the folder of its file, and the widget that names it."""
LARGEST_HEADER = 64 * 2**20


def check_place(_: object, node_id: str | None) -> None:
    """Raise SaeuronError where the SAE of a node does not fit its model, as far as their files tell.

    The node has inputs ``model`` and ``sae``.
    """
    loader, blocks = loader_of(node_id), blocks_of(node_id)
    if loader is None or blocks is None:
        return
    name, typed = loader["sae_name"], loader.get("hookpoint", "")
    try:
        hookpoint, _ = headers.place_of(name, typed if isinstance(typed, str) else "")
    except SaeuronError:
        return  # which is told on the loader
    check_known(hookpoint.name, blocks)
    check_same_width(Path(name).name, headers.sae_of(name).d_in, blocks[hookpoint.name], hookpoint)


def check_same_sae(node_id: str | None) -> None:
    """Raise SaeuronError where a node's concepts were chosen with another SAE than its own."""
    selector = workflow.source(node_id, "concepts")
    own, other = loader_of(node_id), loader_of(selector)
    if own and other and headers.sae_of(own["sae_name"]) != headers.sae_of(other["sae_name"]):
        raise SaeuronError(
            f"the concepts are chosen with {Path(other['sae_name']).name} and the SAE here is "
            f"{Path(own['sae_name']).name}: connect one SAE to both"
        )


def loader_of(node_id: str | None) -> dict | None:
    """The inputs of the SAE Loader that a node's SAE comes from, if its file can be read."""
    for _, kind, given in workflow.upstream(node_id, "sae"):
        if kind == "SAeUronLoader" and isinstance(given.get("sae_name"), str):
            return given if workflow.told(headers.sae_of, given["sae_name"]) is True else None
    return None


def blocks_of(node_id: str | None) -> dict[str, int] | None:
    """Width by hookpoint of the model that is to come through ``model``; None where that cannot be told."""
    for _, kind, given in workflow.upstream(node_id, "model"):
        if kind == "SAeUronTinyCanvas":
            return _tinycanvas()
        folder, widget = LOADERS.get(kind, (None, None))
        if folder is not None:
            file = folder_paths.get_full_path(folder, str(given.get(widget)))
            return None if file is None else _blocks(*files.stamp(Path(file)))
    return None


@cache
def _tinycanvas() -> dict[str, int]:
    end = ".norm.weight"
    shapes = _shapes(TINYCANVAS)
    return {f"unet.{n[: -len(end)]}": s[0] for n, s in shapes.items() if n.endswith(end) and ".attentions." in n}


@lru_cache(maxsize=16)
def _blocks(stamp: tuple[str, int, int]) -> dict[str, int] | None:
    """Of a file that is no checkpoint of a model we know, None: whoever loads it says so."""
    try:
        state = {name: torch.empty(shape, device="meta") for name, shape in _shapes(Path(stamp[0])).items()}
        prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
        config = comfy.model_detection.model_config_from_unet(state, prefix)
        return widths_of(config.get_model({}, device=torch.device("meta")))
    except Exception:  # ComfyUI guesses by trying, and a check must not be what stops a workflow
        return None


def _shapes(path: Path) -> dict[str, list[int]]:
    """Name → shape of the tensors of a safetensors file, whose bytes are left unread."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size)) if size <= LARGEST_HEADER else {}
    return {name: about["shape"] for name, about in header.items() if name != "__metadata__"}
