"""A survey: what every latent does while a few pictures are sampled, place by place and over the timesteps."""

from dataclasses import dataclass

import torch

from ..autoencoder import Code, SparseAutoencoder

BINS = 20
"""Parts that the timesteps 0…1000 are counted in."""
MOST_PLACES = 16
"""Places of a heat map a side: larger feature maps are pooled."""
UNIT = 4096
"""Activations are added up in whole parts of 1/UNIT, so that no order of adding changes a sum."""
FAINT = 1e-3
"""Mean activation that is as good as none."""
CHUNK = 1024
"""Tokens that are encoded at once."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What adds up over pictures, exactly and in any order.

    ``fired`` and ``sums`` are ``[BINS, n_latents]`` int64: tokens on which a latent fired, and its activations there in
    parts of 1/UNIT. ``tokens`` ``[BINS]`` are all that were seen. ``ground`` ``[n_latents]`` are the tokens of the
    pictures in which it fired, ``shown`` ``[n_latents]`` those pictures. ``peak`` is its largest activation.
    """

    fired: torch.Tensor
    sums: torch.Tensor
    tokens: torch.Tensor
    ground: torch.Tensor
    shown: torch.Tensor
    peak: torch.Tensor

    @classmethod
    def zeros(cls, n_latents: int) -> "Counts":
        sizes = ((BINS, n_latents), (BINS, n_latents), (BINS,), (n_latents,), (n_latents,))
        return cls(*(torch.zeros(size, dtype=torch.int64) for size in sizes), torch.zeros(n_latents))

    def plus(self, other: "Counts") -> "Counts":
        added = {name: value + getattr(other, name) for name, value in vars(self).items() if name != "peak"}
        return Counts(**added, peak=torch.maximum(self.peak, other.peak))


class Survey:
    """Adds up the codes of ``pictures`` pictures over one sampling.

    Every picture has one heat map a latent, pooled to ``grid`` (height, width): its activation at each place, averaged
    over the timesteps. The maps lie in main memory and take 4 · pictures · places · n_latents bytes there.
    """

    def __init__(self, sae: SparseAutoencoder, pictures: int, height: int, width: int) -> None:
        self.sae, self.height, self.width = sae, height, width
        self.grid = min(height, MOST_PLACES), min(width, MOST_PLACES)
        self.maps = torch.zeros(pictures, self.grid[0] * self.grid[1], sae.n_latents)
        self.calls = 0
        self.fired = torch.zeros(pictures, sae.n_latents, dtype=torch.int64)
        self.counts = Counts.zeros(sae.n_latents)
        rows = torch.arange(height) * self.grid[0] // height
        columns = torch.arange(width) * self.grid[1] // width
        self.place = (rows[:, None] * self.grid[1] + columns).flatten()
        self.share = 1 / torch.bincount(self.place, minlength=self.maps.shape[1])

    def fits(self, pictures: int, height: int, width: int) -> bool:
        """Whether maps of this number and size are those that were surveyed so far."""
        return (pictures, height, width) == (len(self.maps), self.height, self.width)

    @torch.no_grad()
    def see(self, tokens: torch.Tensor, timestep: float, sae: SparseAutoencoder | None = None) -> None:
        """Add the ``tokens`` ``[B, N, d_in]`` of one model call; ``sae`` is the SAE's copy on another device."""
        sae = sae or self.sae
        bin = min(int(float(timestep) * BINS / 1000), BINS - 1)
        pictures = torch.arange(len(tokens))
        where = (pictures[:, None] * self.maps.shape[1] + self.place).flatten()
        for part, places in zip(tokens.flatten(0, 1).split(CHUNK), where.split(CHUNK), strict=True):
            self._add(sae.encode_sparse(part), bin, places)
        self.calls += 1
        self.counts.tokens[bin] += tokens.shape[0] * tokens.shape[1]

    def _add(self, code: Code, bin: int, places: torch.Tensor) -> None:
        n = self.sae.n_latents
        values, latents = code.values.float().cpu(), code.latents.cpu()
        chosen = values > 0
        where = places[:, None].expand_as(latents)[chosen]
        values, latents = values[chosen], latents[chosen]
        self.maps.view(-1).index_add_(0, where * n + latents, values * self.share[where % self.maps.shape[1]])
        pictures = where // self.maps.shape[1]
        self.fired.view(-1).index_add_(0, pictures * n + latents, torch.ones_like(latents))
        self.counts.fired[bin] += torch.bincount(latents, minlength=n)
        parts = torch.bincount(latents, (values.double() * UNIT).round(), minlength=n)
        self.counts.sums[bin] += parts.long()
        peak = torch.zeros(n).scatter_reduce(0, latents, values, "amax")
        torch.maximum(self.counts.peak, peak, out=self.counts.peak)

    def finish(self) -> "Seen":
        """What was seen; nothing can be added afterwards."""
        shown = (self.fired > 0).sum(0)
        self.counts.shown.copy_(shown)
        self.counts.ground.copy_(shown * (self.height * self.width * self.calls))
        return Seen((self.maps / max(self.calls, 1)).half(), self.grid, self.counts)


@dataclass(frozen=True, eq=False)
class Seen:
    """A finished survey: ``heat`` ``[B, places, n_latents]`` float16, places in ``grid`` (height, width)."""

    heat: torch.Tensor
    grid: tuple[int, int]
    counts: Counts

    @property
    def strengths(self) -> torch.Tensor:
        """Of each picture and latent the hottest place, ``[B, n_latents]``."""
        return self.heat.amax(1)

    def on_grid(self, grid: tuple[int, int]) -> torch.Tensor:
        """``heat`` pooled or stretched to another ``grid``."""
        if grid == self.grid:
            return self.heat
        maps = self.heat.float().movedim(-1, 1).unflatten(-1, self.grid)
        return torch.nn.functional.adaptive_avg_pool2d(maps, grid).flatten(2).movedim(1, -1).half()

    def firing_in(self, brush: torch.Tensor, picture: int, usual: torch.Tensor | None = None) -> torch.Tensor:
        """How much each latent ``[n_latents]`` tells ``brush`` from the rest of a picture and from other pictures.

        That is ``p (log(p / o) + log(p / u))`` of its mean activation p in the brush ``[h, w]`` (0..1, of any size), o
        elsewhere in the picture, and u over all pictures, ``usual``. So what fills a neon picture is found as
        well as what is at this place of it.
        """
        weight = torch.nn.functional.interpolate(brush[None, None].float(), self.grid, mode="area").flatten()
        heat = self.heat[picture].float()
        inside = weight @ heat / weight.sum().clamp_min(1e-6)
        rest = 1 - weight
        outside = rest @ heat / rest.sum() if rest.sum() > 1e-3 else inside  # all of it is brushed
        told = ((inside + FAINT) / (outside + FAINT)).log()
        if usual is not None:
            told = told + ((inside + FAINT) / (usual + FAINT)).log()
        return inside * told
