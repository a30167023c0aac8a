"""Diffusion models by name: ``tinycanvas``, a diffusers folder, or a single-file checkpoint.

Folders and files of SD 1.x, SD 2.x and SDXL are read, and folders of pipelines around a transformer.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from transformers import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from saeuron import SaeuronError, SparseAutoencoder
from saeuron.errors import nearest
from saeuron.files import read_json, write_json

from ..common.options import Model
from ..common.processes import check_device, own_device
from .denoiser import denoiser
from .lora import add_lora
from .single_file import UNET, configs, family

# What a command prints is its own: no bars of parts that load in a moment, no advice to programmers.
disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()
diffusers.utils.logging.set_verbosity_error()

Pipeline = DiffusionPipeline
PIPELINES = {
    "StableDiffusionPipeline": (StableDiffusionPipeline, {"requires_safety_checker": False}),
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, {"add_watermarker": False}),
}
TRANSFORMERS = (
    "ChromaPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "FluxPipeline",
    "Lumina2Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "QwenImagePipeline",
    "StableDiffusion3Pipeline",
    "ZImagePipeline",
)
"""Pipelines around a transformer, which need no options of their own."""
CLIP_ON_THE_HUB = "openai/clip-vit-large-patch14"

SAMPLERS = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
FLOW_SAMPLERS = {"ddim": "FlowMatchEulerDiscreteScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}
"""Of a flow model DDIM and Euler's method are one."""


