"""Concept statistics: what is gathered of every latent while labelled pictures are drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .autoencoder import SparseAutoencoder
from .errors import SaeuronError, nearest
from .files import parse_json, read_tensors, write_tensors
from .formats import HeaderDescription, TableDescription, check, check_floats, check_timesteps
from .hookpoints import whole_timestep

FORMAT, VERSIONS = "saeuron-concept-table", (1, 2)
CHUNK = 64
"""Tokens encoded at once: of 20 480 latents each copy takes 5 MB, where a whole map's takes 21 and more."""


class ConceptStatistics:
    """Sums over pictures, per concept and timestep, from which concept tables and contrasts are made.

    All are plain sums, so halves that two processes gathered add up exactly, and concepts can be added later. Memory is
    concepts × timesteps × latents and never grows with the number of pictures. Concepts come in kinds (``object``,
    ``style``); a picture may show several concepts, or none.

    ``sums`` ``[C, S, n]`` are map means, each latent's mean activation over the tokens of a picture's map, added up
    over the pictures that show a concept; ``counts`` ``[C, S]`` says how many do. ``more`` is what contrasts need:

    - ``tokens`` ``[C, S, d]``: mean tokens, a map's tokens averaged, of the pictures that show a concept;
    - ``together`` ``[C, C, S]``: how many pictures show both of two concepts;
    - ``pictures`` ``[S]``, ``all_sums`` ``[S, n]``, ``all_tokens`` ``[S, d]``: the same of all pictures;
    - ``squares`` ``[S, n]``: squared pre-activations of the mean token, of all pictures, for the variance;
    - ``apart`` ``[S, d]`` and ``halves`` ``[S]``: by how much the mean token of the unconditional half of guidance
      differs from the other half's, added up over the pictures of which both are known, and how many those are.

    It is None where only map means were ever added: a file of version 1, or a published table.
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
        self.concepts = check({"concepts": dict(concepts)}, HeaderDescription, "the table")["concepts"]
        self.timesteps = torch.tensor(list(timesteps), dtype=torch.long)
        self.n_latents, self.fingerprint, self.origin = n_latents, fingerprint, dict(origin or {})
        self.sums = torch.zeros(len(self.concepts), len(self.timesteps), n_latents)
        self.counts = torch.zeros(len(self.concepts), len(self.timesteps))
        self.more: dict[str, torch.Tensor] | None = None
        self._rows = {name: row for row, name in enumerate(self.concepts)}
        self._columns = {int(t): column for column, t in enumerate(self.timesteps)}

    def row(self, concept: str) -> int:
        """The place of ``concept`` in ``sums`` and ``counts``; raises SaeuronError with the nearest names."""
        if concept not in self._rows:
            raise SaeuronError(
                f"concept {concept!r} is not in the table; the nearest are {nearest(concept, self._rows)}"
            )
        return self._rows[concept]

    def observe(
        self,
        sae: SparseAutoencoder,
        concepts: Sequence[Sequence[str]],
        timestep: float,
        tokens: torch.Tensor,
        unguided: torch.Tensor | None = None,
    ) -> None:
        """Add pictures: the ``tokens`` ``[B, N, d_in]`` of their maps; ``concepts[b]`` are the names that one shows.

        ``unguided`` ``[B, N, d_in]`` are the same pictures' tokens in the unconditional half, where there is one.
        """
        if self.more is None and not bool(self.counts.any()):
            self._make_room(sae.d_in)
        means, more = map_means(sae, tokens), self.more
        column, shows = self._add(concepts, timestep, means)
        if more is not None:
            middle = tokens.mean(1, dtype=torch.float32)
            pre = sae.pre_activations(middle).float()
            more["pictures"][column] += len(tokens)
            more["together"][:, :, column] += shows @ shows.T
            more["tokens"][:, column] += shows @ middle.cpu()
            for name, values in (("all_sums", means), ("all_tokens", middle), ("squares", pre.square())):
                more[name][column] += values.sum(0).cpu()
            if unguided is not None:
                more["apart"][column] += (unguided.mean(1, dtype=torch.float32) - middle).sum(0).cpu()
                more["halves"][column] += len(unguided)

    def add(self, concepts: Sequence[Sequence[str]], timestep: float, means: torch.Tensor) -> None:
        """Add pictures of which only map means ``[B, n_latents]`` are known: enough for tables, not for contrasts."""
        self._add(concepts, timestep, means)
        if len(means):
            self.more = None

    def _add(self, concepts: Sequence[Sequence[str]], timestep: float, means: torch.Tensor) -> tuple[int, torch.Tensor]:
        """Add to sums and counts; the column of ``timestep``, and which picture shows which concept, ``[C, B]``."""
        column = self._columns.get(whole_timestep(timestep))
        if column is None:
            raise SaeuronError(f"timestep {timestep} is not one of the table's {len(self.timesteps)}")
        shows = torch.zeros(len(self.concepts), len(means))
        for picture, names in enumerate(concepts):
            for name in names:
                shows[self.row(name), picture] = 1
        self.sums[:, column] += shows @ means.float().cpu()
        self.counts[:, column] += shows.sum(1)
        return column, shows

    def _make_room(self, d_in: int) -> None:
        self.more = {name: torch.zeros(size) for name, size in self._sizes(d_in).items()}

    def _sizes(self, d_in: int) -> dict[str, tuple[int, ...]]:
        count, steps = self.counts.shape
        sizes = {"tokens": (count, steps, d_in), "together": (count, count, steps), "pictures": (steps,)}
        sizes |= {"all_sums": (steps, self.n_latents), "all_tokens": (steps, d_in), "squares": (steps, self.n_latents)}
        return sizes | {"apart": (steps, d_in), "halves": (steps,)}

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
        both = self.more is not None and other.more is not None
        self.more = {name: own + other.more[name] for name, own in self.more.items()} if both else None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is summed, by name, for files and for processes that add theirs up in place."""
        return {"sums": self.sums, "counts": self.counts} | (self.more or {})

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take ``tensors`` as they are; KeyError or SaeuronError where they fit no such concepts and timesteps."""
        sizes = {"sums": tuple(self.sums.shape), "counts": tuple(self.counts.shape)}
        if "tokens" in tensors:
            sizes |= self._sizes(tensors["tokens"].shape[-1] if tensors["tokens"].dim() else 0)
        known = {name: "unguided" if name == "apart" and "unguided" in tensors else name for name in sizes}
        for name, stored in known.items():
            check_floats(tensors[stored], stored)
            if tensors[stored].shape != sizes[name]:
                raise SaeuronError("its tensors do not have the shape its description gives")
        found = {name: tensors[stored].float() for name, stored in known.items()}
        if known.get("apart") == "unguided":  # as version 2 first had it: the halves themselves, of all pictures
            usual = found["all_tokens"] / found["pictures"].clamp(min=1)[:, None]
            found["apart"] -= found["halves"][:, None] * usual
        self.sums, self.counts = found.pop("sums"), found.pop("counts")
        self.more = found or None

    @classmethod
    def like(cls, other: "ConceptStatistics") -> "ConceptStatistics":
        """Statistics of the same concepts, timesteps and SAE in which nothing is gathered yet."""
        return cls(other.concepts, other.timesteps.tolist(), other.n_latents, other.fingerprint, other.origin)

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
        tensors = self.tensors | {"timesteps": self.timesteps}
        write_tensors(Path(path), tensors, {"saeuron": json.dumps(description)})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptStatistics":
        """Read a file of ``save``; raises SaeuronError naming one that is missing, broken or something else."""
        tensors, metadata = read_tensors(Path(path))
        try:
            about = check(parse_json(metadata["saeuron"], "its description"), TableDescription, "its description")
            sums, timesteps = tensors["sums"], tensors["timesteps"]
            check_timesteps(timesteps)
            if sums.shape[:-1] != (len(about["concepts"]), len(timesteps)) or about.get("n_latents") not in (
                None,
                sums.shape[-1],
            ):
                raise SaeuronError("its tensors do not have the shape its description gives")
            found = cls(about["concepts"], timesteps.tolist(), sums.shape[-1], about["fingerprint"], about["origin"])
            found.restore(tensors)
        except (KeyError, IndexError) as error:
            raise SaeuronError(f"{path} is not a concept table: it lacks {error}") from None
        except SaeuronError as error:
            raise SaeuronError(f"{path} is not a concept table of format {FORMAT} {VERSIONS[-1]}: {error}") from None
        return found


@torch.no_grad()
def map_means(sae: SparseAutoencoder, tokens: torch.Tensor) -> torch.Tensor:
    """Mean activations ``[B, n_latents]``, float32, over the tokens ``[B, N, d_in]`` of each map."""
    means = torch.zeros(len(tokens), sae.n_latents, device=tokens.device)
    for own, picture in zip(means, tokens, strict=True):
        for part in picture.split(CHUNK):
            own += sae.encode(part.to(sae.W_enc.dtype)).sum(0, dtype=torch.float32)
    return means / tokens.shape[1]
