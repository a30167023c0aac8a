"""Pictures in, verdicts out: drawing a set of labelled prompts and counting what a judge finds in them.

The measures are UnlearnCanvas's. For a target concept c: UA, the fraction of pictures of c in which c is no longer
found; IRA, accuracy on the other concepts of c's kind; CRA, accuracy of the other kind on all pictures. Every picture
is drawn once and counted once, from the seed it has without the edit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from scipy.stats import binomtest

from saeuron import Hookpoint, SaeuronError

from .host import Edit, editing, generate

KINDS = ("object", "style")


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. ``height`` and ``width`` are in pixels; None is the model's own size."""

    steps: int = 25
    guidance: float = 3.0
    batch: int = 30
    bf16: bool = False
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise SaeuronError("--steps and --batch have to be at least 1")


@dataclass(frozen=True)
class Verdicts:
    """What was asked for and what was found: ``asked[kind]`` and ``found[kind]`` are lists of names, one a picture."""

    asked: dict[str, list[str]]
    found: dict[str, list[str]]

    def right(self, kind: str) -> list[bool]:
        return [a == f for a, f in zip(self.asked[kind], self.found[kind], strict=True)]

    def accuracy(self, kind: str) -> float:
        right = self.right(kind)
        return sum(right) / len(right)


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``total`` with its 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return (float("nan"), float("nan"))
        bounds = binomtest(self.hits, self.total).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)


def draw_all(
    pipeline: StableDiffusionPipeline,
    rows: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    sampling: Sampling,
    edits: Mapping[Hookpoint, Sequence[Edit]] | None = None,
) -> torch.Tensor:
    """Pictures ``[len(rows), 3, H, W]`` in 0..1, one a row and seed."""
    parts = []
    for start in range(0, len(rows), sampling.batch):
        part = slice(start, start + sampling.batch)
        parts.append(
            generate(
                pipeline,
                [row["prompt"] for row in rows[part]],
                seeds[part],
                steps=sampling.steps,
                guidance=sampling.guidance,
                height=sampling.height,
                width=sampling.width,
                bf16=sampling.bf16,
                taps=editing(edits or {}),
            )
        )
    return torch.cat(parts)


@torch.no_grad()
def judge_tinycanvas(images: torch.Tensor, rows: Sequence[Mapping[str, str]]) -> Verdicts:
    """TinyCanvas's own judge on pictures ``[B, 3, 32, 32]`` in 0..1."""
    from tinycanvas.drawing import OBJECTS, STYLES
    from tinycanvas.model import load_judge

    judge = load_judge()
    logits = [judge(part * 2 - 1) for part in images.split(256)]
    found = {}
    for index, (kind, names) in enumerate(zip(KINDS, (OBJECTS, STYLES), strict=True)):
        found[kind] = [names[i] for part in logits for i in part[index].argmax(1).tolist()]
    return Verdicts({kind: [row[kind] for row in rows] for kind in KINDS}, found)


def measures(verdicts: Verdicts, target: str | Collection[str], kind: str) -> dict[str, Rate]:
    """UA, IRA and CRA of an edit that removes ``target``, one concept or several of the same ``kind``."""
    other = next(k for k in verdicts.asked if k != kind)
    right, targets = verdicts.right(kind), {target} if isinstance(target, str) else set(target)
    shows = [asked in targets for asked in verdicts.asked[kind]]
    on_target = [r for r, s in zip(right, shows, strict=True) if s]
    elsewhere = [r for r, s in zip(right, shows, strict=True) if not s]
    return {
        "ua": Rate(len(on_target) - sum(on_target), len(on_target)),
        "ira": Rate(sum(elsewhere), len(elsewhere)),
        "cra": Rate(sum(verdicts.right(other)), len(right)),
    }
