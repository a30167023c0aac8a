"""Spoilt files, one after another, in a process that may crash or hang; and what came of each."""

import collections
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .mutate import spoilt

SECONDS, ROOM, LONGEST = 10, 256 << 20, 400
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove", "os.rmdir", "subprocess.", "socket.")
EXPECTED = "SaeuronError"


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(pipe, seed: int, numbers: range, keep: str | None) -> None:
    """Read one spoilt case after another, and send of each what came of it."""
    import torch

    from .readers import examples

    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(home)
    good = examples(home / "good")
    watched, happened = [], []

    def listen(event: str, arguments: tuple) -> None:
        if not watched:
            return
        writes = event in ("os.mkdir", "os.remove", "os.rmdir") and str(arguments[0]).startswith(str(home / "case"))
        if event.startswith(FORBIDDEN) and not writes:
            happened.append(f"{event} {str(arguments)[:80]}")
        if event == "open" and str(arguments[0]).startswith(("/etc", "/proc", "/dev")):
            happened.append(f"opened {arguments[0]}")

    for name, (files, read) in good.items():  # whatever a reader imports, it has imported now
        place(home / "case", files)
        found = attempt(home / "case", read)
        if found != ("read", ""):
            raise SystemExit(f"the good example of {name} is not read: {found}")
    sys.addaudithook(listen)
    limit = memory() + (8 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit + (8 << 30), limit + (8 << 30)))
    names = list(good)
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        files, read = dict(good[name][0]), good[name][1]
        for file in rng.sample(sorted(files), rng.choice([1, 1, 1, min(2, len(files))])):
            files[file] = spoilt(file, files[file], rng)
        if len(files) > 1 and rng.random() < 0.02:
            del files[rng.choice(sorted(files))]
        for folder in (home / "case", *([Path(keep)] if keep else [])):
            place(folder, files)
        pipe.send((number, name, "begun", ""))
        before, highest, began = memory(), peak(), time.monotonic()
        watched.append(True)
        outcome, told = attempt(home / "case", read)
        watched.clear()
        size = sum(map(len, files.values()))
        if happened:
            outcome, told = "executed", "; ".join(happened)
            happened.clear()
        elif peak() > highest and peak() - before > 2 * size + ROOM:
            outcome, told = "memory", f"{(peak() - before) >> 20} MB for {size} bytes"
        elif time.monotonic() - began > SECONDS:
            outcome, told = "slow", f"{time.monotonic() - began:.0f} s"
        pipe.send((number, name, outcome, told))
    shutil.rmtree(home)


def place(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def attempt(folder: Path, read) -> tuple[str, str]:
    try:
        read(folder)
    except Exception as error:
        text = str(error)
        clear = type(error).__name__ == EXPECTED and 0 < len(text) < LONGEST and text.isprintable()
        return ("refused", "") if clear else ("unclear", f"{type(error).__name__}: {text[:200]!r}")
    return "read", ""


def fuzz(seed: int, first: int, count: int, keep: str | None = None, seconds: float = float("inf")):
    """Tally ``reader → outcome → how many`` and the finds ``(number, reader, outcome, told)``."""
    tally: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    finds, number, last, began = [], first, first + count, time.monotonic()
    context = multiprocessing.get_context("spawn")
    while number < last and time.monotonic() - began < seconds:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, seed, range(number, last), keep))
        process.start()
        theirs.close()
        current, patience = (), 300.0  # until it has begun, which takes a busy machine a while
        while number < last and time.monotonic() - began < seconds:
            try:
                found = ours.recv() if ours.poll(patience) else (*current, "hang", "")
            except EOFError:
                process.join()
                found = (*current, "crash", f"exit code {process.exitcode}")
            if len(found) < 4:
                raise RuntimeError("the reading process failed outside of a reader")
            if found[2] == "begun":
                current, patience = found[:2], 2.0 * SECONDS
                continue
            number = found[0] + 1
            tally[found[1]][found[2]] += 1
            if found[2] not in ("read", "refused"):
                finds.append(found)
                print("find:", *found, flush=True)
            if found[2] in ("hang", "crash"):
                break
        process.kill()
        process.join()
    return tally, finds
