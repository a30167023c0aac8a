"""Judges: what finds concepts in pictures."""

from collections.abc import Mapping, Sequence

import torch

from .measures import KINDS, Verdicts


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
