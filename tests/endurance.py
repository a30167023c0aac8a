"""``python -m tests.endurance``: what shows only after long work, in one process of ComfyUI and of the bench.

`comfyui` samples TinyCanvas patched and unpatched in turn: no hook may be left, no picture may come to differ.
`record` and `train` do their ordinary work at length. Of each the table tells the most memory that its process takes in
the last tenth of its time against the third tenth; where that is more by ``--growth``, it has failed.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.common import device_name
from tests.comfyui.conftest import find_comfyui

ROOT = Path(__file__).parents[1]
PLACE = "unet.up_blocks.1.attentions.1"
PER_IMAGE = 25 * 64
"""Tokens that a picture of TinyCanvas gives in 25 steps."""


def commands(options: argparse.Namespace, home: Path) -> dict[str, tuple[str, list[str], Path]]:
    """Kind of work → how much of it, its command, and the folder that it runs in."""
    training = [sys.executable, "-m", "training"]
    images = -(-options.tokens // PER_IMAGE)
    record = ["record", "--output", str(home / "recording"), "--images", str(images), "--steps", "25"]
    record += ["--tokens-per-map", "64", "--guidance", "1", "--images-per-shard", "16"]
    train = ["train", "--output", str(home / "sae"), "--recording", str(home / "recording" / PLACE)]
    train += ["--steps", str(options.steps), "--expansion", "2", "--k", "8", "--batch", "256"]
    found = {}
    comfyui = find_comfyui()
    if comfyui is not None:
        inside = ROOT / "tests" / "comfyui" / "inside"
        line = [str(comfyui.python), "long_run.py", str(options.samplings)]
        found["comfyui"] = (f"{2 * options.samplings:,} samplings, half of them patched", line, inside)
    found["record"] = (f"{images * PER_IMAGE:,} tokens", training + record, ROOT)
    found["train"] = (f"{options.steps:,} steps", training + train, ROOT)
    return found


def watch(command: list[str], folder: Path, told: Path) -> list[int]:
    """Run a command whose output goes to ``told``; the bytes of memory it took, twice a second."""
    memory = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(told, "wb") as output:
        process = psutil.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            try:
                memory.append(process.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.5)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed:\n{told.read_text('utf-8', 'replace')[-2000:]}")
    return memory


def tenths(memory: list[int]) -> list[float]:
    """Megabytes at most in each tenth of the time: what is read and freed makes waves."""
    edges = [len(memory) * part // 10 for part in range(11)]
    return [max(memory[start : max(end, start + 1)]) / 1e6 for start, end in itertools.pairwise(edges)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=["comfyui", "record", "train"], help="train needs record")
    parser.add_argument("--samplings", type=int, default=2000, help="patched samplings in ComfyUI, and as many without")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens recorded")
    parser.add_argument("--steps", type=int, default=20_000, help="steps trained")
    parser.add_argument("--growth", type=float, default=1.0, help="per cent by which memory may grow")
    options = parser.parse_args()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers"))
    print(f"{datetime.date.today()}, {device_name('cpu')}, {versions}\n")
    print("| work | how much | minutes | MB at most in each tenth | growth | and |\n|---|---|---|---|---|---|")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="endurance-") as home:
        for name, (amount, command, folder) in commands(options, Path(home)).items():
            if options.only and name not in options.only:
                continue
            began, told = time.monotonic(), Path(home) / f"{name}.txt"
            taken = tenths(watch(command, folder, told))
            more = 100 * (taken[-1] / taken[2] - 1)
            found = json.loads(told.read_text("utf-8").splitlines()[-1]) if name == "comfyui" else {}
            bad += more > options.growth or any(found.values())
            also = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found.items())
            minutes = (time.monotonic() - began) / 60
            shown = " ".join(f"{megabytes:.0f}" for megabytes in taken)
            print(f"| {name} | {amount} | {minutes:.1f} | {shown} | {more:+.2f} % | {also} |", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
