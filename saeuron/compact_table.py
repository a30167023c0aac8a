"""A concept table cut down to what is worth sharing: the strongest latents of each concept, in half precision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from .autoencoder import SparseAutoencoder
from .concept_table import ConceptTable
from .contrasts import Contrasts
from .errors import SaeuronError
from .formats import check_floats, check_latents, check_timesteps
from .selection import nearest_column

KEPT = 64
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
    fitted: Contrasts | None = None

    @classmethod
    def of(
        cls,
        table: ConceptTable,
        assigned: Mapping[str, int] | None = None,
        contrasts: Contrasts | None = None,
        kept: int = KEPT,
    ) -> "CompactTable":
        """``table`` cut down to ``kept`` latents a concept, and the one that ``assigned`` (concept → latent) gives it.

        ``contrasts`` are the table's own, where it has some.

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
        return cls(*names, kept, scale, torch.stack(latents, 1).int(), stacked.half(), contrasts)

    def merged(self, other: "CompactTable") -> "CompactTable":
        """This table with the concepts of ``other``, of the same SAE, at this one's timesteps; those of ``other`` win.

        Raises SaeuronError where the SAEs differ.
        """
        other.check_belongs(self.fingerprint)
        kept = [row for row, name in enumerate(self.concepts) if name not in other.concepts]
        columns = [nearest_column(other.timesteps, t) for t in self.timesteps.tolist()]
        width, assigned = min(self.kept, other.kept), self.latents.shape[-1] - self.kept
        scale = max(self.scale, other.scale)

        def columns_of(part: torch.Tensor, first: int, source: "CompactTable") -> torch.Tensor:
            """The strongest latents' columns of ``part``, and where this table has one, that of the assigned latent."""
            behind = part[..., first : first + assigned]
            if part.dtype.is_floating_point:
                behind, part = behind.float().clone(), part.float().clone()
                for values in (behind, part):
                    values[:SCORES] *= source.scale / scale
            return torch.cat([part[..., :width], behind], -1)

        latents = columns_of(self.latents[:, kept], self.kept, self), columns_of(other.latents[:, :, columns], 0, other)
        values = (
            columns_of(self.values[:, :, kept], self.kept, self),
            columns_of(other.values[..., columns, :], 0, other),
        )
        return replace(
            self,
            concepts={name: kind for name, kind in self.concepts.items() if name not in other.concepts}
            | other.concepts,
            kept=width,
            scale=scale,
            latents=torch.cat(latents, 1),
            values=torch.cat(values, 2).half(),
            fitted=self.fitted.merged(other.fitted) if self.fitted and other.fitted else None,
        )

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

    @property
    def has_contrasts(self) -> bool:
        return self.fitted is not None

    def contrasts(self, sae: SparseAutoencoder) -> Contrasts:
        self.check_belongs(sae.fingerprint)
        if self.fitted is None:
            raise SaeuronError("this file's table holds means alone, which tell no map: run `score` for a new one")
        return self.fitted

    def pack(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """The tensors and the JSON values of a file that holds this table."""
        tensors = {"table.latents": self.latents, "table.values": self.values, "table.timesteps": self.timesteps}
        about = {"concepts": self.concepts, "kept": self.kept, "scale": self.scale, "origin": self.origin}
        if self.fitted is not None:
            more, about["contrasts"] = self.fitted.pack()
            tensors |= more
        return tensors, about

    @classmethod
    def unpack(cls, tensors: dict[str, torch.Tensor], about: dict, sae: SparseAutoencoder) -> "CompactTable":
        """The inverse of ``pack``; KeyError or SaeuronError on tensors that ``pack`` does not write."""
        latents, values, timesteps = (tensors[f"table.{name}"] for name in ("latents", "values", "timesteps"))
        check_timesteps(timesteps)
        expected = (2, len(about["concepts"]), len(timesteps))
        fits = latents.dim() == 4 and latents.shape[:-1] == expected and values.shape == (4, *latents.shape)
        if not fits or about["kept"] > min(latents.shape[-1], sae.n_latents):
            raise SaeuronError("the tensors of its table do not have the shape its description gives")
        check_latents(latents, sae.n_latents, "table")
        check_floats(values, "table.values")
        names = dict(about["concepts"]), timesteps, sae.n_latents, sae.fingerprint, dict(about["origin"])
        fitted = None
        if about.get("contrasts") is not None:
            fitted = Contrasts.unpack(tensors, about["contrasts"], names[0], timesteps, sae)
        return cls(*names, about["kept"], float(about["scale"]), latents.int(), values, fitted)
