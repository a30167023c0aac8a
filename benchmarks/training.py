"""Training an SAE: ours and its peers, step by step in turns, on the same tokens.

    python -m benchmarks.training

Peers that are not installed say so; `make test-peers` makes an environment that has them, and
`.venv-peers/bin/python -m benchmarks.training` uses it. Tokens are sparse sums of the rows of a random dictionary, so
that there is something to find. The fraction of variance unexplained (FVU) is that of tokens none was trained on: after
as many tokens for each, and after as much time, for which the faster ones go on until the slowest was done.
"""

import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from .common import begin, options, shown, spread, tell, timed
from .trainers import LR, TRAINERS, Ours

SIZES = {"128/1024": (128, 1024), "320/5120": (320, 5120), "1280/20480": (1280, 20480)}


def main(arguments: list[str] | None = None) -> None:
    parser = options("Time training steps of ours and of its peers in turns.", "training", 5)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES), help="d_in/latents")
    parser.add_argument("--only", nargs="+", default=list(TRAINERS), choices=list(TRAINERS), help="trainers")
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--k", type=int, default=32, help="active latents a token")
    parser.add_argument("--equal-time", action="store_true", help="go on until each had the time of the slowest")
    parser.add_argument("--repository", help="folder of the SAeUron repository, to time its own trainer")
    config = begin(parser, arguments)
    warnings.simplefilter("ignore")
    if config.repository:
        sys.path.append(config.repository)
    if config.tiny:
        config.batch, config.k = 64, 4
    sizes = {"16/64": (16, 64)} if config.tiny else {name: SIZES[name] for name in config.sizes}
    rows, phases = [], {}
    for name, (d_in, n_latents) in sizes.items():
        found, phases[name] = measure(config, d_in, n_latents)
        rows += [{"size": name} | row for row in found]
    header = ["size", "trainer", "version", "ms a step (quartiles)", "tokens/s", "× best peer", "FVU, equal tokens"]
    lines = [[row["size"], row["trainer"], *_cells(row)] for row in rows]
    header += ["FVU, equal time"] if config.equal_time else []
    told = {"batch": config.batch, "k": config.k, "lr": LR, "rows": rows, "phases_ms": phases}
    tell(config, header, lines, **told)
    for size, trainers in phases.items():
        for name, taken in trainers.items():
            print(f"{size} {name}: " + ", ".join(f"{part} {ms:.1f} ms" for part, ms in taken.items()))


def _cells(row: dict) -> list[str]:
    if row["version"] is None:
        return ["not installed"]
    ratio = f"{row['of_best_peer']:.2f}" if row["of_best_peer"] else ""
    later = [f"{row['fvu_equal_time']:.4f}"] if "fvu_equal_time" in row else []
    return [row["version"], shown(row), f"{row['tokens_per_s']:,.0f}", ratio, f"{row['fvu']:.4f}", *later]


def measure(config, d_in: int, n_latents: int) -> tuple[list[dict], dict]:
    """A row a trainer, and the milliseconds of each phase of ours."""
    sample = source(d_in, n_latents, config.k, config.device)
    unseen, first = sample(config.batch), sample(config.batch)
    trainers, rows = {}, {name: {"trainer": name} for name in config.only}
    for name in config.only:
        kind, given = TRAINERS[name]
        try:
            rows[name]["version"] = version(kind.package) if kind.package else "this" if kind is Ours else "its own"
            trainers[name] = kind(d_in, n_latents, config.k, config.device, *given)
            if kind is Ours:  # as `train` does
                trainers[name].model.fit_encoder(first)
        except (ImportError, PackageNotFoundError):
            rows[name]["version"] = None
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(config.rounds + 1):
        tokens, order = sample(config.batch), list(trainers)
        for name in order[step % len(order) :] + order[: step % len(order)]:
            times[name].append(timed(config, lambda name=name, tokens=tokens: trainers[name].step(tokens))[0])
    for name, trainer in trainers.items():
        rows[name] |= spread([1000 * seconds for seconds in times[name][1:]])  # the first one warms up
        rows[name] |= {"tokens_per_s": 1000 * config.batch / rows[name]["ms"], "fvu": left(trainer, unseen)}
    peers = [rows[name]["tokens_per_s"] for name, trainer in trainers.items() if not isinstance(trainer, Ours)]
    for name in trainers:
        rows[name]["of_best_peer"] = rows[name]["tokens_per_s"] / max(peers) if peers else None
    for name in trainers if config.equal_time else ():
        while sum(times[name]) < max(map(sum, times.values())):
            tokens = sample(config.batch)
            times[name].append(timed(config, lambda name=name, tokens=tokens: trainers[name].step(tokens))[0])
        rows[name] |= {"fvu_equal_time": left(trainers[name], unseen), "steps_equal_time": len(times[name])}
    phases = {}
    for name, trainer in trainers.items():
        if isinstance(trainer, Ours):
            taken = [trainer.phases(config, first) for _ in range(3)]
            phases[name] = {part: 1000 * statistics.median(one[part] for one in taken) for part in taken[0]}
    return list(rows.values()), phases


def left(trainer, tokens: torch.Tensor) -> float:
    """The fraction of the variance of ``tokens`` that a trainer's SAE does not explain."""
    error = (tokens - trainer.reconstruct(tokens)).pow(2).sum()
    return float(error / (tokens - tokens.mean(0)).pow(2).sum())


def source(d_in: int, n_latents: int, k: int, device: str) -> Callable[[int], torch.Tensor]:
    """Draws tokens: ``k / 2`` of ``n_latents / 2`` directions each, some far more often than others, and noise."""
    generator = torch.Generator(device).manual_seed(1)
    random = {"generator": generator, "device": device}
    directions = torch.nn.functional.normalize(torch.randn(n_latents // 2, d_in, **random), dim=1)

    def sample(count: int) -> torch.Tensor:
        chosen = (torch.rand(count, max(k // 2, 1), **random).pow(2) * len(directions)).long()
        sizes = torch.empty(chosen.shape, device=device).exponential_(generator=generator) + 0.5
        tokens = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=sizes, mode="sum")
        tokens += 0.1 * torch.randn(count, d_in, **random) / d_in**0.5
        return tokens * (d_in / tokens.pow(2).sum(1).mean()).sqrt()

    mean = sample(8192).mean(0)
    return lambda count: sample(count) - mean


if __name__ == "__main__":
    main()
