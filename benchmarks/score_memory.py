"""What `score` needs in memory beside the model: a concept table filled as `score` fills it, with made-up activations.

    python -m benchmarks.score_memory

Activations come from no model, so that only the SAE and the table take memory. Neither grows with prompts. Full maps go
through at the first timestep of every batch, since they take most, and maps of one token at the others, since they take
long. The size is the paper's: 20 concepts, 100 timesteps, 16 × 16 tokens of 1 280 channels, 20 480 latents.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from saeuron import ConceptStatistics, SparseAutoencoder

from .common import begin, options, tell
from .memory import measured

LIMIT = 400  # MB (10⁶ bytes), beside the model
BATCH = 16


def main(arguments: list[str] | None = None) -> None:
    parser = options("Measure the peak memory of scoring with the paper's SAE.", "score_memory", 1)
    parser.add_argument("--concepts", type=int, default=20, help="concepts in the table")
    parser.add_argument("--steps", type=int, default=100, help="timesteps in the table")
    config = begin(parser, arguments)
    d_in, n_latents, tokens = (16, 256, 4) if config.tiny else (1280, 20480, 256)
    rows = [
        {"name": name} | measured(config, scoring, (d_in, n_latents, tokens, save))
        for name, save in (("scoring", False), ("scoring, and the table saved", True))
    ]
    lines = [[row["name"], *(f"{row[key] / 1e6:.0f}" for key in ("peak", "needed")), LIMIT] for row in rows]
    tell(config, ["what", "peak, MB", "of it the SAE's encoder, MB", "limit, MB"], lines, rows=rows)


def scoring(config, d_in: int, n_latents: int, tokens: int, save: bool) -> tuple[Callable, int]:
    def run() -> None:
        sae = SparseAutoencoder(d_in, n_latents, min(32, n_latents // 8)).requires_grad_(False)
        sae.W_enc.normal_().div_(d_in**0.5)
        sae.W_dec = None  # as `score` does
        table = fill(config, sae, tokens)
        if save:
            with tempfile.TemporaryDirectory() as folder:
                table.save(Path(folder) / "table.safetensors")

    return run, 4 * d_in * n_latents


def fill(config, sae: SparseAutoencoder, tokens: int) -> ConceptStatistics:
    names = [f"concept {n}" for n in range(config.concepts)]
    timesteps = range(1, 1000, 1000 // config.steps)[: config.steps]
    table = ConceptStatistics(dict.fromkeys(names, "object"), timesteps, sae.n_latents, "made up")
    for start in range(0, len(names), BATCH):
        part = [[name] for name in names[start : start + BATCH]]
        for timestep in timesteps:
            table.observe(sae, part, timestep, torch.randn(len(part), tokens if timestep == 1 else 1, sae.d_in))
    return table


if __name__ == "__main__":
    main()
