"""Draw what `training` and `edits` have written.

python -m benchmarks.plot --training out/benchmarks/training.json --edits out/benchmarks/edits.json --output a.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Draw benchmarks' JSON files.")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="what benchmarks.training has written")
    parser.add_argument("--edits", type=Path, required=True, help="what benchmarks.edits has written")
    parser.add_argument("--output", type=Path, required=True, help="the picture to write")
    config = parser.parse_args(arguments)
    rows = [row for path in config.training for row in _read(path) if row.get("ms")]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    edits = [row for row in _read(config.edits) if "UNet" not in row["name"]]
    largest = max(row["pixels"] for row in edits)
    figure, axes = plt.subplots(1, len(sizes) + 1, figsize=(6.5 * (len(sizes) + 1), 4.5), layout="constrained")
    for axis, size in zip(axes, sizes, strict=False):
        own = [row for row in rows if row["size"] == size]
        _bars(axis, [row["trainer"] for row in own], [row["tokens_per_s"] for row in own])
        axis.set_title(f"training {size}: tokens/s")
    own = [row for row in edits if row["pixels"] == largest]
    _bars(axes[-1], [row["name"] for row in own], [row["ms"] for row in own])
    axes[-1].set_title(f"an edit at {largest} px: ms")
    axes[-1].set_xscale("log")
    axes[-1].set_xlim(right=10 * max(row["ms"] for row in own))
    for axis in axes:
        axis.invert_yaxis()
    figure.savefig(config.output, dpi=80)


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text("utf-8"))["rows"]


def _bars(axis, names: list[str], values: list[float]) -> None:
    colours = ["tab:blue" if "ours" in name or not _foreign(name) else "tab:grey" for name in names]
    axis.barh(names, values, color=colours)
    axis.bar_label(axis.containers[0], [f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in values])
    axis.margins(x=0.3)


def _foreign(name: str) -> bool:
    """Whether what is timed is somebody else's."""
    return any(word in name for word in ("dense", "repository", "sparsify", "SAELens", "dictionary", "negative", "NAG"))


if __name__ == "__main__":
    main()
