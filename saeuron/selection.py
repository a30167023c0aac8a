"""A selection: the few latents an edit touches, with all that it needs to know about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .errors import SaeuronError


@dataclass(frozen=True, eq=False)
class Selection:
    """For each of ``timesteps`` ``[S]``, ``m`` latents with their numbers; every other field is ``[S, m]``.

    ``means`` are ``μ(i,t,D_c)``, ``kind_means`` are ``μ̄(i,t)``, ``strengths`` are γ. A latent of −1 is an empty place.
    """

    timesteps: torch.Tensor
    latents: torch.Tensor
    means: torch.Tensor
    kind_means: torch.Tensor
    strengths: torch.Tensor
    concepts: tuple[str, ...]
    fingerprint: str
    _placed: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def is_empty(self) -> bool:
        return not bool((self.latents >= 0).any())

    def at(self, timestep: float, device: torch.device | str = "cpu") -> "SelectedLatents":
        """What holds at the recorded timestep nearest to ``timestep``, so that any sampler and step count works.

        Once on ``device`` it stays there: a GPU is waited for when something is sent to it.
        """
        key = nearest_column(self.timesteps, timestep), torch.device(device)
        if key not in self._placed:
            fields = [own[key[0]] for own in (self.latents, self.means, self.kind_means, self.strengths)]
            used = fields[0] >= 0
            self._placed[key] = SelectedLatents(*(own[used].to(device) for own in fields))
        return self._placed[key]

    @staticmethod
    def merge(selections: Sequence["Selection"]) -> "Selection":
        """Several concepts as one selection, which costs one encode.

        A latent that several concepts select is edited once, by the one whose ``|γ·μ|`` is largest.
        """
        first = selections[0]
        for other in selections[1:]:
            if other.fingerprint != first.fingerprint or not torch.equal(other.timesteps, first.timesteps):
                raise SaeuronError("selections merge only when they come from the same SAE and the same timesteps")
        latents = torch.cat([s.latents for s in selections], 1)
        means = torch.cat([s.means for s in selections], 1)
        strengths = torch.cat([s.strengths for s in selections], 1)
        force = (means * strengths).abs()
        order = force.argsort(dim=1, descending=True, stable=True)
        latents = latents.gather(1, order)
        repeated = (latents[:, :, None] == latents[:, None, :]).tril(-1).any(-1)
        return Selection(
            timesteps=first.timesteps,
            latents=latents.masked_fill(repeated, -1),
            means=means.gather(1, order),
            kind_means=torch.cat([s.kind_means for s in selections], 1).gather(1, order),
            strengths=strengths.gather(1, order),
            concepts=tuple(name for s in selections for name in s.concepts),
            fingerprint=first.fingerprint,
        )


@dataclass(frozen=True, eq=False)
class SelectedLatents:
    """One timestep of a selection; every field is ``[m]``."""

    latents: torch.Tensor
    means: torch.Tensor
    kind_means: torch.Tensor
    strengths: torch.Tensor


def nearest_column(timesteps: torch.Tensor, timestep: float) -> int:
    """Where in ``timesteps`` the one nearest to ``timestep`` stands."""
    return int((timesteps - float(timestep)).abs().argmin())
