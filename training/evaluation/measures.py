"""What is counted: of a set of pictures, which concepts were asked for and which a judge found in them.

The measures are UnlearnCanvas's, for any kinds of concepts. For a target concept c: UA, the fraction of pictures of c
in which c is no longer found; IRA, accuracy on the other concepts of c's kind; CRA, accuracy of the other kinds on all
pictures, each kind of a picture counting once. And *kept*: CRA on the pictures of c alone, since a heart without neon
is still a heart. Every picture is drawn once and counted once, from the seed it has without the edit.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

MEASURES = ("ua", "ira", "cra", "kept")


@dataclass(frozen=True)
class Verdicts:
    """What was asked for and what was found: ``asked[kind]`` and ``found[kind]`` are lists of names, one a picture."""

    asked: dict[str, list[str]]
    found: dict[str, list[str]]

    def __add__(self, other: "Verdicts") -> "Verdicts":
        """The verdicts on these pictures and then on those of ``other``."""
        ours, theirs = (self.asked, self.found), (other.asked, other.found)
        return Verdicts(*({kind: one[kind] + two[kind] for kind in one} for one, two in zip(ours, theirs, strict=True)))

    def right(self, kind: str) -> list[bool]:
        return [a == f for a, f in zip(self.asked[kind], self.found[kind], strict=True)]

    def accuracy(self, kind: str) -> float:
        return self.rate(kind).value

    def rate(self, kind: str) -> "Rate":
        """In how many pictures the concept of ``kind`` is found that was asked for."""
        return Rate.of(self.right(kind))


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``total`` with its 95 % Wilson interval; as text in percent, or a dash where nothing was counted."""

    hits: int
    total: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> "Rate":
        hits = list(hits)
        return cls(sum(hits), len(hits))

    @classmethod
    def pooled(cls, rates: Iterable["Rate"]) -> "Rate":
        """All ``rates`` counted together."""
        rates = list(rates)
        return cls(sum(rate.hits for rate in rates), sum(rate.total for rate in rates))

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return (float("nan"), float("nan"))
        bounds = binomtest(self.hits, self.total).proportion_ci(0.95, method="wilson")
        return float(bounds.low), float(bounds.high)

    def __str__(self) -> str:
        return percent(self.value if self.total else None, self.interval)

    def values(self) -> dict[str, float | None]:
        """For a JSON file, which has no word for a fraction of nothing: None."""
        low, high = self.interval if self.total else (None, None)
        value = self.value if self.total else None
        return {"hits": self.hits, "total": self.total, "value": value, "low": low, "high": high}


def percent(value: float | None, interval: Sequence[float]) -> str:
    """A fraction with its interval in percent; a dash where there is none."""
    return "–" if value is None else f"{value:.1%} ({interval[0]:.1%} – {interval[1]:.1%})"


def measures(verdicts: Verdicts, target: str | Collection[str], kind: str) -> dict[str, Rate]:
    """UA, IRA, CRA and kept of an edit that removes ``target``, one concept or several of the same ``kind``."""
    targets = {target} if isinstance(target, str) else set(target)
    shows = [asked in targets for asked in verdicts.asked[kind]]

    def right(kind: str, shown: Collection[bool]) -> Rate:
        return Rate.of(r for r, s in zip(verdicts.right(kind), shows, strict=True) if s in shown)

    own, others = right(kind, [True]), [other for other in verdicts.asked if other != kind]
    return {
        "ua": Rate(own.total - own.hits, own.total),
        "ira": right(kind, [False]),
        "cra": Rate.pooled(right(other, [True, False]) for other in others),
        "kept": Rate.pooled(right(other, [True]) for other in others),
    }
