"""Concept statistics: what is gathered of every latent while labelled pictures are drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .errors import SaeuronError, nearest
from .files import read_tensors, write_tensors
from .hookpoints import whole_timestep

FORMAT, VERSIONS = "saeuron-concept-table", (1, 2)


class ConceptStatistics:
    """Counts, sums and squares of *map means*: of each latent's mean over the tokens of one picture's map.

    Concepts come in kinds (``object``, ``style``); a picture may show several. Sums are kept per concept and timestep,
    squares per kind and timestep, which is what the variance within concepts is made of. All are sums, so halves that
    two processes gathered add up exactly, and a concept can be added later. Memory is (concepts + kinds) × timesteps ×
    latents and never grows with the number of pictures.
    """

    def __init__(
        self,
        concepts: Mapping[str, str],
        timesteps: Sequence[int],
        n_latents: int,
        fingerprint: str,
        origin: Mapping[str, object] | None = None,
    ) -> None:
        """``concepts`` maps name → kind; ``fingerprint`` is the SAE's, without which latent numbers mean nothing.

        ``timesteps`` are the sampler's, 0…1000; ``origin`` says where the SAE reads (`SparseAutoencoder.origin`).
        """
        self.concepts = dict(concepts)
        self.timesteps = torch.tensor(list(timesteps), dtype=torch.long)
        self.n_latents, self.fingerprint, self.origin = n_latents, fingerprint, dict(origin or {})
        self.sums = torch.zeros(len(self.concepts), len(self.timesteps), n_latents)
        self.counts = torch.zeros(len(self.concepts), len(self.timesteps))
        self.squares: torch.Tensor | None = torch.zeros(len(self.kinds), len(self.timesteps), n_latents)
        self._rows = {name: row for row, name in enumerate(self.concepts)}
        self._columns = {int(t): column for column, t in enumerate(self.timesteps)}

    @property
    def kinds(self) -> list[str]:
        """Every kind once, in the order of ``squares``."""
        return list(dict.fromkeys(self.concepts.values()))

    def row(self, concept: str) -> int:
        """The place of ``concept`` in ``sums`` and ``counts``; raises SaeuronError with the nearest names."""
        if concept not in self._rows:
            raise SaeuronError(
                f"concept {concept!r} is not in the table; the nearest are {nearest(concept, self._rows)}"
            )
        return self._rows[concept]

    def add(self, concepts: Sequence[Sequence[str]], timestep: int, means: torch.Tensor) -> None:
        """Add pictures: ``means`` ``[B, n_latents]`` over each one's tokens, ``concepts[b]`` the names it shows."""
        column = self._columns.get(whole_timestep(timestep))
        if column is None:
            raise SaeuronError(f"timestep {timestep} is not one of the table's {len(self.timesteps)}")
        pairs = [(self.row(name), picture) for picture, names in enumerate(concepts) for name in names]
        rows = torch.tensor([row for row, _ in pairs], dtype=torch.long)
        pictures = torch.tensor([picture for _, picture in pairs], dtype=torch.long, device=means.device)
        shown = means.index_select(0, pictures).to(self.sums)
        self.sums[:, column].index_add_(0, rows, shown)
        self.counts[:, column].index_add_(0, rows, torch.ones(len(pairs)))
        if self.squares is not None:
            kinds = self.kinds
            kind_of_row = torch.tensor([kinds.index(kind) for kind in self.concepts.values()], dtype=torch.long)
            self.squares[:, column].index_add_(0, kind_of_row[rows], shown.square())

    def check_belongs(self, fingerprint: str) -> None:
        """Raise SaeuronError unless these were gathered with the SAE of this fingerprint."""
        if self.fingerprint != fingerprint:
            raise SaeuronError(
                f"the concept table was made with the SAE {self.fingerprint} and this SAE is {fingerprint}: "
                "use the SAE the table came with, or run `score` for this one"
            )

    def merge(self, other: "ConceptStatistics") -> None:
        """Add what another process gathered for the same concepts, timesteps and SAE."""
        # As lists: rows follow the order of the concepts, which dictionaries leave out when they compare.
        same = list(other.concepts.items()) == list(self.concepts.items())
        if not same or not torch.equal(other.timesteps, self.timesteps):
            raise SaeuronError("tables merge only when their concepts and timesteps are the same, in the same order")
        other.check_belongs(self.fingerprint)
        self.sums += other.sums
        self.counts += other.counts
        self.squares = None if self.squares is None or other.squares is None else self.squares + other.squares

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that is summed, for processes that add theirs up in place."""
        return [tensor for tensor in (self.sums, self.counts, self.squares) if tensor is not None]

    def save(self, path: str | Path) -> None:
        """Write everything to ``path``, a safetensors file that `ConceptTable.load` reads."""
        description = {
            "format": FORMAT,
            "version": VERSIONS[-1],
            "concepts": self.concepts,
            "fingerprint": self.fingerprint,
            "n_latents": self.n_latents,
            "origin": self.origin,
        }
        tensors = {"sums": self.sums, "counts": self.counts, "timesteps": self.timesteps}
        tensors |= {} if self.squares is None else {"squares": self.squares}
        write_tensors(Path(path), tensors, {"saeuron": json.dumps(description)})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptStatistics":
        """Read a file of ``save``; raises SaeuronError naming the file where it is missing, broken or something else.

        Files of version 1 hold no squares.
        """
        tensors, metadata = read_tensors(Path(path))
        try:
            about = json.loads(metadata["saeuron"])
            if about["format"] != FORMAT or about["version"] not in VERSIONS:
                raise ValueError(f"it is {about['format']} {about['version']}")
            n_latents, timesteps = tensors["sums"].shape[-1], tensors["timesteps"].tolist()
            found = cls(about["concepts"], timesteps, n_latents, about["fingerprint"], about["origin"])
            for name in ("sums", "counts", "squares"):
                stored = tensors.get(name) if name == "squares" else tensors[name]
                if stored is not None and stored.shape != getattr(found, name).shape:
                    raise ValueError("its tensors do not have the shape its description gives")
                setattr(found, name, stored)
        except KeyError as error:
            raise SaeuronError(f"{path} is not a concept table: it lacks {error}") from None
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise SaeuronError(f"{path} is not a concept table of format {FORMAT} {VERSIONS[-1]}: {error}") from None
        return found
