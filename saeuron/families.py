"""Families of transformers: where the blocks of each are in either host, and where in them the picture's tokens stand.

A family more is a description more. Text, captions, padding and reference pictures go through the same blocks; what is
read and edited are the tokens of the picture being drawn, and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Grid:
    """The picture's tokens, ``height`` × ``width``, and how many tokens of ``references`` stand behind them."""

    height: int
    width: int
    references: int = 0


@dataclass(frozen=True)
class Stream:
    """How a block is given the picture's tokens, and how it returns them.

    They are the argument ``keyword``, or the one at ``position``; and ``output``, where it returns several tensors.
    Where text stands in the same tensor, ``text_first`` says whether before or behind them; they may be padded to a
    ``multiple`` of tokens.
    """

    keyword: str
    position: int = 0
    output: int = 0
    text_first: bool = False
    multiple: int = 1

    def given(self, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        return kwargs[self.keyword] if self.keyword in kwargs else args[self.position]

    def returned(self, output: Any) -> torch.Tensor:
        return output if isinstance(output, torch.Tensor) else output[self.output]

    def replaced(self, output: Any, image: torch.Tensor) -> Any:
        """``output`` with ``image`` in place of what `returned` gives of it."""
        if isinstance(output, torch.Tensor):
            return image
        return (*output[: self.output], image, *output[self.output + 1 :])

    def place(self, length: int, grid: Grid) -> slice:
        """The picture's tokens in a tensor of ``length`` tokens."""
        count = grid.height * grid.width
        padded = -(-count // self.multiple) * self.multiple
        start = length - grid.references - padded if self.text_first else 0
        return slice(start, start + count)


@dataclass(frozen=True)
class Blocks:
    """One list of blocks of a family: its name in diffusers, its name in ComfyUI, and the streams of the two."""

    diffusers: str
    comfyui: str
    in_diffusers: Stream
    in_comfyui: Stream


@dataclass(frozen=True)
class Family:
    """``diffusers`` and ``comfyui`` are the classes of the model in the two hosts.

    In diffusers, ``grid`` is what of a call tells the picture's height and width: the ids of its tokens, the shapes of
    its pictures, or the latents themselves. ``timestep`` is its unit: thousandths of 1000, or 1 less that. ``guided``
    is how the pipeline calls the model for two prompts: with the rows of both, or once for each.
    """

    name: str
    diffusers: str
    comfyui: str
    blocks: tuple[Blocks, ...]
    grid: str = "ids"
    timestep: str = "fraction"
    guided: str = "positive call first"


APART = Stream("hidden_states", output=1)
BESIDE = Stream("hidden_states", text_first=True)
SINGLE = Stream("x", text_first=True)
FLUX_DOUBLE = Blocks("transformer_blocks", "double_blocks", APART, Stream("img"))
FLUX_SINGLE = Blocks("single_transformer_blocks", "single_blocks", APART, SINGLE)
FLUX_MERGED = Blocks("single_transformer_blocks", "single_blocks", BESIDE, SINGLE)
QWEN = Blocks("transformer_blocks", "transformer_blocks", APART, APART)
LATENTS = {"grid": "latents", "timestep": "whole", "guided": "negative rows first"}

FAMILIES = (
    Family("FLUX.1", "FluxTransformer2DModel", "Flux", (FLUX_DOUBLE, FLUX_SINGLE)),
    Family("FLUX.2", "Flux2Transformer2DModel", "Flux", (FLUX_DOUBLE, FLUX_MERGED)),
    Family("Chroma", "ChromaTransformer2DModel", "Chroma", (FLUX_DOUBLE, FLUX_MERGED)),
    Family(
        "SD 3",
        "SD3Transformer2DModel",
        "OpenAISignatureMMDITWrapper",
        (Blocks("transformer_blocks", "joint_blocks", APART, Stream("x", position=1, output=1)),),
        **LATENTS,
    ),
    Family("Qwen-Image", "QwenImageTransformer2DModel", "QwenImageTransformer2DModel", (QWEN,), grid="shapes"),
    Family(
        "Z-Image",
        "ZImageTransformer2DModel",
        "NextDiT",
        (Blocks("layers", "layers", Stream("x"), Stream("x", text_first=True, multiple=32)),),
        grid="latents",
        timestep="reversed",
        guided="positive rows first",
    ),
    Family(
        "Lumina 2",
        "Lumina2Transformer2DModel",
        "NextDiT",
        (Blocks("layers", "layers", BESIDE, SINGLE),),
        grid="latents",
        timestep="reversed",
    ),
    Family(
        "PixArt",
        "PixArtTransformer2DModel",
        "PixArtMS",
        (Blocks("transformer_blocks", "blocks", Stream("hidden_states"), Stream("x")),),
        **LATENTS,
    ),
)
UNET = Stream("hidden_states")
"""Whole transformer blocks of a UNet: feature maps go in and come out, in either host."""


def family_of(model: nn.Module) -> Family | None:
    """The family of a transformer in either host; None of a UNet."""
    name, padded = type(model).__name__, getattr(model, "pad_tokens_multiple", None)
    for family in FAMILIES:
        alike = name == family.diffusers or name == family.comfyui
        if alike and (family.comfyui != "NextDiT" or name != "NextDiT" or (family.name == "Z-Image") == bool(padded)):
            return family
    return None


def width_of(model: nn.Module) -> int:
    """How many numbers a token of a transformer has."""
    config = getattr(model, "config", {})
    for name in ("inner_dim", "hidden_size", "dim"):
        width = getattr(model, name, None) or config.get(name)
        if width is not None:
            return int(width)
    return int(config["num_attention_heads"] * config["attention_head_dim"])
