"""Concept tables: what is asked of concept statistics afterwards. One read-only interface, whole or compact."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .concept_statistics import ConceptStatistics
from .errors import SaeuronError, nearest
from .selection import Selection

KEPT = 64


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
                f"concept {concept!r} is not in the table; the nearest are {nearest(concept, self.concepts)}"
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

    def __init__(self, statistics: ConceptStatistics) -> None:
        self.statistics = statistics
        self.concepts, self.timesteps, self.n_latents = statistics.concepts, statistics.timesteps, statistics.n_latents
        self.fingerprint, self.origin = statistics.fingerprint, statistics.origin

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


MEANS, KIND_MEANS, MAX_OTHER_MEANS, SCORES = range(4)


@dataclass(frozen=True, eq=False)
class CompactTable(ConceptTable):
    """The ``kept`` latents of highest score of every concept: at each timestep, and once for all timesteps.

    It selects as the table that it was made of, up to ``kept`` latents and the rounding of float16, at a few megabytes
    where that one has hundreds. ``latents`` is ``[2, concepts, timesteps, columns]`` int32, strongest first: those
    chosen at each timestep, and those chosen once. A column behind the first ``kept`` holds latents that training
    assigned. ``values`` is ``[4, 2, concepts, timesteps, columns]`` float16: the means, the kind means and the largest
    means of another concept, over ``scale``, and the scores. What is asked of a latent that is not kept is 0.
    """

    concepts: dict[str, str]
    timesteps: torch.Tensor
    n_latents: int
    fingerprint: str
    origin: dict[str, object]
    kept: int
    scale: float
    latents: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, table: ConceptTable, assigned: Mapping[str, int] | None = None, kept: int = KEPT) -> "CompactTable":
        """``table`` cut down to ``kept`` latents a concept, and the one that ``assigned`` (concept → latent) gives it.

        Raises SaeuronError as ``table.scores`` does, where a concept has no images or is the only one of its kind.
        """
        kept, assigned = min(kept, table.n_latents), assigned or {}
        latents, values = [], []
        for concept in table.concepts:
            chosen = torch.stack([table.best_latents(concept, kept, per_timestep) for per_timestep in (True, False)])
            if assigned:
                steps = len(table.timesteps)
                own = chosen[1, :, :1] if concept not in assigned else torch.full((steps, 1), assigned[concept])
                chosen = torch.cat([chosen, own.expand(2, -1, -1)], -1)
            asked = (table.means, table.kind_mean, table.max_other_mean, table.scores)
            values.append(torch.stack([ask(concept).expand(2, -1, -1).gather(-1, chosen) for ask in asked]))
            latents.append(chosen)
        stacked = torch.stack(values, 2)
        scale = float(stacked[:SCORES].max().clamp(min=torch.finfo(torch.float32).tiny))
        stacked[:SCORES] /= scale  # so that float16 neither overflows nor runs out of digits
        names = dict(table.concepts), table.timesteps, table.n_latents, table.fingerprint, table.origin
        return cls(*names, kept, scale, torch.stack(latents, 1).int(), stacked.half())

    def means(self, concept: str) -> torch.Tensor:
        return self._dense(MEANS, concept) * self.scale

    def kind_mean(self, concept: str) -> torch.Tensor:
        return self._dense(KIND_MEANS, concept) * self.scale

    def max_other_mean(self, concept: str) -> torch.Tensor:
        return self._dense(MAX_OTHER_MEANS, concept) * self.scale

    def scores(self, concept: str) -> torch.Tensor:
        return self._dense(SCORES, concept)

    def best_latents(self, concept: str, count: int, per_timestep: bool) -> torch.Tensor:
        row = self._row(concept)
        if not 0 <= count <= self.kept:
            raise SaeuronError(
                f"the number of latents is {count} and this shared table keeps {self.kept} a concept: "
                f"give 0 to {self.kept}, or run `score` for a whole table"
            )
        return self.latents[0 if per_timestep else 1, row, :, :count].long()

    def _row(self, concept: str) -> int:
        self.kind(concept)
        return list(self.concepts).index(concept)

    def _dense(self, field: int, concept: str) -> torch.Tensor:
        row = self._row(concept)
        dense = torch.zeros(len(self.timesteps), self.n_latents)
        for block in range(2):
            dense.scatter_(1, self.latents[block, row].long(), self.values[field, block, row].float())
        return dense

    def pack(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """The tensors and the JSON values of a file that holds this table."""
        tensors = {"table.latents": self.latents, "table.values": self.values, "table.timesteps": self.timesteps}
        return tensors, {"concepts": self.concepts, "kept": self.kept, "scale": self.scale, "origin": self.origin}

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor], about: dict, n_latents: int, fingerprint: str) -> "CompactTable":
        """The inverse of ``pack``; raises KeyError, TypeError or ValueError on what ``pack`` does not write."""
        latents, values, timesteps = (tensors[f"table.{name}"] for name in ("latents", "values", "timesteps"))
        expected = (2, len(about["concepts"]), len(timesteps))
        if latents.shape[:-1] != expected or values.shape != (4, *latents.shape) or about["kept"] > latents.shape[-1]:
            raise ValueError("the tensors of its table do not have the shape its description gives")
        if latents.numel() and not 0 <= int(latents.min()) <= int(latents.max()) < n_latents:
            raise ValueError("its table names latents that the SAE does not have")
        names = dict(about["concepts"]), timesteps, n_latents, fingerprint, dict(about["origin"])
        return cls(*names, int(about["kept"]), float(about["scale"]), latents, values)
