"""Learning a concept from prompts: which show it and which do not, what is gathered of them, and what it comes to.

A host draws the prompts of a `Lesson` and hands their tokens to a `Learner`; the mathematics is the same for all. What
is finished is kept in a file, so that nothing is drawn twice.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from .autoencoder import SparseAutoencoder
from .checkpoints import Bundle
from .compact_table import CompactTable
from .concept_statistics import ConceptStatistics
from .concept_table import ConceptTable, WholeTable
from .contrasts import Contrasts
from .errors import SaeuronError
from .files import parse_json, read_tensors, write_tensors
from .formats import LessonDescription, check

FORMAT, VERSION = "saeuron-lesson", 2
FEWEST = 3
"""Prompts that show a concept, and prompts that do not, without which nothing can be told."""
WITHOUT = "without "
"""What the pictures that do not show a concept are called, as the one other concept of its kind."""
SUBJECTS = (
    "a wooden chair by a window", "a woman in a green coat", "a bowl of oranges on a table", "a harbour with boats",
    "an old man reading a newspaper", "a red bicycle against a wall", "a mountain lake at noon", "a cat on a sofa",
    "a busy street crossing", "a vase of tulips", "a steam train in a valley", "a lighthouse on a cliff",
)  # fmt: skip
SCENES = (
    "on a table", "in a garden", "by the sea", "in a city street", "against a plain wall", "in a forest clearing",
    "in a bright room", "at dusk", "on a grassy hill", "seen from above", "in the rain", "in the snow",
)  # fmt: skip


@dataclass(frozen=True)
class Lesson:
    """A concept's ``name`` and ``kind``, the prompts that show it, and the prompts that do not."""

    name: str
    kind: str
    shows: tuple[str, ...]
    lacks: tuple[str, ...]

    @classmethod
    def of(cls, name: str, kind: str = "", shows: Sequence[str] = (), lacks: Sequence[str] = ()) -> "Lesson":
        """A lesson of the prompts given, or where none are of sensible ones: scenes with the concept and without.

        ``kind`` ``object`` makes prompts of a thing in scenes, anything else of subjects in a look. Raises SaeuronError
        where the name is empty, prompts are too few, or one is said to show the concept and not to.
        """
        name = " ".join(name.split())
        if not name:
            raise SaeuronError("there is nothing to learn: name a concept, such as `neon`")
        shows, lacks = ([" ".join(text.split()) for text in texts if text.strip()] for texts in (shows, lacks))
        thing = kind == "object"
        if not shows:
            shows = (
                [f"a {name} {scene}" for scene in SCENES] if thing else [f"{subject}, {name}" for subject in SUBJECTS]
            )
        if not lacks:
            lacks = [f"a view {scene}" for scene in SCENES] if thing else list(SUBJECTS)
        both = [text for text in shows if text in lacks]
        if both:
            raise SaeuronError(f"the prompt {both[0]!r} is said both to show {name} and not to: leave it in one list")
        for texts, sort in ((shows, "show it"), (lacks, "do not")):
            count = len(set(texts))
            if count < FEWEST:
                raise SaeuronError(f"{name} is not learnt from {count} prompts that {sort}: give {FEWEST}, better 12")
        return cls(name, kind or "learnt", tuple(shows), tuple(lacks))

    @property
    def prompts(self) -> list[tuple[str, bool]]:
        """Every prompt, and whether it shows the concept; the two sorts in turns, so that an early end has both."""
        longest = max(len(self.shows), len(self.lacks))
        sorts = ((self.shows, True), (self.lacks, False))
        return [(text, own) for n in range(longest) for texts, own in sorts for text in texts[n : n + 1]]


