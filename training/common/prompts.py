"""Prompt files: one prompt a line (``.txt``), or one JSON object a line with its concepts (``.jsonl``).

``{"prompt": "A lake by Monet.", "concepts": {"artist": "Monet"}}`` names the concepts that a picture of the prompt
shows, each under its kind; kinds are whatever the file calls them. Other keys (a seed, a source) are then no concepts.
Without ``concepts`` every key beside ``prompt`` is a kind, as in ``{"prompt": "An image of circle in neon style.",
"object": "circle", "style": "neon"}``. Either way ``--labels object style`` leaves these kinds and no others.
``tinycanvas:training``, ``tinycanvas:anchor`` and ``tinycanvas:evaluation`` name the three built-in sets.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from saeuron import SaeuronError
from saeuron.errors import nearest
from saeuron.files import parse_json


def read_prompts(source: str, kinds: Sequence[str] = ()) -> list[dict[str, str]]:
    """Prompts as dicts with ``prompt`` and kind → concept, of ``kinds`` where some are given.

    Raises SaeuronError naming the file and line, or a kind that no prompt names.
    """
    rows = _read(source)
    if kinds:
        known = dict.fromkeys(kind for row in rows for kind in labels(row))
        for kind in kinds:
            if kind not in known:
                raise SaeuronError(f"{source}: no prompt says its {kind!r}; the nearest are {nearest(kind, known)}")
        rows = [{key: value for key, value in row.items() if key in ("prompt", *kinds)} for row in rows]
    return rows


def _read(source: str) -> list[dict[str, str]]:
    if source.startswith("tinycanvas:"):
        return _tinycanvas(source.removeprefix("tinycanvas:"))
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"prompts {path} could not be read: {getattr(error, 'strerror', None) or error}") from None
    rows = [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise SaeuronError(f"prompts {path} holds no prompt; write one a line")
    return rows


def read_labelled(source: str, kinds: Sequence[str]) -> list[dict[str, str]]:
    """Prompts that name a concept of every one of ``kinds``; raises SaeuronError with the first that does not."""
    rows = read_prompts(source)
    check_labelled(rows, kinds, source)
    return rows


def check_labelled(rows: Sequence[dict[str, str]], kinds: Sequence[str], source: str) -> None:
    """Raise SaeuronError with the first of ``rows``, from ``source``, that names no concept of one of ``kinds``."""
    for row in rows:
        lacking = [kind for kind in kinds if kind not in row]
        if lacking:
            raise SaeuronError(
                f"{source}: the prompt {row['prompt']!r} does not say its {' and '.join(lacking)}; "
                "give a .jsonl file with them beside each prompt, or --labels with the kinds that all prompts say"
            )


def _parse(path: Path, number: int, line: str) -> dict[str, str]:
    if path.suffix != ".jsonl":
        return {"prompt": line.strip()}
    row = parse_json(line, f"{path}, line {number}: it")
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise SaeuronError(f'{path}, line {number}: needs an object with a "prompt" that is not empty')
    concepts = row.get("concepts", {key: value for key, value in row.items() if key != "prompt"})
    if not isinstance(concepts, dict) or "prompt" in concepts:
        raise SaeuronError(f'{path}, line {number}: "concepts" has to be an object with a concept for each kind')
    return {"prompt": row["prompt"]} | {str(kind): str(name) for kind, name in concepts.items()}


def _tinycanvas(kind: str) -> list[dict[str, str]]:
    from tinycanvas.captions import all_captions

    kinds = ("training", "anchor", "evaluation")
    if kind not in kinds:
        raise SaeuronError(f"tinycanvas has no prompts {kind!r}; it has {', '.join(kinds)}")
    return [{"prompt": text, "object": shape, "style": style} for text, shape, style in all_captions(kind)]


def labels(row: dict[str, str]) -> dict[str, str]:
    """Kind → concept of one prompt."""
    return {key: value for key, value in row.items() if key != "prompt"}


def digest(rows: Sequence[dict[str, str]]) -> str:
    """By which prompts and their concepts are known again."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]


def shuffled(rows: list[dict[str, str]], count: int, seed: int) -> list[dict[str, str]]:
    """``count`` prompts in random order; every prompt comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))]
    return [rows[i] for i in torch.cat(rounds)[:count].tolist()]


def concepts(rows: list[dict[str, str]]) -> dict[str, str]:
    """Concept → kind over all prompts, in order of first appearance; raises SaeuronError on a name with two kinds."""
    found: dict[str, str] = {}
    for row in rows:
        for kind, name in labels(row).items():
            if found.setdefault(name, kind) != kind:
                raise SaeuronError(f"concept {name!r} is both a {found[name]} and a {kind}; rename one of them")
    return found
