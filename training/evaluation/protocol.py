"""The one way in which removals are judged: draw labelled prompts, ask a judge what the pictures show, and count.

A command says which model, which prompts, which judge and what is removed. Every removal is drawn from the same seeds,
several processes draw a part of the pictures each, and what was found is kept in a file a removal, so that a command
that is started again draws only what is missing.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from saeuron import ConceptTable, Hookpoint, SaeuronError, Setting, build_edits
from saeuron.checkpoints import Bundle

from ..common.bundles import tell_origin
from ..common.options import Pictures
from ..common.options import Removal as Removing
from ..common.processes import own_device, share, whole
from ..common.progress import track
from ..common.prompts import check_labelled, digest, labels, read_prompts
from ..common.resume import claim, piece
from ..diffusion.alike import Unedited, can_part, draw_unedited
from ..diffusion.hook import Edit
from ..diffusion.load import Pipeline, fit, identity, open_model
from ..diffusion.sampling import Sampling, draw_all
from .commands import Evaluate
from .judges import KNOWN, Judge, Look, load_judge
from .measures import Rate, Verdicts, measures

SETTINGS = ("targets", "remove", "edit", "latents", "strength", "per_timestep", "paper_exact")
"""Options that say how concepts are removed. What they come to is kept with each removal."""
FREE = (*SETTINGS, "batch", "judge", "judge_prompts")
"""Options that runs that continue each other may differ in; which judge it was is kept by its identity."""


@dataclass(frozen=True)
class Removal:
    """What is removed at once: nothing, one concept, or several of a kind.

    ``targets`` are the concepts as the prompts name them, ``settings`` go by the table's names.
    """

    name: str = "base"
    targets: tuple[str, ...] = ()
    kind: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def edits(self, bundle: Bundle) -> dict[Hookpoint, list[Edit]]:
        """The edits of ``bundle``'s SAE that do it."""
        return {bundle.sae.hookpoint: build_edits(bundle.sae, bundle.table, self.settings)} if self.settings else {}


