"""Stable Diffusion in full size with seeded random weights: every shape of the real one, and none of its knowledge.

    python -m benchmarks.random_sd15 --output out/random-sd15/model.safetensors

One file with the original (LDM) names in float16, with UNet, VAE and text encoder, as ComfyUI and diffusers load them.
Beside it a folder ``tokenizer`` spells every text out letter by letter, with CLIP's numbers for the two tokens that
frame it, for a host that has no tokenizer of its own. Weights are scaled so that activations stay of the order of one.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
import tyro
from tokenizers.pre_tokenizers import ByteLevel

from saeuron.files import write_tensors, write_text

from .ldm import POSITIONS, SD15, SD21, SDXL, VOCABULARY, Size, shapes

FAMILIES = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}
BRANCH_ENDS = (".out_layers.3", ".proj_out", ".to_out.0", ".ff.net.2", ".conv2", ".out_proj", ".fc2", ".c_proj")
"""What is added to the stream it was computed from; kept small, so that the stream does not grow with depth."""


@dataclass
class RandomSd15:
    """Write a full-size Stable Diffusion checkpoint with random weights; SD 1.5 takes 2.1 GB and a minute."""

    output: Path = Path("out/random-sd15/model.safetensors")
    """The file to write. A folder `tokenizer` comes beside it."""
    family: Literal["sd15", "sd21", "sdxl"] = "sd15"
    """Of which model the names and shapes are."""
    seed: int = 0
    """Seed of the weights."""

    def run(self) -> None:
        write(self.output, FAMILIES[self.family], self.seed)
        print(self.output)


def write(path: Path, size: Size, seed: int) -> None:
    """Write the checkpoint to ``path``, and the tokenizer beside it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator) for name, shape in shapes(size).items()}
    for name in [name for name in tensors if name.endswith("embeddings.position_embedding.weight")]:
        tensors[name.replace("position_embedding.weight", "position_ids")] = torch.arange(POSITIONS)[None]
    write_tensors(path, tensors, {"format": "pt"})
    write_tokenizer(path.parent / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer without its merges: a token a letter."""
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    tokens += [f"<|unused{number}|>" for number in range(len(tokens), VOCABULARY - 2)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_text(folder / "vocab.json", json.dumps({token: number for number, token in enumerate(tokens)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    module, _, part = name.rpartition(".")
    if "embedding" in name:
        values *= 0.02
    elif len(shape) == 1:  # a bias, or the scale of a norm
        values = values * 0.05 + (part == "weight")
    else:
        values *= (0.3 if module.endswith(BRANCH_ENDS) else 1.0) / prod(shape[1:]) ** 0.5
    return values.half()


if __name__ == "__main__":
    tyro.cli(RandomSd15).run()
