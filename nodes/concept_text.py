"""What users write for concepts: names as they come to mind, each perhaps with numbers of its own."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..saeuron import ConceptTable, SaeuronError

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
COUNTED = re.compile(rf"(?P<latents>\d+)?\s*[×x*]\s*(?P<strength>{NUMBER})?", re.IGNORECASE)
ENTRY = re.compile(r'(?:"[^"\n]*"(?=\s*(?:[:,;\n]|$))|[^,;\n])+')
QUOTED = re.compile(r'"(?P<name>[^"]+)"\s*(?::(?P<numbers>.*))?')
SHARE = re.compile(rf"(?P<share>{NUMBER})\s*(?P<percent>%?)")


@dataclass(frozen=True)
class Wanted:
    """The numbers behind a concept's name: so many ``latents``, pushed so hard (γ), or a ``share`` of its own strength.

    0 latents and a strength of 0 are those of its setting.
    """

    latents: int = 0
    strength: float = 0.0
    share: float = 1.0

    def __str__(self) -> str:
        if self.share == 0:
            return "left as it is"
        what = "taken out" if self.share > 0 else "turned up"
        parts = [what if abs(self.share) == 1 else f"{what}, {abs(self.share):g} of its strength"]
        parts += [f"{self.latents} latents"] * bool(self.latents) + [f"strength {self.strength:g}"] * bool(
            self.strength
        )
        return ", ".join(parts)


def parse(text: str) -> dict[str, Wanted]:
    """Names separated by commas, semicolons or lines, each perhaps with numbers behind a colon.

    ``star: 4 × -8`` are latents and strength, either of which may be left out (``star: 4 ×``, ``star: × -8``); a number
    alone, or a percentage, is the share of the concept's own strength, as in a prompt's weights: ``(star:0.5)``. A name
    with such signs in it is written in quotation marks: ``"Night, starry": 0.5``.
    """
    wanted = {}
    for entry in ENTRY.findall(text.replace("−", "-")):
        quoted = QUOTED.fullmatch(entry.strip())
        if quoted:
            wanted[quoted["name"]] = _numbers(entry.strip(), (quoted["numbers"] or "").strip())
            continue
        name, colon, numbers = _without_parentheses(entry).rpartition(":")
        if not colon:
            name, numbers = numbers, ""
        if name.strip():
            wanted[name.strip()] = _numbers(entry.strip(), numbers.strip())
    return wanted


def match(wanted: Mapping[str, Wanted], table: ConceptTable) -> dict[str, Wanted]:
    """``wanted`` under the names that the table knows them by; raises SaeuronError as `match_name` does."""
    return {match_name(name, table): numbers for name, numbers in wanted.items()}


def match_name(written: str, table: ConceptTable) -> str:
    """The concept of ``table`` that somebody means who writes ``written``.

    Case, plurals, hyphens and the kind beside the name do not matter: ``Hearts``, ``neon style``. Raises the table's
    SaeuronError, with the nearest names, where none is meant.
    """
    written = written.strip()
    if written not in table.concepts:
        for reduce in (_words, _singular):
            meant = [name for name, kind in table.concepts.items() if reduce(written, kind) == reduce(name, kind)]
            if len(meant) == 1:
                return meant[0]
    table.kind(written)
    return written


def _without_parentheses(entry: str) -> str:
    """``entry`` without parentheses around it, or those that the separators have torn from their partners."""
    entry = entry.strip()
    while entry:
        balance = entry.count("(") - entry.count(")")
        if balance > 0 and entry[0] == "(":
            entry = entry[1:].strip()
        elif balance < 0 and entry[-1] == ")":
            entry = entry[:-1].strip()
        elif entry[0] == "(" and entry[-1] == ")" and balance == 0:
            entry = entry[1:-1].strip()
        else:
            break
    return entry


def _numbers(entry: str, numbers: str) -> Wanted:
    counted, share = COUNTED.fullmatch(numbers), SHARE.fullmatch(numbers)
    if counted:
        wanted = Wanted(int(counted["latents"] or 0), float(counted["strength"] or 0))
    elif share:
        wanted = Wanted(share=float(share["share"]) / (100 if share["percent"] else 1))
    elif numbers:
        raise SaeuronError(f"{entry[:60]!r} is not understood: write `name`, `name: 0.5` or `name: 4 × -8`")
    else:
        wanted = Wanted()
    if not math.isfinite(wanted.strength) or not math.isfinite(wanted.share):
        raise SaeuronError(f"{entry[:60]!r}: a strength has to be a finite number")
    return wanted


def _words(name: str, kind: str) -> str:
    """``name`` in small letters, single spaces for whatever parts its words, without the kind at either end."""
    words = re.sub(r"[\W_]+", " ", name.casefold()).split()
    kinds = {kind.casefold(), f"{kind.casefold()}s"}
    if len(words) > 1:
        words = words[1:] if words[0] in kinds else words[:-1] if words[-1] in kinds else words
    return " ".join(words)


def _singular(name: str, kind: str) -> str:
    """`_words` with the last word in the singular, as far as English endings tell."""
    words = _words(name, kind)
    for plural, singular in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("s", "")):
        if words.endswith(plural) and not words.endswith(("ss", "us")) and len(words) > len(plural) + 2:
            return words.removesuffix(plural) + singular
    return words
