"""Concept tables: what is asked of concept statistics afterwards, by one read-only interface; and the whole table."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .autoencoder import SparseAutoencoder
from .concept_statistics import ConceptStatistics
from .contrasts import Contrasts
from .errors import SaeuronError, nearest
from .selection import Selection


class ConceptTable(ABC):
    """What every latent does under a concept at a timestep, for one SAE, which it knows by its fingerprint.

    ``concepts`` maps name → kind; ``timesteps`` ``[S]`` are 0…1000. All that is asked of a concept is
    ``[S, n_latents]``. A concept is held against the others of its kind.
    """

    concepts: dict[str, str]
    timesteps: torch.Tensor
    n_latents: int
    fingerprint: str
    origin: dict[str, object]

    @staticmethod
    def load(path: str | Path) -> "ConceptTable":
        """The whole table in a file that `ConceptStatistics.save` wrote; raises SaeuronError as its ``load`` does."""
        return WholeTable(ConceptStatistics.load(path))

    def kind(self, concept: str) -> str:
        """The kind of ``concept``. The one place where a concept's name is looked up: SaeuronError has the nearest."""
        if concept not in self.concepts:
            raise SaeuronError(
                f"concept {concept[:60]!r} is not in the table; the nearest are {nearest(concept, self.concepts)}"
            )
        return self.concepts[concept]

    def of_kind(self, concept: str) -> list[str]:
        """Every concept of the same kind, ``concept`` itself among them."""
        kind = self.kind(concept)
        return [name for name, own in self.concepts.items() if own == kind]

    check_belongs = ConceptStatistics.check_belongs

    @abstractmethod
    def means(self, concept: str) -> torch.Tensor:
        """``μ(i, t, D_c)``."""

    @abstractmethod
    def kind_mean(self, concept: str) -> torch.Tensor:
        """``μ̄(i, t)``: the mean over every concept of the same kind."""

    @abstractmethod
    def max_other_mean(self, concept: str) -> torch.Tensor:
        """``max_c' μ(i, t, D_c')`` over the other concepts of the same kind."""

    @abstractmethod
    def scores(self, concept: str) -> torch.Tensor:
        """SAeUron eq. 7: ``μ(i,t,D_c)/Σ_j μ(j,t,D_c) − μ(i,t,D_¬c)/Σ_j μ(j,t,D_¬c)``."""

    @abstractmethod
    def best_latents(self, concept: str, count: int, per_timestep: bool) -> torch.Tensor:
        """The ``count`` latents of highest score ``[S, count]``, at each timestep or once for all by the mean score.

        Raises SaeuronError where there are not so many.
        """

    @property
    @abstractmethod
    def has_contrasts(self) -> bool:
        """Whether `contrasts` can be given: tables of older versions, and published ones, hold means alone."""

    @abstractmethod
    def contrasts(self, sae: SparseAutoencoder) -> Contrasts:
        """What sets each concept apart; raises SaeuronError as `Contrasts.fit` does."""

    def select(self, concept: str, count: int, strength: float = -1.0, per_timestep: bool = True) -> Selection:
        """The ``count`` latents of highest score; ``strength`` is SAeUron's γ, negative to push the concept away."""
        return self.selection(concept, self.best_latents(concept, count, per_timestep), strength)

    def selection(self, concept: str, latents: torch.Tensor, strength: float) -> Selection:
        """What is known of ``latents`` ``[S, m]`` as those of ``concept``."""
        return Selection(
            timesteps=self.timesteps,
            latents=latents,
            means=self.means(concept).gather(1, latents),
            kind_means=self.kind_mean(concept).gather(1, latents),
            strengths=torch.full(latents.shape, float(strength)),
            concepts=(concept,),
            fingerprint=self.fingerprint,
        )


