"""The league's tables and figure, made from its rows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.pictures import save_figure
from ..common.results import table
from ..evaluation.measures import Rate
from .commands import KINDS

MEASURES = ("ua", "ira", "cra")
COUNTED = (*MEASURES, "kept")
NEAR = (("circle", "ring"), ("square", "diamond"))


def summaries(rows: Sequence[dict], timing: Mapping[str, dict], methods: Sequence[str]) -> list[dict]:
    """One row a method and kind, over all targets: fractions, each with a 95 % interval.

    UA, IRA and CRA count all pictures of all targets together, with Wilson's interval, as if no two were related. The
    average's interval is made from the three by squaring and adding (MOVER, Zou and Donner 2008), as if independent.
    """
    found = []
    for method in methods:
        for kind in KINDS:
            own = [row for row in rows if row["method"] == method and row["kind"] == kind]
            if own:
                found.append(_summary(method, kind, own, timing[method]))
    return found


def _summary(method: str, kind: str, rows: Sequence[dict], timing: dict) -> dict:
    rates = {name: pooled(row["hits"][name] for row in rows) for name in COUNTED}
    three = [rates[name] for name in MEASURES]
    average = sum(rate.value for rate in three) / 3
    below, above = (math.hypot(*(rate.value - rate.interval[end] for rate in three)) / 3 for end in (0, 1))

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    return (
        {"method": method, "kind": kind, "targets": len(rows)}
        | {name: rate.value for name, rate in rates.items()}
        | {f"{name}_interval": list(rate.interval) for name, rate in rates.items()}
        | {"average": average, "average_interval": [average - below, average + above]}
        | {name: mean(name) for name in ("collateral", "outside_norm", "outside_dimensions", "confidence")}
        | {"search_images": sum(row["search_images"] for row in rows)}
        | {name: timing[name] for name in ("ms_per_step", "ms_per_step_unedited")}
    )


def pooled(counts) -> Rate:
    """All ``[hits, total]`` together."""
    counts = list(counts)
    return Rate(sum(hits for hits, _ in counts), sum(total for _, total in counts))


def near_pairs(rows: Sequence[dict]) -> list[dict]:
    """How often the neighbour of a removed object is still found, for the pairs that look alike."""
    neighbours = dict([*NEAR, *(pair[::-1] for pair in NEAR)])
    return [
        {"method": row["method"], "removed": row["target"], "neighbour": neighbours[row["target"]]}
        | {"kept": row["others"][neighbours[row["target"]]]}
        for row in rows
        if row["target"] in neighbours
    ]


def markdown(report: dict) -> str:
    """``league.md``: the main table for objects and styles, and the tables beside it."""
    config = report["config"]
    parts = [
        "# League",
        f"`{report['command']}`, seed {config['seed']}, pictures from seed {config['picture_seed']}, "
        f"{config['seeds']} × 90 pictures, "
        f"{config['steps']} DDIM steps, guidance 3. Rates in percent with 95 % intervals; every picture has the seed "
        "of its unedited twin.",
    ]
    for kind in KINDS:
        rows = [row for row in report["rows"] if row["kind"] == kind]
        if rows:
            parts += [f"## Removing {kind}s ({rows[0]['targets']} targets)", _main_table(rows)]
    parts += [
        "Collateral: distance of the judge's features between a bystander's picture before and after, 0 for the same "
        "picture. Outside: share of the edited block's activations beyond what the unedited model showed at that "
        "timestep, by norm and by dimension. Confidence: the judge's, in what it names; artifacts lower it. Images: "
        "drawn to find the settings, all targets together. The milliseconds are of two guided pictures on this machine "
        "and change from run to run; nothing else does.",
    ]
    parts += _table(
        "Near pairs",
        ("method", "removed", "neighbour", "neighbour still found"),
        [(r["method"], r["removed"], r["neighbour"], _percent(r["kept"])) for r in report["near"]],
    )
    for name, title in (
        ("sequence", "Objects removed one after another"),
        ("together", "An object and a style at once"),
    ):
        parts += _table(
            title,
            ("method", "removed", "gone (UA)", "other objects found", "other styles found"),
            [
                (r["method"], _names(r["removed"]), *(_rate(r[key]) for key in ("ua", "kept_object", "kept_style")))
                for r in report[name]
            ],
        )
    parts += _table(
        "Other samplers, steps and sizes, and a fine-tuned model",
        ("condition", "removed", "method", "UA", "IRA", "CRA"),
        [
            (r["condition"], r["target"], r["method"], *(_rate(r["hits"][key]) for key in MEASURES))
            for r in sorted(report["conditions"], key=lambda r: (r["target"], r["condition"]))
        ],
    )
    parts += _table(
        "Under attack (UnlearnDiffAtk, five tokens, 40 steps)",
        ("method", "removed", "UA before", "UA, random prefix", "UA, attacked"),
        [
            (
                r["method"],
                r["name"],
                *(_rate([r[f"ua_{when}_hits"], r["images"]]) for when in ("before", "random", "after")),
            )
            for r in report["attack"]
        ],
    )
    parts += _table(
        "The SAEs",
        ("SAE", "block", "FVU", "dead", "L0", "assigned latent strongest", "AUROC"),
        [_sae(r) for r in report["saes"]],
    )
    return "\n\n".join(parts) + "\n"


def _sae(row: dict) -> tuple[str, ...]:
    numbers = [f"{row[key]:.3g}" for key in ("fvu", "dead", "l0")]
    auroc = "" if row.get("auroc") is None else f"{row['auroc']:.3f}"
    return (row["sae"], row["block"], *numbers, _percent(row.get("centralised")), auroc)


def _main_table(rows: Sequence[dict]) -> str:
    heads = (
        "method",
        "UA",
        "IRA",
        "CRA",
        "average",
        "kept",
        "collateral",
        "outside norm",
        "outside dim.",
        "confidence",
    )
    lines = []
    for row in rows:
        cells = [_interval(row[name], row[f"{name}_interval"]) for name in (*MEASURES, "average", "kept")]
        cells += [f"{row['collateral']:.3f}", _percent(row["outside_norm"]), _percent(row["outside_dimensions"])]
        cells += [f"{row['confidence']:.3f}", str(row["search_images"])]
        lines.append((row["method"], *cells, f"{row['ms_per_step']:.0f} (+{_extra(row):.0f})"))
    return table((*heads, "images", "ms a step"), lines)


def _extra(row: dict) -> float:
    return max(row["ms_per_step"] - row["ms_per_step_unedited"], 0.0)


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", table(heads, lines)] if lines else []


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(value: float, interval: Sequence[float]) -> str:
    return f"{_percent(value)} ({_percent(interval[0])}–{_percent(interval[1])})"


def _rate(count: Sequence[int]) -> str:
    rate = Rate(*count)
    return _interval(rate.value, rate.interval) if rate.total else ""


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{', '.join(names[:2])} … ({len(names)})"


def plot(report: dict, path: Path) -> None:
    """A figure with a panel a kind: each method's average with its interval, and the three measures it is made of."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in report["rows"])]
    figure = Figure(figsize=(5.2 * len(kinds), 4.2), layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        rows = [row for row in report["rows"] if row["kind"] == kind][::-1]
        places = range(len(rows))
        averages = [100 * row["average"] for row in rows]
        reach = [[100 * abs(row["average_interval"][end] - row["average"]) for row in rows] for end in (0, 1)]
        axis.barh(places, averages, xerr=reach, color="0.85", ecolor="0.4", label="average")
        for name, marker in zip(MEASURES, "ovs", strict=True):
            axis.scatter([100 * row[name] for row in rows], places, marker=marker, s=22, zorder=3, label=name.upper())
        axis.set_yticks(places, [row["method"] for row in rows])
        axis.set(title=f"removing {kind}s", xlabel="percent", xlim=(0, 101))
    figure.legend(*axis.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    save_figure(figure, path)
