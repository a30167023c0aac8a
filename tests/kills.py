"""``python -m tests.kills record train learn atlas``: kills commands at random moments and lets them finish afterwards.

Each trial begins anew, is killed with SIGKILL once or several times, each time at a moment drawn from the time that the
undisturbed run took, and is then started once more. Every file has to be, byte for byte, what the undisturbed run left;
TensorBoard's are left out, which hold the time of day. The tally goes to stdout.
"""

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from training.__main__ import main as training

ROOT = Path(__file__).parents[1]
PLACE = "unet.up_blocks.1.attentions.1"


def prepare(home: Path) -> dict[str, list[str]]:
    """Command → its arguments but for ``--output``; what they read lies in ``home``."""
    prompts = {"shows": ["a neon star", "a neon moon", "a neon ring", "a neon heart"]}
    prompts["lacks"] = ["a star", "a moon", "a ring", "a heart"]
    for name, lines in prompts.items():
        (home / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    record = ["record", "--images", "8", "--images-per-shard", "2", "--batch", "2", "--steps", "2"]
    record += ["--tokens-per-map", "16"]
    train = ["train", "--recording", str(home / "recording" / PLACE), "--expansion", "2", "--k", "8", "--steps", "24"]
    train += ["--batch", "64", "--checkpoint-every", "3", "--log-every", "20"]
    learn = ["learn", "neon", "--sae", str(ROOT / "tinycanvas" / "saes" / "tinycanvas.safetensors"), "--steps", "2"]
    learn += ["--shows", str(home / "shows.txt"), "--lacks", str(home / "lacks.txt"), "--batch", "1"]
    atlas = ["atlas", "--sae", str(ROOT / "tinycanvas" / "saes" / "tinycanvas.safetensors"), "--steps", "2"]
    atlas += ["--prompts", "tinycanvas:anchor", "--images", "8", "--batch", "2"]
    importlib.import_module("training.sae.atlas").SAVE_EVERY = 0.0  # seconds: after each batch
    # Here and not in a fork: what it imports, every fork has then.
    with contextlib.redirect_stdout(sys.stderr):
        assert training([*record, "--output", str(home / "recording")]) == 0
    importlib.import_module("training.sae.train")
    with contextlib.redirect_stdout(sys.stderr):
        assert training([*learn, "--output", str(home / "a.safetensors"), "--dry-run"]) == 0
    return {"record": record, "train": train, "learn": learn, "atlas": atlas}


def start(arguments: list[str], seconds: float | None = None) -> int:
    """Run a command in a process of its own, killed after ``seconds``; its exit code, -9 where it was killed.

    A fork of this one, in which all is imported already, so that kills hit the work and not its start.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            if not os.environ.get("KILLS_TELL"):
                os.dup2(silence, 2)
            torch.set_num_threads(1)
            code = training(arguments)
        finally:
            os._exit(code)
    if seconds is not None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0  # it had finished
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def tally(command: str, arguments: list[str], times: int, seed: int, home: Path) -> dict[str, int]:
    """How many of ``times`` trials were killed, how often, and how many left other files than an undisturbed run."""
    rng, folder = random.Random(f"{seed} {command}"), home / command
    ending = "a.safetensors" if command == "learn" else "out"
    line = [*arguments, "--output", str(folder / ending)]
    began = time.monotonic()
    assert start(line) == 0, f"{command} does not run"
    whole, expected = time.monotonic() - began, files(folder)
    counts = {"trials": times, "kills": 0, "other files": 0, "failed": 0}
    for _ in range(times):
        shutil.rmtree(folder)
        for _ in range(rng.choice([1, 1, 2, 3])):
            counts["kills"] += start(line, rng.uniform(0, whole)) == -signal.SIGKILL
        counts["failed"] += start(line) != 0
        left = files(folder)
        if left != expected:
            counts["other files"] += 1
            other = sorted(name for name in left.keys() | expected.keys() if left.get(name) != expected.get(name))
            print(f"{command}: other files: {', '.join(other)}", file=sys.stderr)
    shutil.rmtree(folder)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("commands", nargs="+", choices=["record", "train", "learn", "atlas"])
    parser.add_argument("--times", type=int, default=100, help="trials of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        lines, bad = prepare(Path(home)), 0
        for command in options.commands:
            counts = tally(command, lines[command], options.times, options.seed, Path(home))
            print(f"{command}: {', '.join(f'{count} {name}' for name, count in counts.items())}", flush=True)
            bad += counts["failed"] + counts["other files"]
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
