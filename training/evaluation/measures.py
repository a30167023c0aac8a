"""Pictures in, verdicts out: drawing a set of labelled prompts and counting what a judge finds in them.

The measures are UnlearnCanvas's. For a target concept c: UA, the fraction of pictures of c in which c is no longer
found; IRA, accuracy on the other concepts of c's kind; CRA, accuracy of the other kind on all pictures. Every picture
is drawn once and counted once, from the seed it has without the edit.
"""

from collections.abc import Collection
from dataclasses import dataclass

from scipy.stats import binomtest

KINDS = ("object", "style")


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
