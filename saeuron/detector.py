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


def shown(detectors: Sequence[Detector], sae: SparseAutoencoder, tokens: torch.Tensor, timestep: float) -> torch.Tensor:
    """Which maps of ``tokens`` ``[B, N, d_in]`` show which detector's concept, ``[B, len(detectors)]`` booleans.

    All share one encode. Without competition from other latents activations are only larger, so most maps are
    ruled out at the price of a few latents.
    """
    device = tokens.device
    numbers = torch.cat([one.latents for one in detectors])
    latents, places = (found.to(device) for found in numbers.unique(return_inverse=True))
    places = places.split([len(one.latents) for one in detectors])
    columns = [nearest_column(one.timesteps, timestep) for one in detectors]
    floors = torch.stack([one.floors[n] for one, n in zip(detectors, columns, strict=True)]).to(device)
    most = sae.encode_alone(tokens, latents).mean(1)[:, torch.stack([place[0] for place in places])]
    found = most > floors
    maybe = found.any(-1).nonzero().squeeze(-1)
    if len(maybe) == 0:
        return found
    flat = tokens[maybe].reshape(-1, sae.d_in)
    activity = sae.encode_at(flat, latents, torch.zeros(len(latents), device=device))
    activity = activity.view(len(maybe), -1, len(latents)).mean(1)
    for number, (one, place, column) in enumerate(zip(detectors, places, columns, strict=True)):
        means, own = one.means[column].to(device), activity[:, place]
        relative = torch.where(means > 0, own / means, 0)
        strong = (relative[:, :1] >= SHARE * relative).all(-1)
        found[maybe, number] = strong & (own[:, 0] > floors[number])
    return found