class WholeTable(ConceptTable):
    """A table that knows all latents, made of statistics; the statistics must not change afterwards."""

    def __init__(self, statistics: ConceptStatistics, residuals: torch.Tensor | None = None) -> None:
        """``residuals`` are those of `Contrasts.fit`."""
        self.statistics, self.residuals = statistics, residuals
        self.concepts, self.timesteps, self.n_latents = statistics.concepts, statistics.timesteps, statistics.n_latents
        self.fingerprint, self.origin = statistics.fingerprint, statistics.origin
        self._contrasts: Contrasts | None = None

    def save(self, path: str | Path) -> None:
        """Write the statistics to ``path``; `ConceptTable.load` reads them."""
        self.statistics.save(path)

    def means(self, concept: str) -> torch.Tensor:
        row = self._row(concept)
        sums, counts = self.statistics.sums[row], self.statistics.counts[row]
        if not (counts > 0).all():
            raise SaeuronError(
                f"concept {concept!r} has no images at some timesteps; run `score` with prompts that show it"
            )
        return sums / counts[:, None]

    def kind_mean(self, concept: str) -> torch.Tensor:
        return self._kinds(self.kind(concept)).mean

    def scores(self, concept: str) -> torch.Tensor:
        own, kind = self.means(concept), self.kind(concept)
        if len(self.of_kind(concept)) == 1:
            raise SaeuronError(f"{concept!r} is the only {kind} in the table: a score needs another")
        row, whole = self._row(concept), self._kinds(kind)
        # All of the kind but this concept: one subtraction, where a sum over the others would cost each concept anew.
        others = (whole.sums - self.statistics.sums[row]).clamp(min=0)
        rest = others / (whole.counts - self.statistics.counts[row])[:, None].clamp(min=1)
        tiny = torch.finfo(own.dtype).tiny
        return own / own.sum(-1, keepdim=True).clamp(min=tiny) - rest / rest.sum(-1, keepdim=True).clamp(min=tiny)

    def max_other_mean(self, concept: str) -> torch.Tensor:
        highest = torch.zeros(len(self.timesteps), self.n_latents)
        for other in self.of_kind(concept):
            if other != concept:
                row = self._row(other)
                counts = self.statistics.counts[row, :, None].clamp(min=1)
                torch.maximum(highest, self.statistics.sums[row] / counts, out=highest)
        return highest

    def best_latents(self, concept: str, count: int, per_timestep: bool) -> torch.Tensor:
        if not 0 <= count <= self.n_latents:
            raise SaeuronError(f"the number of latents is {count} and has to lie between 0 and {self.n_latents}")
        scores = self.scores(concept)
        if per_timestep:
            return scores.topk(count, dim=-1).indices
        return scores.mean(0).topk(count).indices.expand(len(self.timesteps), count).clone()

    @property
    def has_contrasts(self) -> bool:
        return self.statistics.more is not None

    def contrasts(self, sae: SparseAutoencoder) -> Contrasts:
        if self._contrasts is None:
            self._contrasts = Contrasts.fit(self.statistics, sae, self.residuals)
        return self._contrasts

    def _row(self, concept: str) -> int:
        self.kind(concept)
        return self.statistics.row(concept)

    @cached_property
    def _of_kinds(self) -> dict[str, "_Kind"]:
        return {}

    def _kinds(self, kind: str) -> "_Kind":
        if kind not in self._of_kinds:
            rows = [self.statistics.row(name) for name, own in self.concepts.items() if own == kind]
            sums, counts = self.statistics.sums[rows], self.statistics.counts[rows]
            seen = (counts > 0).sum(0)[:, None].clamp(min=1)
            mean = (sums / counts[:, :, None].clamp(min=1)).sum(0) / seen
            self._of_kinds[kind] = _Kind(sums.sum(0), counts.sum(0), mean)
        return self._of_kinds[kind]


@dataclass(frozen=True, eq=False)
class _Kind:
    """What all concepts of a kind have in common: sums ``[S, n]`` and counts ``[S]`` of all, and μ̄ ``[S, n]``."""

    sums: torch.Tensor
    counts: torch.Tensor
    mean: torch.Tensor