@dataclass(frozen=True, eq=False)
class Protocol:
    """What draws the pictures, which ones, and what judges them, the same for all removals that are compared.

    ``rows`` are prompts with their concepts, ``seeds`` the seed of each. Raises SaeuronError where a prompt asks for a
    concept that the judge does not know.
    """

    pipeline: Pipeline
    judge: Judge
    rows: Sequence[Mapping[str, str]]
    seeds: Sequence[int]
    sampling: Sampling

    def __post_init__(self) -> None:
        self.judge.check(self.rows)

    @cached_property
    def asked(self) -> dict[str, list[str]]:
        """Kind → the concept asked of each picture, for the kinds that the judge knows and every prompt names."""
        kinds = [kind for kind in self.judge.names if all(kind in row for row in self.rows)]
        return {kind: [row[kind] for row in self.rows] for kind in kinds}

    def kind(self, table: ConceptTable, target: str) -> str:
        """The kind of ``target``; raises SaeuronError where pictures are not judged by it."""
        kind = table.kind(target)
        if kind not in self.asked:
            known = " and ".join(self.asked) or "nothing"
            raise SaeuronError(f"{target!r} is of the kind {kind}, and prompts and judge tell {known} apart")
        return kind

    def singles(self, table: ConceptTable, settings: Mapping[str, Setting]) -> list[Removal]:
        """Each concept of ``settings`` removed on its own."""
        return [Removal(name, (name,), self.kind(table, name), {name: own}) for name, own in settings.items()]

    def of(self, rows: Sequence[Mapping[str, str]], seeds: Sequence[int] = ()) -> "Protocol":
        """The same with other pictures; a search, which seeds its own, needs no ``seeds``."""
        return replace(self, rows=rows, seeds=seeds)

    def alike(self, removals: Sequence[Removal], bundle: Bundle) -> Unedited | None:
        """The unedited pictures of this process's share, from which those under ``removals`` part; None where a sampler
        allows no parting, or they would take too much memory."""
        own = share(range(len(self.rows)))
        if not can_part(self.pipeline, self.sampling, len(own)):
            return None
        prompts, seeds = [self.rows[n]["prompt"] for n in own], [self.seeds[n] for n in own]
        edits = {removal.name: removal.edits(bundle) for removal in removals if removal.settings}
        return draw_unedited(self.pipeline, prompts, seeds, self.sampling, edits)

    def look(
        self,
        edits: Mapping[Hookpoint, Sequence[Edit]] | None = None,
        name: str | None = None,
        keep: Callable[[int, torch.Tensor], None] | None = None,
    ) -> Look:
        """What the judge makes of the pictures under ``edits``, of which this process draws its share.

        A bar called ``name`` shows how far it is; ``keep`` is handed each picture with its number.
        """
        own, batch, looks = share(range(len(self.rows))), self.sampling.batch, []
        starts = range(0, len(own), batch)
        for start in track(starts, name) if name else starts:
            numbers = own[start : start + batch]
            rows, seeds = [self.rows[n] for n in numbers], [self.seeds[n] for n in numbers]
            images = draw_all(self.pipeline, rows, seeds, self.sampling, edits)
            looks.append(self.judge.look(images))
            for number, image in zip(numbers, images, strict=True) if keep else ():
                keep(number, image)
        return Look.join(looks) if looks else Look({kind: [] for kind in self.judge.names}, *torch.zeros(2, 0))

    def verdicts(self, *arguments: object, **options: object) -> Verdicts:
        """What is found in all pictures, by all processes; as `look` otherwise."""
        found = self.look(*arguments, **options).found
        return Verdicts(self.asked, {kind: whole(found[kind]) for kind in self.asked})

    def survey(
        self,
        removal: Removal,
        bundle: Bundle,
        folder: Path | None = None,
        make: Callable[[], dict] | None = None,
        alike: Callable[[], Unedited | None] = lambda: None,
    ) -> dict:
        """What is found when ``removal`` is made; with a ``folder`` it is read from there if it is, else written.

        ``make`` stands in for drawing and judging, where something more than the verdicts is wanted. ``alike`` gives
        the pictures that those under ``removal`` part from, and is called where something has to be drawn.
        """

        def draw() -> dict:
            unedited = alike()
            if unedited is None:
                return {"found": self.verdicts(removal.edits(bundle), removal.name).found}
            edits = removal.edits(bundle)
            images = unedited.edited(removal.name, edits) if edits else unedited.images
            looks = [self.judge.look(part) for part in images.split(self.sampling.batch)]
            found = Look.join(looks).found if looks else {kind: [] for kind in self.judge.names}
            return {"found": {kind: whole(found[kind]) for kind in self.asked}}

        def named() -> dict:
            return {"name": removal.name, "targets": removal.targets, "kind": removal.kind} | (make or draw)()

        return piece(folder / f"{removal.name}.json", named) if folder else named()

    def rates(self, result: Mapping) -> dict[str, Rate]:
        """What a survey amounts to: the measures of a removal, and of the unedited model the accuracy of each kind."""
        verdicts = Verdicts(self.asked, result["found"])
        if not result["targets"]:
            return {kind: verdicts.rate(kind) for kind in self.asked}
        return measures(verdicts, result["targets"], result["kind"])


def paired(rows: Sequence[dict], copies: int, first: int) -> tuple[list[dict], list[int]]:
    """Every prompt ``copies`` times, and a seed for each picture that no other picture has."""
    if copies < 1:
        raise SaeuronError("--seeds has to be at least 1")
    repeated = [row for _ in range(copies) for row in rows]
    return repeated, [first * 1_000_003 + n for n in range(len(repeated))]


