"""Which pictures show a concept: told from whole feature maps, not token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .autoencoder import SparseAutoencoder
from .concept_table import ConceptTable
from .selection import nearest_column

SHARE = 0.5
"""A concept is shown where it is at least this strong beside the strongest of its kind."""


@dataclass(frozen=True, eq=False)
class Detector:
    """One latent of every concept of a kind, the concept's own first: do its maps show it more than the others do?

    For each of ``timesteps`` ``[S]``: ``latents`` ``[C]``, ``means`` ``[S, C]`` of each under its own concept, and the
    ``floors`` ``[S]`` of the first. A map shows the concept where the mean of its latent over the map's tokens exceeds
    its floor and, in units of its mean, reaches `SHARE` of every other. Two concepts in one picture may both be shown.
    """

    timesteps: torch.Tensor
    latents: torch.Tensor
    means: torch.Tensor
    floors: torch.Tensor
    fingerprint: str

    @classmethod
    def of(
        cls,
        table: ConceptTable,
        concept: str,
        latents: Mapping[str, int],
        presence: float | None = None,
    ) -> "Detector":
        """The detector of ``concept`` from one latent for each concept of its kind in ``latents``, itself among them.

        ``presence`` puts the floor: 0 at the largest mean that another concept has, 1 at the concept's own, 0.5
        halfway. None takes ``μ̄``.
        """
        names = [concept, *(name for name in latents if name != concept)]
        own = latents[concept]
        means = torch.stack([table.means(name)[:, latents[name]] for name in names], 1)
        floors = table.kind_mean(concept)[:, own]
        if presence is not None:
            floors = torch.lerp(table.max_other_mean(concept)[:, own], means[:, 0], presence)
        numbers = torch.tensor([latents[name] for name in names])
        return cls(table.timesteps, numbers, means, floors, table.fingerprint)


class Detectors:
    """Several detectors that look at the same maps and share one encode."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.all = detectors
        numbers = torch.cat([one.latents for one in detectors])
        latents, places = numbers.unique(return_inverse=True)
        self._latents, self._places = latents, places.split([len(one.latents) for one in detectors])
        self._placed: dict = {}

    def shown(self, sae: SparseAutoencoder, tokens: torch.Tensor, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps ``[R]`` of ``tokens`` ``[B, N, d_in]`` that may show a concept, and which of the detectors' they do
        show, ``[R, len(detectors)]`` booleans.

        Without competition from other latents activations are only larger, so most maps are ruled out at the price of
        a few latents.
        """
        latents, first, floors, others = self._at(timestep, tokens.device)
        maybe = (sae.encode_alone(tokens, latents).mean(1)[:, first] > floors).any(-1).nonzero().squeeze(-1)
        if len(maybe) == 0:
            return maybe, torch.zeros(0, len(self.all), dtype=torch.bool, device=tokens.device)
        flat = tokens[maybe].reshape(-1, sae.d_in)
        activity = (
            sae.encode_in(flat, latents, torch.zeros(len(latents), device=tokens.device))
            .view(len(maybe), -1, len(latents))
            .mean(1)
        )
        found = activity[:, first] > floors
        for number, (place, means) in enumerate(others):
            relative = torch.where(means > 0, activity[:, place] / means, 0)
            found[:, number] &= (relative[:, :1] >= SHARE * relative).all(-1)
        return maybe, found

    def _at(self, timestep: float, device: torch.device) -> tuple:
        """All latents, the number of each detector's first, its floor, and its latents' numbers and means: at the
        nearest recorded timestep, on ``device``, where they then stay."""
        columns = tuple(nearest_column(one.timesteps, timestep) for one in self.all)
        if (columns, device) not in self._placed:
            pairs = list(zip(self.all, columns, strict=True))
            first = torch.stack([place[0] for place in self._places])
            floors = torch.stack([one.floors[column] for one, column in pairs])
            means = [one.means[column].to(device) for one, column in pairs]
            places = [place.to(device) for place in self._places]
            parts = self._latents.to(device), first.to(device), floors.to(device), list(zip(places, means, strict=True))
            self._placed[columns, device] = parts
        return self._placed[columns, device]
