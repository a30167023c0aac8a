"""LoRAs, added to a model's weights for good: ``W + (alpha / rank) · up · down``, whoever wrote the file."""

import re
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

from saeuron import SaeuronError

KEY = re.compile(
    r"(?P<part>unet|text_encoder|text_encoder_2)\.(?P<module>.+?)"
    r"(?:\.processor\.(?P<attention>to_\w+)_lora|\.lora_linear_layer|\.lora)?\.(?P<end>down|up|lora_A|lora_B)\.weight"
)
"""A weight of a LoRA, as diffusers names it once it has read a file of any convention."""


@torch.no_grad()
def add_lora(pipeline, path: Path) -> None:
    """Add the LoRA at ``path`` to the weights of ``pipeline``; SaeuronError where it is none, or of another model."""
    if not path.exists():
        raise SaeuronError(f"--lora {path} does not exist")
    if not hasattr(pipeline, "unet"):
        raise SaeuronError("--lora adds to a UNet, and this model is a transformer: give a folder that holds it merged")
    reader = StableDiffusionXLLoraLoaderMixin if hasattr(pipeline, "text_encoder_2") else StableDiffusionLoraLoaderMixin
    try:
        state, alphas = reader.lora_state_dict(str(path), unet_config=pipeline.unet.config, local_files_only=True)
    except Exception as error:  # diffusers raises many kinds; all of them mean the same to the user
        raise SaeuronError(f"--lora {path} could not be read as a LoRA: {' '.join(str(error).split())}") from error
    pairs: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, weight in state.items():
        found = KEY.fullmatch(key)
        if found is None:
            raise SaeuronError(f"--lora {path} holds {key}, which is not supported: only pairs of up and down are")
        attention = {None: "", "to_out": ".to_out.0"}.get(found["attention"], f".{found['attention']}")
        pair = pairs.setdefault((found["part"], found["module"] + attention), {"alpha": weight.new_tensor(0.0)})
        pair["down" if found["end"] in ("down", "lora_A") else "up"] = weight
        if alphas and f"{key}.alpha" in alphas:
            pair["alpha"] = weight.new_tensor(float(alphas[f"{key}.alpha"]))
    for (part, name), pair in pairs.items():
        try:
            target = getattr(pipeline, part).get_submodule(name).weight
            up, down = (pair[end].to(torch.float32).flatten(1) for end in ("up", "down"))
            alpha = float(pair["alpha"]) or len(down)
            change = (up @ down).reshape(target.shape)
        except (AttributeError, KeyError, RuntimeError) as error:
            raise SaeuronError(f"--lora {path} does not fit this model: {part}.{name}: {error}") from None
        target += (alpha / len(down) * change).to(target)