def load_model(model: str, device: str = "cpu", sampler: str = "ddim", lora: Path | None = None) -> Pipeline:
    """Load a pipeline onto ``device``: float16 on a GPU, float32 on the CPU; ``lora`` is added to its weights.

    Raises SaeuronError where nothing is at the path, or what is there is no model that is supported.
    """
    if sampler not in SAMPLERS:
        raise SaeuronError(f"sampler {sampler!r} is unknown; the nearest are {nearest(sampler, SAMPLERS)}")
    check_device(device)
    if model == "tinycanvas":
        from tinycanvas.model import load_pipeline

        pipeline = load_pipeline()
    else:
        pipeline = _load(Path(model), torch.float32 if device == "cpu" else torch.float16)
    if lora is not None:
        add_lora(pipeline, lora)
    pipeline.scheduler = _scheduler(pipeline, sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def open_model(options: Model) -> Pipeline:
    """The model that a command's options name, on this process's device."""
    return load_model(options.model, own_device(options.device), getattr(options, "sampler", "ddim"), options.lora)


def identity(model: str, pipeline: Pipeline) -> str:
    """``model`` by its name without a path, and a hash of the model's weights: ``sd-v1-5@3f2a9c81d0e4``.

    Another model of the same name has another hash. Of each tensor a few values are looked at: training moves them all.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(denoiser(pipeline).state_dict().items()):
        first = weight.detach().reshape(-1)[:16].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {first.tolist()}".encode())
    return f"{Path(model).stem}@{digest.hexdigest()[:12]}"


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def variant(pipeline: Pipeline, sampler: str | None = None, unet: UNet2DConditionModel | None = None) -> Pipeline:
    """A pipeline that shares all with ``pipeline`` but its sampler, its UNet, or both."""
    parts = dict(pipeline.components)
    parts |= {"scheduler": _scheduler(pipeline, sampler)} if sampler else {}
    parts |= {"unet": unet} if unet is not None else {}
    kind, options = _pipeline(type(pipeline).__name__)
    made = kind(**parts, **options)
    made.set_progress_bar_config(disable=True)
    return made


def from_image(pipeline: Pipeline) -> DiffusionPipeline:
    """A pipeline that shares all with ``pipeline`` and starts from a picture."""
    made = AutoPipelineForImage2Image.from_pipe(pipeline)
    made.set_progress_bar_config(disable=True)
    return made


def _scheduler(pipeline: Pipeline, sampler: str):
    name, options = SAMPLERS[sampler]
    if type(pipeline.scheduler).__name__.startswith("FlowMatch"):
        if sampler not in FLOW_SAMPLERS:
            raise SaeuronError(f"sampler {sampler!r} is none of a flow model; take {' or '.join(FLOW_SAMPLERS)}")
        name = FLOW_SAMPLERS[sampler]
    return getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)


def check_fits(sae: SparseAutoencoder, pipeline: Pipeline) -> None:
    """Raise SaeuronError where ``sae`` names no hookpoint, or one the model lacks or has in another width."""
    if sae.hookpoint is None:
        raise SaeuronError("the SAE does not say where it reads: give --hookpoint")
    try:
        width = sae.hookpoint.width(denoiser(pipeline))
    except SaeuronError as error:
        which = f", {sae.base_model}," if sae.base_model else ""
        raise SaeuronError(f"{error}; give the model that the SAE was made for{which} as --model") from None
    sae.check_width(torch.empty(0, width))


def fit(sae: SparseAutoencoder, pipeline: Pipeline) -> None:
    """Put ``sae`` on the device of ``pipeline``; raises SaeuronError as `check_fits` does."""
    check_fits(sae, pipeline)
    sae.to(pipeline.device)


def _load(path: Path, dtype: torch.dtype) -> Pipeline:
    if not path.exists():
        raise SaeuronError(f"model {path} does not exist; give `tinycanvas`, a diffusers folder or a .safetensors file")
    try:
        pipeline = _load_folder(path, dtype) if path.is_dir() else _load_file(path, dtype)
    except Exception as error:  # diffusers raises many kinds; all of them mean the same to the user
        raise SaeuronError(f"model {path} could not be loaded: {_reason(error)}") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def _load_folder(path: Path, dtype: torch.dtype) -> Pipeline:
    if not (path / "model_index.json").exists():
        raise SaeuronError("it has no model_index.json, so it is no diffusers folder")
    index = read_json(path / "model_index.json")
    kind, options = _pipeline(str(index.get("_class_name")))
    options = {name: None for name, part in index.items() if part == [None, None]} | options  # SD 3 without its T5
    return kind.from_pretrained(path, dtype=dtype, local_files_only=True, **(_unchecked(kind) | options))


def _load_file(path: Path, dtype: torch.dtype) -> Pipeline:
    """By diffusers' own conversion, with the configs that it would fetch from the hub worked out of the file."""
    if path.suffix != ".safetensors":
        raise SaeuronError("it is not a .safetensors file; convert it to one, or give a diffusers folder")
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        parts = configs(shapes, _prediction(file, names, family(shapes)))
    index = parts["model_index"]
    tokenizers = {"tokenizer": _tokenizer(path, "<|endoftext|>" if family(shapes) != "SD 2" else "!")}
    if "tokenizer_2" in index:
        tokenizers["tokenizer_2"] = _tokenizer(path, "!")
    kind, options = _pipeline(index["_class_name"])
    with tempfile.TemporaryDirectory() as folder:
        for name, config in parts.items():
            inside = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
            write_json(Path(folder) / inside.get(name, f"{name}/config.json"), config)
        options = {"config": folder, "dtype": dtype, "local_files_only": True} | options
        return kind.from_single_file(str(path), **options, **_unchecked(kind), **tokenizers)


def _pipeline(name: str) -> tuple[type[Pipeline], dict]:
    known = [*PIPELINES, *TRANSFORMERS]
    if name not in known:
        raise SaeuronError(f"a {name} is not supported yet; the nearest that are: {nearest(name, known)}")
    return PIPELINES.get(name) or (getattr(diffusers, name), {})


def _unchecked(kind: type[Pipeline]) -> dict:
    return {"safety_checker": None} if kind is StableDiffusionPipeline else {}


def _prediction(file: safe_open, names: set[str], kind: str) -> str:
    """What the UNet predicts. Nothing in a file says so but for SDXL, where a marker may; of SD 2 it is a guess.

    SD 2's two public models differ in how far this norm moved from its start, and ComfyUI tells them apart by it.
    """
    norm = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
    moved = kind == "SD 2" and norm in names and float(file.get_tensor(norm).float().std(correction=0)) > 0.09
    return "v_prediction" if moved or "v_pred" in names else "epsilon"


def _tokenizer(path: Path, pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer, which no checkpoint holds: from beside the file, from a ComfyUI, or from the hub's cache."""
    root = Path(__file__).resolve().parents[2]
    comfy = [os.environ.get("COMFYUI_PATH"), root.parents[1], Path.home() / "comfy" / "ComfyUI"]
    folders = [path.parent / "tokenizer", *(Path(place) / "comfy" / "sd1_tokenizer" for place in comfy if place)]
    options = {"model_max_length": 77, "pad_token": pad}
    for folder in folders:
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return CLIPTokenizer.from_pretrained(folder, **options)
    try:
        return CLIPTokenizer.from_pretrained(CLIP_ON_THE_HUB, **options)
    except Exception as error:  # whatever kept it from the hub
        raise SaeuronError(
            f"CLIP's tokenizer was not found; put a folder `tokenizer` with the vocab.json and merges.txt of "
            f"{CLIP_ON_THE_HUB} beside the file, or set COMFYUI_PATH"
        ) from error