class Learner:
    """Gathers what a lesson's prompts do at one hookpoint, a prompt after another, and keeps what is finished.

    ``timesteps`` ``[S]`` are those at which every prompt will be observed. ``identity`` says what else the result
    depends on (the model, its patches, size, seed). ``path`` is a file for what is finished, continued if it is of the
    same lesson, SAE, timesteps and identity, and otherwise begun anew.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        lesson: Lesson,
        timesteps: Sequence[int],
        identity: object = None,
        path: Path | None = None,
    ) -> None:
        self.sae, self.lesson, self.path = sae, lesson, path
        timesteps = sorted({int(t) for t in timesteps})
        told = [VERSION, asdict(lesson), timesteps, sae.fingerprint, identity]
        self.identity = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
        concepts = {lesson.name: lesson.kind, WITHOUT + lesson.name: lesson.kind}
        self.statistics = ConceptStatistics(concepts, timesteps, sae.n_latents, sae.fingerprint, sae.origin)
        self.done = torch.zeros(len(lesson.prompts), dtype=torch.bool)
        self.middles = torch.zeros(len(lesson.prompts), len(timesteps), sae.d_in)
        self._continue()

    @property
    def waiting(self) -> list[int]:
        """The numbers of the prompts, in ``lesson.prompts``, that are not finished."""
        return (~self.done).nonzero().squeeze(-1).tolist()

    def observe(self, number: int, seen: Mapping[int, tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        """Prompt ``number`` is drawn: by timestep its tokens ``[B, N, d_in]``, of one picture or of several.

        With them come those of the unconditional half of guidance, or None. Only where the concept is not shown do they
        count: half the pictures of a lesson show it, so that all unconditional halves together show half of it.
        """
        shown = self.lesson.prompts[number][1]
        name = self.lesson.name if shown else WITHOUT + self.lesson.name
        missing = [t for t in self.statistics.timesteps.tolist() if t not in seen]
        if missing:
            raise SaeuronError(f"the model was not called at timestep {missing[0]}, which the lesson observes")
        for column, timestep in enumerate(self.statistics.timesteps.tolist()):
            maps, unguided = seen[timestep]
            self.statistics.observe(self.sae, [[name]] * len(maps), timestep, maps, None if shown else unguided)
            self.middles[number, column] = maps.mean((0, 1), dtype=torch.float32).cpu()
        self.done[number] = True
        if self.path is not None:
            self._keep()

    def table(self) -> WholeTable:
        """The concept, and the pictures without it as the other one of its kind."""
        return WholeTable(self.statistics, self._residuals(range(len(self.done))))

    @torch.no_grad()
    def trust(self) -> float:
        """How often the concept is rightly told on prompts the fit has not seen, each half by the other. 0.5 is chance.

        Raises SaeuronError where a half has no prompt of one sort, or not all prompts are finished.
        """
        halves = [[n for n in range(len(self.done)) if n // 2 % 2 == half] for half in (0, 1)]
        right = self._told(*halves) + self._told(*reversed(halves))
        return sum(right) / len(right)

    def _told(self, known: list[int], asked: list[int]) -> list[bool]:
        """Whether each prompt in ``asked`` is told rightly by what is fitted to those in ``known``, on mean tokens."""
        part, name = ConceptStatistics.like(self.statistics), self.lesson.name
        shown = [own for _, own in self.lesson.prompts]
        for column, timestep in enumerate(part.timesteps.tolist()):
            names = [[name if shown[number] else WITHOUT + name] for number in known]
            part.observe(self.sae, names, timestep, self.middles[known, column][:, None].to(self.sae.W_enc.device))
        vectors, offsets = Contrasts.fit(part, self.sae, self._residuals(known)).probe(self.sae, name)
        scores = ((self.middles[asked] * vectors).sum(-1) - offsets).mean(1)
        return [bool(score > 0.5) == shown[number] for score, number in zip(scores, asked, strict=True)]

    def _residuals(self, numbers: Sequence[int]) -> torch.Tensor:
        """By what the mean tokens of prompts differ from the mean of their sort, ``[P, S, d_in]``."""
        shown = [own for _, own in self.lesson.prompts]
        sorts = [[number for number in numbers if shown[number] == own] for own in (True, False)]
        return torch.cat([self.middles[own] - self.middles[own].mean(0) for own in sorts])

    def _keep(self) -> None:
        about = {"format": FORMAT, "version": VERSION, "identity": self.identity}
        tensors = self.statistics.tensors | {"done": self.done, "middles": self.middles}
        write_tensors(self.path, tensors, {"saeuron": json.dumps(about)})

    def _continue(self) -> None:
        if self.path is None or not self.path.exists():
            return
        tensors, metadata = read_tensors(self.path)
        about = parse_json(metadata.get("saeuron", "{}"), self.path)
        if about.get("format") != FORMAT or about.get("identity") != self.identity:
            return
        check(about, LessonDescription, self.path)
        done, middles = tensors.pop("done", None), tensors.pop("middles", None)
        try:
            if done is None or (done.dtype, done.shape) != (self.done.dtype, self.done.shape):
                raise SaeuronError("its list of finished prompts is broken")
            if middles is None or (middles.dtype, middles.shape) != (self.middles.dtype, self.middles.shape):
                raise SaeuronError("its mean tokens are broken")
            self.statistics.restore(tensors)
        except (KeyError, SaeuronError) as error:
            raise SaeuronError(f"{self.path} is not readable: {error}; delete it to begin anew") from None
        self.done, self.middles = done, middles


def with_learnt(bundle: Bundle, learner: Learner) -> Bundle:
    """``bundle`` with what was learnt, which wins over what was known of a concept of that name.

    A table that holds means alone gives way to it: beside it nothing could be told apart. Settings of concepts that are
    no longer known, or are newly learnt, go; licence and card stay.
    """
    sae, assigned = bundle.sae, bundle.sae.config.get("assignment")

    def compact(table: ConceptTable) -> CompactTable:
        return table if isinstance(table, CompactTable) else CompactTable.of(table, assigned, table.contrasts(sae))

    new, old = learner.table(), bundle.table
    new = CompactTable.of(new, None, new.contrasts(sae))
    table = compact(old).merged(new) if old is not None and old.has_contrasts else new
    kept = {name: own for name, own in bundle.settings.items() if name in table.concepts and name not in new.concepts}
    return replace(bundle, table=table, settings=kept)
