"""What all benchmarks share: options, work that is timed in turns, one table on stdout and one JSON file.

On a CPU with one thread the clock is the processor's own time, which counts what a program does and not what others on
the machine do meanwhile; otherwise it is the time of day. Compared is what was measured in turns in one run.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "eai-sparsify", "sae-lens", "dictionary-learning")


def options(about: str, name: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every benchmark. By argparse, since the peers' environment has no other parser."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="a size that takes seconds, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path(f"out/benchmarks/{name}.json"), help="where JSON goes")
    return parser


def begin(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    config = parser.parse_args(arguments)
    torch.set_num_threads(config.threads)
    if config.tiny:
        config.rounds = min(config.rounds, 2)
    return config


def timed(config: argparse.Namespace, work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that ``work`` takes, and what it gives."""
    own_time = config.device == "cpu" and config.threads == 1
    now = time.process_time if own_time else time.perf_counter
    wait = torch.cuda.synchronize if config.device != "cpu" else lambda: None
    wait()
    began = now()
    result = work()
    wait()
    return now() - began, result


def in_turns(config: argparse.Namespace, works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of each of ``works``, ``rounds`` times, another one first each time."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(config.rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = timed(config, works[name])[0]
            if turn:  # the first one warms up
                taken[name].append(1000 * seconds)
        gc.collect()
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles of ``values``."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"ms": middle, "ms_from": low, "ms_to": high}


def shown(row: Mapping[str, float]) -> str:
    digits = 1 if row["ms"] >= 10 else 3
    return f"{row['ms']:.{digits}f} ({row['ms_from']:.{digits}f}–{row['ms_to']:.{digits}f})"


def tell(config: argparse.Namespace, header: Sequence[str], lines: Sequence[Sequence[object]], **found: object) -> None:
    """Print the table, and write ``found`` to the output, with the machine it was found on."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(map(str, line)) + " |")
    print()
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps({"machine": machine(config)} | found, indent=2, default=str) + "\n", "utf-8")


def machine(config: argparse.Namespace) -> dict[str, object]:
    """What the figures hold for."""
    own_time = config.device == "cpu" and config.threads == 1
    found = {"device": device_name(config.device), "cores": os.cpu_count(), "threads": config.threads}
    found |= {"clock": "processor time" if own_time else "time of day", "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
