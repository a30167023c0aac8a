"""``python -m tests.fuzz``: spoils good files at random and on purpose, gives each to its reader, and prints a tally.

A file may be read or refused with one clear error. Everything else is a find: another exception, a crash, ten seconds,
memory of more than twice the file and 256 MB, an error of 400 characters, or anything that the file made happen. The
case of a find is given by ``--seed`` and its number: ``--first NUMBER --files 1 --keep FOLDER`` leaves its files.
"""

import argparse
import collections
import sys
import time

from .run import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="how many spoilt cases are read")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for the files of the last case")
    options = parser.parse_args()
    began = time.monotonic()
    tally, finds = fuzz(options.seed, options.first, options.files, options.keep)
    outcomes = sorted({outcome for counts in tally.values() for outcome in counts})
    print(f"{'reader':<20}", *(f"{outcome:>9}" for outcome in outcomes))
    for name, counts in sorted(tally.items()):
        print(f"{name:<20}", *(f"{counts[outcome]:>9}" for outcome in outcomes))
    whole = sum(tally.values(), collections.Counter())
    print(f"{'all':<20}", *(f"{whole[outcome]:>9}" for outcome in outcomes))
    print(f"seed {options.seed}, {sum(whole.values())} files, {len(finds)} finds, {time.monotonic() - began:.0f} s")
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main())
