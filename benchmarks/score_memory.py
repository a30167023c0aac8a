"""What `score` needs in memory beside the model: a concept table filled as `score` fills it, with made-up activations.

    python -m benchmarks.score_memory

Activations come from no model, so that only the SAE and the table take memory. Neither grows with prompts. Full maps go
through at the first timestep of every batch, since they take most, and small ones at the others, since they take long.
"""

import os
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported, or it speaks of torchvision

import torch
import tyro

from saeuron import ConceptStatistics, SparseAutoencoder
from saeuron.concept_statistics import map_means

LIMIT = 400  # MB, beside the model


@dataclass
class ScoreMemory:
    """Measure the peak memory of scoring 20 concepts at 100 timesteps with the paper's SAE."""

    concepts: int = 20
    """Concepts in the table."""
    prompts: int = 1
    """Prompts a concept. The paper's 80 take the same memory, and hours on two cores."""
    steps: int = 100
    """Timesteps in the table."""
    tokens: int = 256
    """Tokens of a full map: 16 × 16 at 512 pixels."""
    few: int = 1
    """Tokens of the maps at the other timesteps."""
    batch: int = 16
    """Images at once."""
    d_in: int = 1280
    """Width of the activations."""
    n_latents: int = 20480
    """Latents of the SAE."""
    k: int = 32
    """Active latents a token."""

    def run(self) -> None:
        print("| | MB |\n|---|---|")
        for name, megabytes in measure(self).items():
            print(f"| {name} | {megabytes:.0f} |")


def measure(config: ScoreMemory) -> dict[str, float]:
    """Peak resident memory in MB (10⁶ bytes): of the SAE, and what scoring and saving the table add to it."""
    generator = torch.Generator().manual_seed(0)
    map_means(random_sae(64, 256, 4, generator), torch.randn(1, 8, 64))  # what torch itself takes when it first works
    before = resident()
    sae = random_sae(config.d_in, config.n_latents, config.k, generator)
    sae.W_dec = None  # as `score` does
    with_sae = resident()
    table = fill(config, sae, generator)
    after = peak()
    with tempfile.TemporaryDirectory() as folder:
        table.save(Path(folder) / "table.safetensors")
    return {
        "the SAE's encoder": with_sae - before,
        "scoring, beside it": after - with_sae,
        "with the table saved": peak() - with_sae,
        "all of it, beside the model": peak() - before,
        "limit": LIMIT,
    }


def random_sae(d_in: int, n_latents: int, k: int, generator: torch.Generator) -> SparseAutoencoder:
    sae = SparseAutoencoder(d_in, n_latents, k).requires_grad_(False)
    sae.W_enc.normal_(generator=generator).div_(d_in**0.5)
    return sae


def fill(config: ScoreMemory, sae: SparseAutoencoder, generator: torch.Generator) -> ConceptStatistics:
    names = [f"concept {n}" for n in range(config.concepts)]
    timesteps = range(1, 1000, 1000 // config.steps)[: config.steps]
    table = ConceptStatistics(dict.fromkeys(names, "object"), timesteps, sae.n_latents, "made up")
    shown = names * config.prompts
    for start in range(0, len(shown), config.batch):
        part = [[name] for name in shown[start : start + config.batch]]
        for timestep in timesteps:
            tokens = config.tokens if timestep == timesteps[0] else config.few
            activations = torch.randn(len(part), tokens, config.d_in, generator=generator)
            table.observe(sae, part, timestep, activations)
    return table


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    tyro.cli(ScoreMemory).run()
