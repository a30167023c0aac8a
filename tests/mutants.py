"""``python -m tests.mutants``: mutmut changes ``saeuron/`` in one small place at a time, and the tests have to notice.

A seeded sample of all mutants is tried, each by the quickest of those tests of ``tests/saeuron`` that reach the changed
function, up to the first that fails. Told are a table by file, and what survived with its change. Wants mutmut in this
environment. What is known of each mutant stays in ``mutants/``, and is asked for again where that folder is deleted.
"""

import argparse
import collections
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTICED = ("killed", "timeout")
FIRST = "saeuron.checkpoints.overcomplete.*"
"""Mutants to begin with, which take seconds: by trying them, mutmut makes all the others."""
REACHED = ROOT / "mutants" / "mutmut-stats.json"
"""Where mutmut keeps which tests reach a function, and how long each takes."""


def mutmut(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stdout[-4000:])
    return ended.stdout


def results() -> dict[str, str]:
    """Mutant → what came of it, of all that there are."""
    lines = [line.strip().rsplit(": ", 1) for line in mutmut("results", "--all", "true").splitlines()]
    return {name: result for name, result in lines}


def keep_quickest(seconds: float) -> None:
    """Judge the mutants of each function by the quickest tests that reach it, of so many ``seconds`` together."""
    known = json.loads(REACHED.read_text("utf-8"))
    takes, judges = known["duration_by_test"], known["tests_by_mangled_function_name"]
    for function, tests in judges.items():
        ordered = sorted(tests, key=takes.get)
        together = itertools.accumulate(map(takes.get, ordered))
        kept = [test for test, so_far in zip(ordered, together, strict=True) if so_far <= seconds]
        judges[function] = kept or ordered[:1]
    REACHED.write_text(json.dumps(known), "utf-8")


def file_of(mutant: str) -> str:
    """``saeuron.edits.xǁAblateǁapply__mutmut_3`` is one of ``saeuron/edits.py``."""
    return mutant.rpartition(".")[0].replace(".", "/") + ".py"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants are tried; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5, help="what the tests of one mutant may take together")
    parser.add_argument("--least", type=float, default=0, help="per cent that have to be noticed")
    options = parser.parse_args()
    if not REACHED.exists():
        mutmut("run", "--max-children", "1", FIRST)
    keep_quickest(options.seconds)
    before = results()
    every = sorted(before)
    chosen = random.Random(options.seed).sample(every, options.sample or len(every))
    left = [name for name in chosen if before[name] == "not checked"]
    if left:
        mutmut("run", "--max-children", "1", *left)
    found = {name: result for name, result in results().items() if name in chosen}
    counts = collections.defaultdict(collections.Counter)
    for name, result in found.items():
        for of in (file_of(name), "all"):
            counts[of]["tried"] += 1
            counts[of]["noticed"] += result in NOTICED
    print("| file | tried | noticed |\n|---|---|---|")
    for name, own in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"| {name} | {own['tried']} | {own['noticed']} |")
    share = 100 * counts["all"]["noticed"] / counts["all"]["tried"]
    print(f"\nseed {options.seed}, {len(chosen)} of {len(every)} mutants, {share:.1f} % noticed\n")
    for name in sorted(name for name, result in found.items() if result not in NOTICED):
        print(mutmut("show", name))
    return share < options.least


if __name__ == "__main__":
    sys.exit(main())
