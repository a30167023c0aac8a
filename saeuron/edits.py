"""Edits: pure functions on tokens. They know no host and keep no state between calls.

All are called alike, ``edit(tokens, timestep, mask=None)``: ``tokens`` ``[B, N, d_in]`` at ``timestep``; ``mask``
``[B or 1, N]`` in 0..1 says how much of the edit each token receives. The result has the tokens' shape, dtype and
device, and a token that the edit does not concern leaves as it came, bit for bit. Gradients flow through an edit where
the caller keeps them. A GPU is waited for once in a call at most, and a call takes about as much memory as one
encode of its tokens. All raise SaeuronError where the tokens' width is not the SAE's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from .autoencoder import SparseAutoencoder
from .contrasts import Contrasts
from .detector import Detector, Detectors
from .errors import SaeuronError
from .selection import SelectedLatents, Selection

SCALES = ("mean", "norm")


@dataclass(frozen=True, eq=False, kw_only=True)
class Window:
    """The timesteps an edit acts at: from ``start`` down to ``end``, both included. Elsewhere it is the identity."""

    start: float = math.inf
    end: float = -math.inf

    def covers(self, timestep: float) -> bool:
        return self.end <= float(timestep) <= self.start


@dataclass(frozen=True, eq=False)
class Edit(Window):
    """What all edits share: the SAE, the window, and that tokens of another width are refused."""

    sae: SparseAutoencoder

    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        self.sae.check_width(tokens)
        if not tokens.numel() or not self.covers(timestep) or self.is_idle(timestep):
            return tokens
        flat = tokens.reshape(-1, self.sae.d_in)
        edited = self.apply(flat, len(tokens), timestep, _weight(tokens, mask))
        return tokens if edited is flat else edited.view_as(tokens)

    def is_idle(self, timestep: float) -> bool:
        """Whether there is nothing to do at ``timestep``, whatever the tokens are."""
        return False

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        """``flat`` ``[B·N, d_in]``, the tokens of so many maps, edited; the very same tensor where none changes.

        ``weight`` ``[B·N or 1, 1]`` says how much of the edit each token receives.
        """
        raise NotImplementedError

    @property
    def options(self) -> dict[str, object]:
        """How the edit is made, whatever it is made of."""
        return {"start": self.start, "end": self.end}

    def joined(self, other: "Edit") -> "Edit | None":
        """This edit and another of its class and options as one, or None where there is no such edit."""
        return None

    def _check_belong(self, *parts: Selection | Detector | Contrasts) -> None:
        for part in parts:
            if part.fingerprint != self.sae.fingerprint:
                raise SaeuronError(
                    f"the selection was made with the SAE {part.fingerprint} and this SAE is "
                    f"{self.sae.fingerprint}: use the SAE and the table that belong together"
                )


@dataclass(frozen=True, eq=False)
class _OfSelection(Edit):
    """An edit of one selection, which says at every timestep which latents are meant."""

    selection: Selection

    def __post_init__(self) -> None:
        self._check_belong(self.selection)

    def is_idle(self, timestep: float) -> bool:
        return len(self.selection.at(timestep).latents) == 0


@dataclass(frozen=True, eq=False)
class Ablate(_OfSelection):
    """SAeUron's ablation (§3.3): ``f_i ← γ μ(i,t,D_c) f_i`` for selected latents, where ``f_i > μ̄(i,t)``.

    The reconstruction error is kept, so the result is ``x + Σ_i (f'_i − f_i) W_dec[i]``: only selected latents are
    decoded.

    ``paper_exact`` reproduces the published code instead of the published equation. There the error enters with the
    opposite sign, so that a token leaves as ``x̂_edited + (x̂ − x)``; and the activation is always top-k per token.
    Published γ were tuned with it.

    ``scale`` says what γ is multiplied with: ``mean`` is μ as above; ``norm`` is SAEmnesia's variant
    ``‖f‖ / ‖W_dec[i]‖``, with ``‖f‖`` taken over the token's whole code.
    """

    paper_exact: bool = False
    scale: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in SCALES:
            raise SaeuronError(f"scale {self.scale!r} is unknown; it is one of {', '.join(SCALES)}")

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        chosen = self.selection.at(timestep, flat.device)
        if self.paper_exact:
            return self._published(flat, chosen, weight)
        rows, active = self.sae.encode_where(flat, chosen.latents, chosen.kind_means)
        if len(rows) == 0:
            return flat
        norms = self._norms(self.sae.encode_sparse(flat[rows]).values) if self.scale == "norm" else None
        change = weight.expand(len(flat), 1)[rows] * self._change(active, chosen, norms)
        return move(flat, rows, change, self.sae.W_dec[chosen.latents])

    @property
    def options(self) -> dict[str, object]:
        return super().options | {"paper_exact": self.paper_exact, "scale": self.scale}

    def joined(self, other: "Ablate") -> "Ablate | None":
        if not torch.equal(self.selection.timesteps, other.selection.timesteps):
            return None
        return replace(self, selection=Selection.merge([self.selection, other.selection]))

    def _published(self, flat: torch.Tensor, chosen: SelectedLatents, weight: torch.Tensor) -> torch.Tensor:
        """``x̂_edited + (x̂ − x)``, which is ``x + 2 (x̂ − x)`` and the change."""
        code = self.sae.encode_sparse(flat, per_token=True)
        active = (code.values[:, :, None] * (code.latents[:, :, None] == chosen.latents)).sum(1)
        error = self.sae.decode_sparse(code).float() - flat.float()
        change = self._change(active, chosen, self._norms(code.values)) @ self.sae.W_dec[chosen.latents].float()
        return (flat.float() + weight * (2 * error + change)).to(flat.dtype)

    def _norms(self, values: torch.Tensor) -> torch.Tensor:
        return values.float().norm(dim=-1, keepdim=True)

    def _change(self, active: torch.Tensor, chosen: SelectedLatents, norms: torch.Tensor | None) -> torch.Tensor:
        """``f'_i − f_i`` for activations ``[T, m]``, in float32: γ·μ·f is a square, and leaves float16 early."""
        active = active.float()
        size = norms / self.sae.W_dec[chosen.latents].float().norm(dim=-1) if self.scale == "norm" else chosen.means
        return torch.where(active > chosen.kind_means, (chosen.strengths * size - 1) * active, 0)


@dataclass(frozen=True, eq=False)
class Replace(_OfSelection):
    """PER: tokens on which a selected latent fires take the embedding of tokens of the same map on which none does.

    The SAE only detects (``f_i > μ̄(i,t)``); there is no γ. Which token is taken is drawn by ``seed``, the timestep and
    the token's place: the same for every map, whatever else is in the batch. A map on which every token fires has
    nothing to take and is left as it came. Under a mask between 0 and 1 a token goes that far towards the one it takes.
    """

    seed: int = 0

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        chosen = self.selection.at(timestep, flat.device)
        rows, active = self.sae.encode_where(flat, chosen.latents, chosen.kind_means)
        if len(rows) == 0:
            return flat
        fires = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        fires = fires.index_copy(0, rows, (active > chosen.kind_means).any(-1)).view(maps, -1)
        part = torch.where(fires & ~fires.all(1, keepdim=True), 1.0, 0.0).view(-1, 1) * weight
        taken, part = flat[self._donors(fires, timestep)[rows]], part[rows].to(flat.dtype)
        return put(flat, rows, torch.where(part == 1, taken, flat[rows].lerp(taken, part)), part != 0)

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
class Shift(Edit):
    """Maps that show a concept lose what it adds on average: ``x + Σ_i γ (μ(i,t,D_c) − μ̄(i,t)) W_dec[i]``, every token.

    Ours. ``f_i`` of the selected latents moves by a difference of means, not by a multiple of itself, so that tokens
    stay apart from each other as they were and the picture keeps its shape; γ = −1 moves the concept's mean to that of
    its kind. ``detectors`` tell which maps show the concepts, one for each of ``selections``; all judge the map as it
    came, so that taking one concept out calls up no other. All other maps leave as they came.
    """

    selections: Sequence[Selection]
    detectors: Sequence[Detector]
    detecting: Detectors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_belong(*self.selections, *self.detectors)
        if self.detecting is None or self.detecting.all is not self.detectors:
            object.__setattr__(self, "detecting", Detectors(self.detectors))

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        maybe, shows = self.detecting.shown(self.sae, flat.view(maps, -1, self.sae.d_in), timestep)
        if len(maybe) == 0:
            return flat
        length = len(flat) // maps
        rows = (maybe[:, None] * length + torch.arange(length, device=flat.device)).flatten()
        change = weight.expand(len(flat), 1)[rows] * shows.float().repeat_interleave(length, 0)
        directions = torch.stack([self._direction(one.at(timestep, flat.device)) for one in self.selections])
        return move(flat, rows, change, directions)

    def joined(self, other: "Shift") -> "Shift | None":
        selections = [*self.selections, *other.selections]
        names = [name for selection in selections for name in selection.concepts]
        if len(set(names)) < len(names):
            return None
        return replace(self, selections=selections, detectors=[*self.detectors, *other.detectors], detecting=None)

    def _direction(self, chosen: SelectedLatents) -> torch.Tensor:
        return (chosen.strengths * (chosen.means - chosen.kind_means)) @ self.sae.W_dec[chosen.latents].float()


@dataclass(frozen=True, eq=False)
class Steer(Edit):
    """Turn chosen latents up or down: ``x + Σ_i (f'_i − f_i) W_dec[i]`` with ``f'_i = scale · f_i + add``.

    ``latents`` are numbers of latents, each once. ``add`` reaches every token; without it only tokens on which a
    latent fires change.
    """

    latents: tuple[int, ...]
    add: float = 0.0
    scale: float = 1.0
    placed: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        latents = tuple(int(latent) for latent in self.latents)
        object.__setattr__(self, "latents", latents)
        wrong = [latent for latent in latents if not 0 <= latent < self.sae.n_latents]
        if wrong or len(set(latents)) < len(latents):
            named = f"{wrong[0]} is none of them" if wrong else "one is given twice"
            raise SaeuronError(f"the SAE's latents are 0 to {self.sae.n_latents - 1}, and {named}")

    def is_idle(self, timestep: float) -> bool:
        return not self.latents or (self.add == 0 and self.scale == 1)

    def apply(self, flat: torch.Tensor, maps: int, timestep: float, weight: torch.Tensor) -> torch.Tensor:
        if flat.device not in self.placed:
            self.placed[flat.device] = torch.tensor(self.latents, device=flat.device)
        latents = self.placed[flat.device]
        rows, change = torch.arange(len(flat), device=flat.device), weight.new_full((len(flat), len(latents)), self.add)
        if self.scale != 1:
            firing, active = self.sae.encode_where(flat, latents, torch.zeros(len(latents), device=flat.device))
            scaled = (self.scale - 1) * active.float()
            rows, change = (rows, change.index_add(0, firing, scaled)) if self.add else (firing, scaled)
        if len(rows) == 0:
            return flat
        return move(flat, rows, weight.expand(len(flat), 1)[rows] * change, self.sae.W_dec[latents])


def join(one: Edit, other: Edit) -> Edit | None:
    """Two edits as one that costs one encode, or None where they differ in more than their concepts."""
    alike = type(one) is type(other) and one.sae.fingerprint == other.sae.fingerprint
    return one.joined(other) if alike and one.options == other.options else None


def _weight(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """How much each of the flattened tokens receives, ``[B·N, 1]``, or a 1 ``[1, 1]`` for all."""
    if mask is None:
        return torch.ones(1, 1, device=tokens.device)
    return mask.to(tokens.device, torch.float32).expand(tokens.shape[:-1]).reshape(-1, 1)


def move(flat: torch.Tensor, rows: torch.Tensor, change: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``flat`` ``[T, d_in]`` with ``change`` ``[R, m]`` × ``directions`` ``[m, d_in]`` added at ``rows`` ``[R]``."""
    moved = flat[rows].float() + change @ directions.float()
    if flat.dtype == torch.float16:  # whose largest number is small, and an infinity would blacken the picture
        moved = moved.clamp(torch.finfo(flat.dtype).min, torch.finfo(flat.dtype).max)
    return put(flat, rows, moved.to(flat.dtype), (change != 0).any(-1, keepdim=True))


def put(flat: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """``flat`` ``[T, d_in]`` with ``tokens`` ``[R, d_in]`` at ``rows`` ``[R]``, but only ``where`` ``[R, 1]`` says so.

    The very same tensor where that is nowhere, on a CPU: a GPU is not waited for to know.
    """
    if is_free_to_ask(flat) and not where.any():
        return flat
    return flat.index_copy(0, rows, torch.where(where, tokens, flat[rows]))


def is_free_to_ask(tensor: torch.Tensor) -> bool:
    """Whether what ``tensor`` holds is known without waiting for a device."""
    return tensor.device.type == "cpu"
