"""Of every latent the few pictures in which it is strongest, each with its heat map."""

from dataclasses import dataclass

import torch

KEPT = 12
"""Pictures kept of each latent."""
CHUNK = 2048
"""Latents whose heat maps are sorted at once."""


@dataclass(frozen=True, eq=False)
class Strongest:
    """``pictures`` ``[n_latents, KEPT]`` int32 by number, −1 where there is none; ``strengths`` of the same shape.

    ``heat`` ``[n_latents, KEPT, places]`` uint8 is each heat map in parts of 255 of its hottest place, which is the
    strength.
    """

    pictures: torch.Tensor
    strengths: torch.Tensor
    heat: torch.Tensor

    @classmethod
    def none(cls, n_latents: int, places: int) -> "Strongest":
        pictures = torch.full((n_latents, KEPT), -1, dtype=torch.int32)
        return cls(pictures, torch.zeros(n_latents, KEPT), torch.zeros(n_latents, KEPT, places, dtype=torch.uint8))

    def add(self, pictures: torch.Tensor, strengths: torch.Tensor, heat: torch.Tensor) -> None:
        """Add candidates: ``pictures`` and ``strengths`` ``[n_latents, B]``, ``heat`` ``[n_latents, B, places]`` uint8.

        Of equal strengths the earlier picture wins, so pictures have to come in their order.
        """
        better = (strengths.amax(1) > self.strengths[:, -1]).nonzero().squeeze(-1)
        for rows in better.split(CHUNK):
            both = torch.cat([self.strengths[rows], strengths[rows]], 1)
            order = both.sort(dim=1, descending=True, stable=True).indices[:, :KEPT]
            self.strengths[rows] = both.gather(1, order)
            numbers = torch.cat([self.pictures[rows], pictures[rows]], 1).gather(1, order)
            self.pictures[rows] = numbers.where(self.strengths[rows] > 0, -1)
            maps = torch.cat([self.heat[rows], heat[rows]], 1)
            self.heat[rows] = maps.gather(1, order[..., None].expand(-1, -1, maps.shape[-1]))

    def add_maps(self, first: int, heat: torch.Tensor) -> None:
        """Add pictures numbered from ``first`` on, with heat maps ``[B, places, n_latents]``."""
        numbers = torch.arange(first, first + len(heat), dtype=torch.int32)
        for part in torch.arange(heat.shape[-1]).split(CHUNK):
            maps = heat[..., part].float().permute(2, 0, 1)
            peak = maps.amax(-1)
            shades = (maps * (255 / peak.clamp_min(1e-9))[..., None]).round().byte()
            own = slice(int(part[0]), int(part[-1]) + 1)
            rows = Strongest(self.pictures[own], self.strengths[own], self.heat[own])
            rows.add(numbers.expand(len(part), -1), peak, shades)

    def shifted(self, by: int) -> "Strongest":
        """The same with pictures numbered ``by`` higher."""
        return Strongest(torch.where(self.pictures < 0, -1, self.pictures + by).int(), self.strengths, self.heat)
