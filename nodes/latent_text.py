"""Latents as a user writes them: ``407, 12`` or, each in its own way, ``407 neon rim: +8; heart: x0.5 20-80% off``.

An entry is the number of a latent, with whatever name behind it, or a label of the SAE's atlas. Behind a colon stand,
in any order, ``+8`` or ``-8`` (added to its activations), ``x0.5`` (what they are multiplied with), ``20-80%`` (the
part of the sampling) and ``off``. What an entry does not say is as the node's own widgets have it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..saeuron import SaeuronError

NUMBER = r"\d+(?:\.\d+)?"
EXAMPLE = "12, 407 or 407 neon: +8; 12: x0.5 20-80%"


@dataclass(frozen=True)
class Entry:
    """One entry; ``latents`` are its numbers, or none where ``name`` is a label. None means what the node says."""

    latents: tuple[int, ...]
    name: str = ""
    add: float | None = None
    scale: float | None = None
    part: tuple[float, float] | None = None
    on: bool = True


def read_entries(text: str) -> list[Entry]:
    """The entries of ``text``; raises SaeuronError where one cannot be understood."""
    return [_entry(part.strip()) for part in re.split(r"[,;\n]", text) if part.strip()]


def _entry(text: str) -> Entry:
    name, colon, said = text.partition(":")
    name = name.strip()
    if re.fullmatch(r"-?\d+(\s+-?\d+)*", name):
        numbers = tuple(int(number) for number in name.split())
        name = ""
    else:
        number = re.match(r"(\d+)\s+\D", name)
        numbers = (int(number[1]),) if number else ()
    if not name and not numbers:
        raise SaeuronError(f"`latents` holds {text[:60]!r}, which names no latent: write {EXAMPLE}")
    entry = {"latents": numbers, "name": name}
    for word in said.split() if colon else ():
        entry |= _setting(word, text)
    return Entry(**entry)


def _setting(word: str, text: str) -> dict:
    if word == "off":
        return {"on": False}
    if re.fullmatch(rf"[+-]{NUMBER}", word):
        return {"add": float(word)}
    if re.fullmatch(rf"[x×]-?{NUMBER}", word):
        return {"scale": float(word[1:])}
    part = re.fullmatch(rf"({NUMBER})[-–]({NUMBER})%", word)
    if part and 0 <= float(part[1]) <= float(part[2]) <= 100:
        return {"part": (float(part[1]) / 100, float(part[2]) / 100)}
    raise SaeuronError(f"`latents` holds {text[:60]!r}, and {word[:20]!r} is not understood: write {EXAMPLE}")


def resolved(entries: list[Entry], find: Callable[[str], int | None], n_latents: int) -> list[tuple[int, Entry]]:
    """Each latent once, with the entry that names it; ``find`` gives the latent of a label, or None.

    Raises SaeuronError on a label that nobody knows and on a number that is none of ``n_latents``.
    """
    found = {}
    for entry in entries:
        for latent in entry.latents or (_labelled(entry.name, find),):
            if not 0 <= latent < n_latents:
                raise SaeuronError(f"the SAE's latents are 0 to {n_latents - 1}, and {latent} is none of them")
            found.setdefault(latent, entry)
    if not found:
        raise SaeuronError(f"the SAE's latents are 0 to {n_latents - 1}, and none is given")
    return sorted(found.items())


def _labelled(name: str, find: Callable[[str], int | None]) -> int:
    latent = find(name)
    if latent is None:
        raise SaeuronError(f"`latents` names {name[:60]!r}, which is no label in this SAE's atlas: write {EXAMPLE}")
    return latent


def read_curve(text: str) -> tuple[tuple[float, float], ...]:
    """``0%: 1, 50%: 0.2`` as points (share of the sampling, amount), in order; none where ``text`` is empty."""
    points = []
    for part in (part.strip() for part in re.split(r"[,;\n]", text) if part.strip()):
        point = re.fullmatch(rf"({NUMBER})%\s*:?\s*({NUMBER})", part)
        if point is None or float(point[1]) > 100:
            raise SaeuronError(f"`curve` holds {part[:40]!r}: write points such as 0%: 1, 50%: 0.2")
        points.append((float(point[1]) / 100, float(point[2])))
    return tuple(sorted(points))
