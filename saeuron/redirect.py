"""Redirect, the default edit: maps that show a concept are moved towards another concept of its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from .contrasts import Contrasts
from .edits import Edit, move
from .selection import nearest_column

LOW, HIGH = 0.1, 0.4
"""Between which values of its evidence a concept comes to be edited in full."""
SHARE = 0.25
"""The share of the highest score among its rivals that is taken from a concept's own."""
AWAY = 1.25
"""How much further a map goes where no concept of the kind is left to be its goal."""


@dataclass(frozen=True, eq=False)
class Redirect(Edit):
    """``x + Σ_c amount_c · γ_c · (what c adds − what its goal adds)`` on every token of a map. Ours.

    The *goal* of a concept is one of its kind that is near and ordinary (`Contrasts.goal`) and not removed itself, so
    that the picture shows something the model knows; where there is none, it is the mean of the rest. γ = −1 turns the
    one into the other, on average; −2 goes past it, against the prompt that keeps asking.

    The *amount* rises from 0 to 1 while the evidence goes from `LOW` to `HIGH`. Evidence is the concept's score less
    `SHARE` of the highest score among its rivals, the concepts of its kind but the goal. Scores are linear in the mean
    of a map's tokens, and detectors and directions are kept decoded: a map costs a mean and a few dot products,
    whatever the SAE's activation, and nothing is ever encoded. All concepts are judged on the map as it came. Maps on
    which every amount is 0 leave as they came.

    ``strengths`` is concept → γ; all are concepts of ``contrasts``.
    """

    contrasts: Contrasts
    strengths: Mapping[str, float]
    folded: "Folded | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_belong(self.contrasts)
        if self.folded is None:
            object.__setattr__(self, "folded", Folded.of(self))

    def is_idle(self, timestep: float) -> bool:
        return not any(self.strengths.values())

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        tokens = flat.view(maps, -1, self.sae.d_in)
        folded = self.folded.at(timestep, flat.device)
        change = weight * folded.amounts(tokens).repeat_interleave(tokens.shape[1], 0)
        rows = change.any(-1).nonzero().squeeze(-1)
        return flat if len(rows) == 0 else move(flat, rows, change[rows], folded.directions)

    def amounts(self, tokens: torch.Tensor, timestep: float) -> torch.Tensor:
        """How much of each concept, in the order of ``strengths``, maps ``[B, N, d]`` show: ``[B, C]`` in 0…1."""
        return self.folded.at(timestep, tokens.device).amounts(tokens)

    def joined(self, other: "Redirect") -> "Redirect":
        """One edit that removes the concepts of both, each knowing of the other."""
        return replace(self, strengths={**self.strengths, **other.strengths}, folded=None)


@dataclass(frozen=True, eq=False)
class Folded:
    """What an edit comes to in the space of tokens.

    ``probes`` ``[S, P, d]`` and ``offsets`` ``[S, P]`` are of every concept of the kinds concerned, ``directions``
    ``[S, R, d]`` of the removed ones. ``removed`` ``[R]`` says which probes are theirs, ``rivals`` ``[R, P]`` which
    speak against each. `at` gives one timestep, without the first axis.
    """

    timesteps: torch.Tensor
    probes: torch.Tensor
    offsets: torch.Tensor
    directions: torch.Tensor
    removed: torch.Tensor
    rivals: torch.Tensor
    moved: dict[torch.device, "Folded"] = field(default_factory=dict, repr=False)

    @classmethod
    @torch.no_grad()
    def of(cls, edit: Redirect) -> "Folded":
        contrasts, sae, names = edit.contrasts, edit.sae, list(edit.strengths)
        kinds = {contrasts.concepts[name] for name in names}
        watched = [name for name, kind in contrasts.concepts.items() if kind in kinds]
        probes = [contrasts.probe(sae, name) for name in watched]
        directions, rivals = [], []
        for name, strength in edit.strengths.items():
            goal = contrasts.goal(name, without=names)
            further = 1.0 if goal else AWAY
            directions.append(-strength * further * contrasts.change(sae, name, goal))
            rivals.append([other in contrasts.others(name) and other != goal for other in watched])
        vectors, offsets = (torch.stack(parts, 1) for parts in zip(*probes, strict=True))
        removed = torch.tensor([watched.index(name) for name in names])
        return cls(contrasts.timesteps, vectors, offsets, torch.stack(directions, 1), removed, torch.tensor(rivals))

    def at(self, timestep: float, device: torch.device) -> "Folded":
        """What holds at the recorded timestep nearest to ``timestep``, on ``device``, where it then stays."""
        if device not in self.moved:
            tensors = (self.probes, self.offsets, self.directions, self.removed, self.rivals)
            self.moved[device] = Folded(self.timesteps, *(tensor.to(device) for tensor in tensors))
        here, column = self.moved[device], nearest_column(self.timesteps, timestep)
        now = {name: getattr(here, name)[column] for name in ("probes", "offsets", "directions")}
        return replace(here, **now)

    def amounts(self, tokens: torch.Tensor) -> torch.Tensor:
        """How much of each removed concept maps ``[B, N, d]`` show, ``[B, R]`` in 0…1."""
        scores = tokens.mean(1, dtype=torch.float32) @ self.probes.T - self.offsets
        against = torch.where(self.rivals, scores.clamp(min=0)[:, None], 0).amax(-1)
        evidence = scores[:, self.removed] - SHARE * against
        return ((evidence - LOW) / (HIGH - LOW)).clamp(0, 1)
