"""Which pictures showed a concept before it was taken out: what the patch tells under itself."""

import torch
from comfy.model_patcher import ModelPatcher

from ...saeuron.redirect import Redirect
from .patching import Place
from .telling import Told

SHOWN = 0.25
"""The mean amount, over the first half of its maps, from which on a picture shows a concept: later the edit acts."""


class Finder:
    """Watches, ahead of the edit, which pictures show the concepts of ``detector``; `found` counts them by name."""

    def __init__(self, detector: Redirect, told: Told) -> None:
        self.detector, self.told = detector, told
        self.found: dict[str, int] = {}

    def begin(self, model: ModelPatcher) -> None:
        self.amounts: dict[int, list[torch.Tensor]] = {}

    @torch.no_grad()
    def see(self, tokens: torch.Tensor, place: Place) -> None:
        if place.rows.any():
            amounts = self.detector.amounts(tokens[place.rows.to(tokens.device)], place.timestep).cpu()
            for picture, amount in zip(place.pictures[place.rows].tolist(), amounts, strict=True):
                self.amounts.setdefault(picture, []).append(amount)

    def end(self, finished: bool) -> None:
        if finished and self.amounts:
            first = [torch.stack(own[: max(1, len(own) // 2)]).mean(0) for own in self.amounts.values()]
            counts = (torch.stack(first) >= SHOWN).sum(0).tolist()
            self.found = dict(zip(self.detector.strengths, counts, strict=True))
            self.told.say(describe(self.found, len(first)))


def describe(found: dict[str, int], pictures: int) -> str:
    """``sepia: found in 4 of 4 pictures; neon: in none``."""
    parts = [
        f"{name}: found in {count} of {pictures} pictures" if count else f"{name}: in none"
        for name, count in found.items()
    ]
    return "; ".join(parts)
