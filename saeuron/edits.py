"""Edits: pure functions on tokens. They know no host and keep no state between calls.

All are called alike, ``edit(tokens, timestep, mask=None)``: ``tokens`` ``[B, N, d_in]`` at ``timestep``; ``mask``
``[B or 1, N]`` in 0..1 says how much of the edit each token receives. The result has the tokens' shape, dtype and
device, and a token that the edit does not concern leaves as it came, bit for bit. Gradients flow through an edit where
the caller keeps them. All raise SaeuronError where the tokens' width is not the SAE's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .autoencoder import SparseAutoencoder
from .detector import Detector, shown
from .errors import SaeuronError
from .selection import Row, Selection

SCALES = ("mean", "norm")


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """The timesteps an edit acts at: from ``start`` down to ``end``, both included. Elsewhere it is the identity."""

    start: float = math.inf
    end: float = -math.inf

    def covers(self, timestep: float) -> bool:
        return self.end <= float(timestep) <= self.start


@dataclass(frozen=True, eq=False)
class Ablate(Window):
    """SAeUron's ablation (§3.3): ``f_i ← γ μ(i,t,D_c) f_i`` for selected latents, where ``f_i > μ̄(i,t)``.

    The reconstruction error is kept, so the result is ``x + Σ_i (f'_i − f_i) W_dec[i]``: only selected latents are
    decoded.

    ``paper_exact`` reproduces the published code instead of the published equation. There the error enters with the
    opposite sign, so that a token leaves as ``x̂_edited + (x̂ − x)``; and the activation is always top-k per token.
    Published γ were tuned with it.

    ``scale`` says what γ is multiplied with: ``mean`` is μ as above; ``norm`` is SAEmnesia's variant
    ``‖f‖ / ‖W_dec[i]‖``, with ``‖f‖`` taken over the token's whole code.
    """

    sae: SparseAutoencoder
    selection: Selection
    paper_exact: bool = False
    scale: str = "mean"

    def __post_init__(self) -> None:
        _check_belongs(self.sae, self.selection)
        if self.scale not in SCALES:
            raise SaeuronError(f"scale {self.scale!r} is unknown; it is one of {', '.join(SCALES)}")

    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.sae.check_width(tokens)
        row = self.selection.at(timestep)
        if len(row.latents) == 0 or not self.covers(timestep):
            return tokens
        row = row.to(tokens.device)
        flat = tokens.reshape(-1, self.sae.d_in)
        weight = _weight(tokens, mask)
        if self.paper_exact:
            return self._published(flat, row, weight).view_as(tokens)
        active = self.sae.encode_at(flat, row.latents, row.thresholds)
        rows = ((active > row.thresholds) & (weight != 0)).any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        norms = self._norms(self.sae.encode_sparse(flat[rows]).values) if self.scale == "norm" else None
        change = weight.expand(len(flat), 1)[rows] * self._change(active[rows], row, norms)
        return _shift(flat, rows, change, self.sae.W_dec[row.latents]).view_as(tokens)

    def _published(self, flat: torch.Tensor, row: Row, weight: torch.Tensor) -> torch.Tensor:
        """``x̂_edited + (x̂ − x)``, which is ``x + 2 (x̂ − x)`` and the change."""
        code = self.sae.encode_sparse(flat, per_token=True)
        active = (code.values[:, :, None] * (code.latents[:, :, None] == row.latents)).sum(1)
        error = self.sae.decode_sparse(code).float() - flat.float()
        change = self._change(active, row, self._norms(code.values)) @ self.sae.W_dec[row.latents].float()
        return (flat.float() + weight * (2 * error + change)).to(flat.dtype)

    def _norms(self, values: torch.Tensor) -> torch.Tensor:
        return values.float().norm(dim=-1, keepdim=True)

    def _change(self, active: torch.Tensor, row: Row, norms: torch.Tensor | None) -> torch.Tensor:
        """``f'_i − f_i`` for activations ``[T, m]``, in float32: γ·μ·f is a square, and leaves float16 early."""
        active = active.float()
        size = norms / self.sae.W_dec[row.latents].float().norm(dim=-1) if self.scale == "norm" else row.means
        return torch.where(active > row.thresholds, (row.strengths * size - 1) * active, 0)


@dataclass(frozen=True, eq=False)
class Replace(Window):
    """PER: tokens on which a selected latent fires take the embedding of tokens of the same map on which none does.

    The SAE only detects (``f_i > μ̄(i,t)``); there is no γ. Which token is taken is drawn by ``seed``, the timestep and
    the token's place: the same for every map, whatever else is in the batch. A map on which every token fires has
    nothing to take and is left as it came. Under a mask between 0 and 1 a token goes that far towards the one it takes.
    """

    sae: SparseAutoencoder
    selection: Selection
    seed: int = 0

    def __post_init__(self) -> None:
        _check_belongs(self.sae, self.selection)

    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.sae.check_width(tokens)
        row = self.selection.at(timestep)
        if len(row.latents) == 0 or not self.covers(timestep):
            return tokens
        row = row.to(tokens.device)
        flat = tokens.reshape(-1, self.sae.d_in)
        active = self.sae.encode_at(flat, row.latents, row.thresholds)
        fires = (active > row.thresholds).any(-1).view(tokens.shape[:-1])
        weight = _weight(tokens, mask).expand(len(flat), 1)
        concerned = (fires & ~fires.all(1, keepdim=True)).flatten() & (weight != 0).squeeze(-1)
        rows = concerned.nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        taken = flat[self._donors(fires, timestep)[rows]]
        if mask is not None:
            taken = flat[rows].lerp(taken, weight[rows].to(taken.dtype))
        return flat.index_copy(0, rows, taken).view_as(tokens)

    def _donors(self, fires: torch.Tensor, timestep: float) -> torch.Tensor:
        """For every token of ``fires`` ``[B, N]``, the flat number ``[B·N]`` of one of its map that does not fire."""
        images, length = fires.shape
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + round(1000 * float(timestep)))
        draw = torch.rand(length, generator=generator).to(fires.device)
        free = (~fires).sum(1, keepdim=True)
        place = (draw * free).long().minimum(free - 1).clamp(min=0)
        in_order = fires.to(torch.uint8).argsort(dim=1, stable=True)  # first those that do not fire
        first = length * torch.arange(images, device=fires.device)[:, None]
        return (first + in_order.gather(1, place)).flatten()