def anchor_rows(
    rows: Sequence[dict], table: ConceptTable, target: str, images: int, seed: int
) -> tuple[list[dict], list[int]]:
    """Prompts and seeds for ``images`` pictures: a third show the target, the rest spread over the other prompts."""
    if images < 2:
        raise SaeuronError(f"a search draws at least 2 pictures a setting, and {images} is fewer")
    kind = table.kind(target)
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    own = [row for row in shuffled if row[kind] == target]
    others = [row for row in shuffled if row[kind] != target]
    if not own or not others:
        raise SaeuronError(f"the prompts need some that show {target!r} and some that do not")
    third = max(images // 3, 1)
    picked = [own[n % len(own)] for n in range(third)] + [others[n % len(others)] for n in range(images - third)]
    return picked, [seed * 1_000_003 + n for n in range(len(picked))]


def open_protocol(config: Evaluate, bundle: Bundle, copies: int = 1) -> Protocol:
    """The protocol of a command's options, with ``copies`` pictures of every prompt; ``bundle`` has to fit its model.

    Raises SaeuronError where something is missing, or the options do not fit together.
    """
    sampling, rows = Sampling.of(config), read_prompts(config.prompts, config.labels)
    judge = open_judge(config, rows, bundle.table)
    check_labelled(rows, [kind for kind in judge.names if not config.labels or kind in config.labels], config.prompts)
    rows, seeds = paired(rows, copies, config.seed)
    return Protocol(pipeline_for(config, bundle), judge, rows, seeds, sampling)


def pipeline_for(config: Pictures, bundle: Bundle) -> Pipeline:
    """The model of a command's options, with ``bundle``'s SAE, which has to fit it, on the same device."""
    pipeline = open_model(config)
    fit(bundle.sae, pipeline)
    return pipeline


def begin(
    config: Removing,
    protocol: Protocol,
    bundle: Bundle,
    removals: Sequence[Removal],
    pieces: Sequence[str],
    free: Sequence[str] = (),
    spelt: Callable[[str], str] = str,
) -> None:
    """Take the output folder for ``removals``, and say where their settings come from; before anything is drawn.

    ``pieces`` and ``free`` are `claim`'s, ``spelt`` is `tell_origin`'s. Raises SaeuronError where an edit cannot be
    made, or the folder holds what was made otherwise.
    """
    settings = {name: setting for removal in removals for name, setting in removal.settings.items()}
    for removal in removals:
        removal.edits(bundle)
    made_with = {"prompts": digest(protocol.rows), "judge": protocol.judge.identity}
    made_with |= read_by(config, protocol.pipeline, bundle, settings)
    claim(config, config.output, free=(*FREE, *free), pieces=pieces, **made_with)
    tell_origin(settings, bundle, config, spelt)


def read_by(config: Pictures, pipeline: Pipeline, bundle: Bundle, settings: Mapping[str, Setting]) -> dict:
    """What a command has read to remove the concepts in ``settings``, for `claim`."""
    return {
        "sae": bundle.sae.fingerprint,
        "model": identity(config.model, pipeline),
        "settings": {name: setting.values() for name, setting in settings.items()},
        "table": {name: _digest(bundle.table.means(name)) for name in settings},
    }


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


def open_judge(config: Evaluate, rows: Sequence[dict[str, str]], table: ConceptTable) -> Judge:
    """The judge that a command's options name; a zero-shot one tells apart what prompts and ``table`` know."""
    judge = config.judge or ("tinycanvas" if config.model == "tinycanvas" else None)
    if judge is None:
        raise SaeuronError(f"pictures of {config.model} need a judge: give --judge {KNOWN}")
    names: dict[str, list[str]] = {}
    for kind, name in (pair for row in rows for pair in labels(row).items()):
        names.setdefault(kind, []).append(name)
    for name, kind in table.concepts.items():
        names.get(kind, []).append(name)
    names = {kind: list(dict.fromkeys(own)) for kind, own in names.items()}
    prompts = {kind: text for kind, _, text in (given.partition("=") for given in config.judge_prompts)}
    return load_judge(judge, names, own_device(config.device), prompts)
