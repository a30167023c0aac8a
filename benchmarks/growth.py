"""How costs grow: edits with concepts, latents and tokens, training with latents and batch, a table with timesteps.

    python -m benchmarks.growth

Each line doubles or quadruples one number and leaves the others at their middle values. The last column is how many
times the first value's time it takes.
"""

import torch

from saeuron import Ablate, ConceptStatistics
from saeuron.concept_table import WholeTable

from .common import begin, in_turns, options, shown, spread, tell
from .edits import FLOOR, make_tokens, random_sae, selection
from .trainers import Ours

GROWS = {
    "edit: concepts": (1, 4, 16, 48),
    "edit: latents": (5120, 20480, 81920),
    "edit: tokens": (128, 512, 2048),
    "training: latents": (1024, 4096, 16384),
    "training: batch": (512, 2048, 8192),
    "table and selection: timesteps": (25, 50, 100),
}
TINY = {"latents": (256, 512), "concepts": (1, 4), "tokens": (8, 32), "batch": (16, 32), "timesteps": (2, 4)}


def main(arguments: list[str] | None = None) -> None:
    parser = options("Time edits, training and tables as one number grows.", "growth", 3)
    parser.add_argument("--only", nargs="+", default=list(GROWS), choices=list(GROWS), help="what grows")
    config = begin(parser, arguments)
    rows, lines = [], []
    for name in config.only:
        values = TINY[name.split()[-1]] if config.tiny else GROWS[name]
        what, grows = name.split(": ")
        taken = in_turns(config, {str(value): WORKS[what](config, grows, value) for value in values})
        for value in values:
            row = {"name": name, "value": value} | spread(taken[str(value)])
            row["times_first"] = row["ms"] / spread(taken[str(values[0])])["ms"]
            rows.append(row)
            lines.append([name, f"{value:,}", shown(row), f"{row['times_first']:.2f}"])
    tell(config, ["what grows", "value", "ms (quartiles)", "× the first"], lines, rows=rows)


def edit(config, grows: str, value: int):
    size = {"concepts": 1, "latents": 256 if config.tiny else 20480, "tokens": 32 if config.tiny else 512}
    size |= {grows: value}
    sae = random_sae(32 if config.tiny else 640, size["latents"], 4 if config.tiny else 32, config.device)
    latents = [sae.n_latents - 1 - n for n in range(size["concepts"])]
    tokens = make_tokens(sae, 2, round((size["tokens"] / 2) ** 0.5), {latents[0]: 0.5})
    own = Ablate(sae, selection(sae, latents, FLOOR))
    return lambda: own(tokens, 500)


def training(config, grows: str, value: int):
    size = {"latents": 256 if config.tiny else 4096, "batch": 32 if config.tiny else 2048} | {grows: value}
    d_in = 16 if config.tiny else 320
    trainer = Ours(d_in, size["latents"], 4 if config.tiny else 32, config.device, "batch_topk", True)
    tokens = torch.randn(size["batch"], d_in, device=config.device)
    return lambda: trainer.step(tokens)


def table(config, _grows: str, value: int):
    kinds = {f"concept {n}": "style" for n in range(20)}
    statistics = ConceptStatistics(kinds, range(value), 256 if config.tiny else 20480, "0" * 16)
    statistics.sums = torch.rand(statistics.sums.shape, generator=torch.Generator().manual_seed(0))
    statistics.counts += 1
    return lambda: WholeTable(statistics).select("concept 3", 2, -1.0)


WORKS = {"edit": edit, "training": training, "table and selection": table}


if __name__ == "__main__":
    main()
