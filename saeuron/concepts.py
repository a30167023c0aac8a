"""The concept table: what every latent does, on average, when a concept is asked for."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from .errors import SaeuronError, nearest
from .files import read_tensors, write_tensors
from .selection import Selection

FORMAT, VERSION = "saeuron-concept-table", 1


class ConceptTable:
    """Streaming means ``μ(i, t, D_c)`` of latent activations, per concept and timestep (SAeUron §3.2).

    Memory is concepts × timesteps × latents and never grows with the number of prompts. Concepts come in ``kinds``
    (``object``, ``style``); a concept is scored against the others of its kind.
    """

    def __init__(
        self,
        concepts: dict[str, str],
        timesteps: Sequence[int],
        n_latents: int,
        fingerprint: str,
        origin: dict[str, object] | None = None,
    ) -> None:
        """``concepts`` maps name → kind; ``fingerprint`` is the SAE's, without which latent numbers mean nothing.

        ``origin`` is what the file says of where the SAE reads, as ``SparseAutoencoder.origin`` gives it.
        """
        self.concepts = dict(concepts)
        self.timesteps = torch.tensor(list(timesteps), dtype=torch.long)
        self.n_latents, self.fingerprint, self.origin = n_latents, fingerprint, origin or {}
        self.sums = torch.zeros(len(self.concepts), len(self.timesteps), n_latents)
        self.counts = torch.zeros(len(self.concepts), len(self.timesteps))
        self._rows = {name: row for row, name in enumerate(self.concepts)}
        self._columns = {int(t): column for column, t in enumerate(self.timesteps)}

    def row(self, concept: str) -> int:
        if concept not in self._rows:
            raise SaeuronError(
                f"concept {concept!r} is not in the table; the nearest are {nearest(concept, self._rows)}"
            )
        return self._rows[concept]

    def add(self, concepts: Sequence[Sequence[str]], timestep: int, means: torch.Tensor) -> None:
        """Add images: ``means`` ``[B, n_latents]`` over each image's tokens, ``concepts[b]`` the names it shows."""
        column = self._columns.get(int(timestep))
        if column is None:
            raise SaeuronError(f"timestep {timestep} is not one of the table's {len(self.timesteps)}")
        pairs = [(self.row(name), image) for image, names in enumerate(concepts) for name in names]
        rows = torch.tensor([row for row, _ in pairs], dtype=torch.long)
        images = torch.tensor([image for _, image in pairs], dtype=torch.long, device=means.device)
        self.sums[:, column].index_add_(0, rows, means.index_select(0, images).to(self.sums))
        self.counts[:, column].index_add_(0, rows, torch.ones(len(pairs)))

    def check_belongs(self, fingerprint: str) -> None:
        """Raise SaeuronError unless this table was made with the SAE of this fingerprint."""
        if self.fingerprint != fingerprint:
            raise SaeuronError(
                f"the concept table was made with the SAE {self.fingerprint} and this SAE is {fingerprint}: "
                "use the SAE the table came with, or run `score` for this one"
            )

    def _kin(self, concept: str) -> torch.Tensor:
        kind = self.concepts[concept]
        return torch.tensor([row for name, row in self._rows.items() if self.concepts[name] == kind])

    def means(self, concept: str) -> torch.Tensor:
        """``μ(i, t, D_c)``, ``[timesteps, n_latents]``."""
        row = self.row(concept)
        if not (self.counts[row] > 0).all():
            raise SaeuronError(
                f"concept {concept!r} has no images at some timesteps; run `score` with prompts that show it"
            )
        return self.sums[row] / self.counts[row, :, None]

    def average(self, concept: str) -> torch.Tensor:
        """``μ̄(i, t)``: the mean over every concept of the same kind that has images, ``[timesteps, n_latents]``."""
        self.row(concept)
        kin = self._kin(concept)
        seen = (self.counts[kin] > 0).sum(0)[:, None].clamp(min=1)
        return (self.sums[kin] / self.counts[kin, :, None].clamp(min=1)).sum(0) / seen

    def scores(self, concept: str) -> torch.Tensor:
        """SAeUron eq. 7: ``μ(i,t,D_c)/Σ_j μ(j,t,D_c) − μ(i,t,D_¬c)/Σ_j μ(j,t,D_¬c)``, ``[timesteps, n_latents]``."""
        own = self.means(concept)
        kin = self._kin(concept)
        others = kin[kin != self.row(concept)]
        if len(others) == 0:
            raise SaeuronError(f"{concept!r} is the only {self.concepts[concept]} in the table: a score needs another")
        rest = self.sums[others].sum(0) / self.counts[others].sum(0)[:, None].clamp(min=1)
        tiny = torch.finfo(own.dtype).tiny
        return own / own.sum(-1, keepdim=True).clamp(min=tiny) - rest / rest.sum(-1, keepdim=True).clamp(min=tiny)

    def rival(self, concept: str) -> torch.Tensor:
        """``max_c' μ(i, t, D_c')`` over the other concepts of the same kind, ``[timesteps, n_latents]``."""
        row, kin = self.row(concept), self._kin(concept)
        highest = torch.zeros(len(self.timesteps), self.n_latents)
        for other in kin[kin != row].tolist():
            torch.maximum(highest, self.sums[other] / self.counts[other, :, None].clamp(min=1), out=highest)
        return highest

    def select(self, concept: str, count: int, strength: float = -1.0, per_timestep: bool = True) -> Selection:
        """The ``count`` latents of highest score, at each timestep or once for all by the mean score.

        ``strength`` is SAeUron's γ, negative to push the concept away. Raises SaeuronError where ``count`` is not
        between 0 and the number of latents.
        """
        if not 0 <= count <= self.n_latents:
            raise SaeuronError(f"the number of latents is {count} and has to lie between 0 and {self.n_latents}")
        scores = self.scores(concept)
        if per_timestep:
            latents = scores.topk(count, dim=-1).indices
        else:
            latents = scores.mean(0).topk(count).indices.expand(len(self.timesteps), count).clone()
        return Selection.of(self, concept, latents, strength)

    def merge(self, other: "ConceptTable") -> None:
        """Add what another process gathered for the same concepts, timesteps and SAE."""
        # As lists: rows follow the order of the concepts, which dictionaries leave out when they compare.
        same = list(other.concepts.items()) == list(self.concepts.items())
        if not same or not torch.equal(other.timesteps, self.timesteps):
            raise SaeuronError("tables merge only when their concepts and timesteps are the same, in the same order")
        other.check_belongs(self.fingerprint)
        self.sums += other.sums
        self.counts += other.counts

    def save(self, path: str | Path) -> None:
        description = {
            "format": FORMAT,
            "version": VERSION,
            "concepts": self.concepts,
            "fingerprint": self.fingerprint,
            "n_latents": self.n_latents,
            "origin": self.origin,
        }
        tensors = {"sums": self.sums, "counts": self.counts, "timesteps": self.timesteps}
        write_tensors(Path(path), tensors, {"saeuron": json.dumps(description)})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptTable":
        """Load a table; raises SaeuronError naming the file where it is missing, broken or something else."""
        tensors, metadata = read_tensors(Path(path))
        try:
            description = json.loads(metadata["saeuron"])
            if (description["format"], description["version"]) != (FORMAT, VERSION):
                raise ValueError(f"it is {description['format']} {description['version']}")
            table = cls(
                description["concepts"],
                tensors["timesteps"].tolist(),
                tensors["sums"].shape[-1],
                description["fingerprint"],
                description["origin"],
            )
            if tensors["sums"].shape != table.sums.shape or tensors["counts"].shape != table.counts.shape:
                raise ValueError("its tensors do not have the shape its description gives")
            table.sums, table.counts = tensors["sums"], tensors["counts"]
        except KeyError as error:
            raise SaeuronError(f"{path} is not a concept table: it lacks {error}") from None
        except (ValueError, TypeError, IndexError) as error:
            raise SaeuronError(f"{path} is not a concept table of format {FORMAT} {VERSION}: {error}") from None
        return table
