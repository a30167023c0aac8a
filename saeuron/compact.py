"""A concept table cut down to what is worth sharing: the strongest latents of each concept, in half precision."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .concepts import ConceptTable
from .errors import SaeuronError, nearest
from .selection import Selection

KEPT = 64
MEANS, AVERAGES, RIVALS, SCORES = range(4)


@dataclass(frozen=True, eq=False)
class CompactTable:
    """The ``kept`` latents of highest score of every concept: at each timestep, and once for all timesteps.

    It selects as the ConceptTable that it was made of, up to ``kept`` latents and the rounding of float16, at a few
    megabytes where that one has hundreds. ``latents`` is ``[2, concepts, timesteps, columns]`` int32, strongest first:
    those chosen at each timestep, and those chosen once. A column behind the first ``kept`` holds latents that training
    assigned. ``values`` is ``[4, 2, concepts, timesteps, columns]`` float16: the means, the averages and the rivals
    over ``scale``, and the scores.
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
            scores = table.scores(concept)
            once = scores.mean(0).topk(kept).indices.expand(len(scores), kept)
            chosen = torch.stack([scores.topk(kept, dim=-1).indices, once])
            if assigned:
                own = chosen[1, :, :1] if concept not in assigned else torch.full((len(scores), 1), assigned[concept])
                chosen = torch.cat([chosen, own.expand(2, -1, -1)], -1)
            dense = (table.means(concept), table.average(concept), table.rival(concept), scores)
            values.append(torch.stack([field.expand(2, -1, -1).gather(-1, chosen) for field in dense]))
            latents.append(chosen)
        stacked = torch.stack(values, 2)
        scale = float(stacked[:SCORES].max().clamp(min=torch.finfo(torch.float32).tiny))
        stacked[:SCORES] /= scale  # so that float16 neither overflows nor runs out of digits
        names = dict(table.concepts), table.timesteps, table.n_latents, table.fingerprint, table.origin
        return cls(*names, kept, scale, torch.stack(latents, 1).int(), stacked.half())

    def row(self, concept: str) -> int:
        names = list(self.concepts)
        if concept not in self.concepts:
            raise SaeuronError(f"concept {concept!r} is not in the table; the nearest are {nearest(concept, names)}")
        return names.index(concept)

    check_belongs = ConceptTable.check_belongs

    def means(self, concept: str) -> torch.Tensor:
        """``μ(i, t, D_c)`` ``[timesteps, n_latents]``, 0 where the table keeps nothing."""
        return self._dense(MEANS, concept) * self.scale

    def average(self, concept: str) -> torch.Tensor:
        """``μ̄(i, t)`` ``[timesteps, n_latents]``, 0 where the table keeps nothing."""
        return self._dense(AVERAGES, concept) * self.scale

    def rival(self, concept: str) -> torch.Tensor:
        """``max_c' μ(i, t, D_c')`` ``[timesteps, n_latents]``, 0 where the table keeps nothing."""
        return self._dense(RIVALS, concept) * self.scale

    def scores(self, concept: str) -> torch.Tensor:
        """SAeUron eq. 7 ``[timesteps, n_latents]``, 0 where the table keeps nothing."""
        return self._dense(SCORES, concept)

    def _dense(self, field: int, concept: str) -> torch.Tensor:
        row = self.row(concept)
        dense = torch.zeros(len(self.timesteps), self.n_latents)
        for block in range(2):
            dense.scatter_(1, self.latents[block, row].long(), self.values[field, block, row].float())
        return dense

    def select(self, concept: str, count: int, strength: float = -1.0, per_timestep: bool = True) -> Selection:
        """The ``count`` latents of highest score, as ``ConceptTable.select``; SaeuronError where it keeps fewer."""
        row = self.row(concept)
        if not 0 <= count <= self.kept:
            raise SaeuronError(
                f"the number of latents is {count} and this shared table keeps {self.kept} a concept: "
                f"give 0 to {self.kept}, or run `score` for a whole table"
            )
        latents = self.latents[0 if per_timestep else 1, row, :, :count].long()
        return Selection.of(self, concept, latents, strength)

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