@dataclass(frozen=True, eq=False)
class Shift(Window):
    """Maps that show a concept lose what it adds on average: ``x + Σ_i γ (μ(i,t,D_c) − μ̄(i,t)) W_dec[i]``, every token.

    Ours. ``f_i`` of the selected latents moves by a difference of means, not by a multiple of itself, so that tokens
    stay apart from each other as they were and the picture keeps its shape; γ = −1 moves the concept's mean to that of
    its kind. ``detectors`` tell which maps show the concepts, one for each of ``selections``; all judge the map as it
    came, so that taking one concept out calls up no other. All other maps leave as they came.
    """

    sae: SparseAutoencoder
    selections: Sequence[Selection]
    detectors: Sequence[Detector]

    def __post_init__(self) -> None:
        for part in (*self.selections, *self.detectors):
            _check_belongs(self.sae, part)

    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.sae.check_width(tokens)
        if not self.covers(timestep):
            return tokens
        shows = shown(self.detectors, self.sae, tokens, timestep)
        flat, weight = tokens.reshape(-1, self.sae.d_in), _weight(tokens, mask)
        change = weight * shows.float().repeat_interleave(tokens.shape[1], 0)
        rows = change.any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        directions = torch.stack([self._direction(one.at(timestep).to(tokens.device)) for one in self.selections])
        return _shift(flat, rows, change[rows], directions).view_as(tokens)

    def _direction(self, row: Row) -> torch.Tensor:
        return (row.strengths * (row.means - row.thresholds)) @ self.sae.W_dec[row.latents].float()


@dataclass(frozen=True, eq=False)
class Steer(Window):
    """Turn chosen latents up or down: ``x + Σ_i (f'_i − f_i) W_dec[i]`` with ``f'_i = scale · f_i + add``.

    ``latents`` are numbers of latents, each once. ``add`` reaches every token; without it only tokens on which a
    latent fires change.
    """

    sae: SparseAutoencoder
    latents: tuple[int, ...]
    add: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        latents = tuple(int(latent) for latent in self.latents)
        object.__setattr__(self, "latents", latents)
        wrong = [latent for latent in latents if not 0 <= latent < self.sae.n_latents]
        if wrong or len(set(latents)) < len(latents):
            named = f"{wrong[0]} is none of them" if wrong else "one is given twice"
            raise SaeuronError(f"the SAE's latents are 0 to {self.sae.n_latents - 1}, and {named}")

    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.sae.check_width(tokens)
        if not self.latents or (self.add == 0 and self.scale == 1) or not self.covers(timestep):
            return tokens
        latents = torch.tensor(self.latents, device=tokens.device)
        flat = tokens.reshape(-1, self.sae.d_in)
        change = torch.full((len(flat), len(latents)), float(self.add), device=tokens.device)
        if self.scale != 1:
            floor = torch.zeros(len(latents), device=tokens.device)
            change = change + (self.scale - 1) * self.sae.encode_at(flat, latents, floor).float()
        change = _weight(tokens, mask) * change
        rows = change.any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        return _shift(flat, rows, change[rows], self.sae.W_dec[latents]).view_as(tokens)


def join(one: Window, other: Window) -> Window | None:
    """Two edits as one that costs one encode, or None where they differ in more than their concepts."""
    if type(one) is not type(other) or one.sae.fingerprint != other.sae.fingerprint or _options(one) != _options(other):
        return None
    if isinstance(one, Ablate) and torch.equal(one.selection.timesteps, other.selection.timesteps):
        return replace(one, selection=Selection.merge([one.selection, other.selection]))
    if isinstance(one, Shift):
        selections = [*one.selections, *other.selections]
        names = [name for selection in selections for name in selection.concepts]
        if len(set(names)) == len(names):
            return replace(one, selections=selections, detectors=[*one.detectors, *other.detectors])
    return None


def _options(edit: Window) -> dict[str, object]:
    concerned = ("sae", "selection", "selections", "detectors")
    return {name: value for name, value in vars(edit).items() if name not in concerned}


def _check_belongs(sae: SparseAutoencoder, selection: Selection | Detector) -> None:
    if selection.fingerprint != sae.fingerprint:
        raise SaeuronError(
            f"the selection was made with the SAE {selection.fingerprint} and this SAE is "
            f"{sae.fingerprint}: use the SAE and the table that belong together"
        )


def _weight(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """How much each of the flattened tokens receives, ``[B·N, 1]``, or a 1 ``[1, 1]`` for all."""
    if mask is None:
        return torch.ones(1, 1, device=tokens.device)
    return mask.to(tokens.device, torch.float32).expand(tokens.shape[:-1]).reshape(-1, 1)


def _shift(flat: torch.Tensor, rows: torch.Tensor, change: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``flat`` ``[T, d_in]`` with ``change`` ``[R, m]`` × ``directions`` ``[m, d_in]`` added at ``rows`` ``[R]``."""
    moved = flat[rows].float() + change @ directions.float()
    return flat.index_copy(0, rows, moved.to(flat.dtype))
