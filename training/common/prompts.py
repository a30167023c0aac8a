"""Prompt files: one prompt a line (``.txt``), or one JSON object a line with its concepts (``.jsonl``).

``{"prompt": "An image of circle in neon style.", "object": "circle", "style": "neon"}``: every key beside ``prompt`` is
a kind, its value the concept shown. ``tinycanvas:training``, ``tinycanvas:anchor`` and ``tinycanvas:evaluation`` name
the three built-in sets.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from saeuron import SaeuronError


def read_prompts(source: str) -> list[dict[str, str]]:
    """Prompts as dicts with ``prompt`` and kind → concept; raises SaeuronError naming the file and line."""
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
    for row in rows:
        lacking = [kind for kind in kinds if kind not in row]
        if lacking:
            raise SaeuronError(
                f"{source}: the prompt {row['prompt']!r} does not say its {' and '.join(lacking)}; "
                "give a .jsonl file with them beside each prompt"
            )
    return rows


def _parse(path: Path, number: int, line: str) -> dict[str, str]:
    if path.suffix != ".jsonl":
        return {"prompt": line.strip()}
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SaeuronError(f"{path}, line {number}: not JSON: {error.msg}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise SaeuronError(f'{path}, line {number}: needs an object with a "prompt" that is not empty')
    return {str(key): str(value) for key, value in row.items()}


def _tinycanvas(kind: str) -> list[dict[str, str]]:
    from tinycanvas.captions import all_captions

    kinds = ("training", "anchor", "evaluation")
    if kind not in kinds:
        raise SaeuronError(f"tinycanvas has no prompts {kind!r}; it has {', '.join(kinds)}")
    return [{"prompt": text, "object": shape, "style": style} for text, shape, style in all_captions(kind)]


def labels(row: dict[str, str]) -> dict[str, str]:
    """Kind → concept of one prompt."""
    return {key: value for key, value in row.items() if key != "prompt"}


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
