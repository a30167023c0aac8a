"""What all rows of the league share: the model, its unedited pictures, the SAEs, and where finished rows lie."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, Setting
from saeuron.checkpoints import Bundle

from ..common.prompts import read_prompts
from ..common.resume import piece
from ..diffusion.hook import Edit
from ..diffusion.load import load_model, variant
from ..diffusion.sampling import Sampling
from ..evaluation.judges import Look, tinycanvas_judge
from ..evaluation.measures import Verdicts
from ..evaluation.protocol import Protocol, paired
from ..evaluation.sweep import sweep
from .commands import League
from .methods import METHODS, SAES, Lab, Method, edits_for, thinned
from .oracle import retrained
from .probes import Ranges

MATERIAL = ("images", "tokens_per_map", "expansion", "k", "train_batch", "train_steps", "tune_steps", "score_images")
MATERIAL += ("steps", "seed", "object_block", "style_block", "oracle_steps")
"""The options that recordings, SAEs, tables and oracles depend on."""
ROWS = (
    *MATERIAL,
    "search_images",
    "latents",
    "strengths",
    "seeds",
    "picture_seed",
    "attack_seeds",
    "attack_iterations",
)
"""The options that finished rows depend on."""


@dataclass(frozen=True)
class Job:
    """One row of the league: ``what`` kind of row, of which method, about which concepts or conditions."""

    what: str
    method: str
    names: Sequence[str]
    make: Callable[[], dict]


@dataclass
class Contest:
    """What all rows share: the model, the pictures it draws unedited, the SAEs, and where finished rows lie."""

    config: League
    kinds: dict[str, str]
    bare: dict[str, Verdicts] = field(default_factory=dict)
    found: dict[tuple[str, str], tuple[Setting, int]] = field(default_factory=dict)
    learnt: dict[tuple[str, int], Bundle] = field(default_factory=dict)

    @functools.cached_property
    def pipeline(self) -> StableDiffusionPipeline:
        return load_model("tinycanvas")

    @functools.cached_property
    def weights(self) -> list[str]:
        from tinycanvas.model import WEIGHTS

        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(WEIGHTS.rglob("*.safetensors"))]

    def options(self, names: Sequence[str]) -> list[object]:
        return [getattr(self.config, name) for name in names]

    @functools.cached_property
    def work(self) -> Path:
        """The folder of all that rows are made from; another for other options, recipes or weights of the model."""
        return self.config.output / f"work-{_hash(self.options(MATERIAL), SAES, self.weights)}"

    @functools.cached_property
    def lab(self) -> Lab:
        shared = ("images", "tokens_per_map", "expansion", "k", "train_steps", "tune_steps", "score_images", "steps")
        own = {name: getattr(self.config, name) for name in shared}
        blocks = (self.config.object_block, self.config.style_block)
        # Another seed than the evaluation's: no picture that is judged begins from the noise of one that was recorded.
        seed = self.config.seed + 1
        return Lab(self.pipeline, self.work, blocks, batch=self.config.train_batch, seed=seed, **own)

    @functools.cached_property
    def protocol(self) -> Protocol:
        """How every row is judged: the evaluation prompts, each drawn `seeds` times."""
        sampling = Sampling(steps=self.config.steps, bf16=True)
        return Protocol(self.pipeline, tinycanvas_judge(), *self.pictures(self.config.seeds), sampling)

    def pictures(self, copies: int) -> tuple[list[dict], list[int]]:
        """Every evaluation prompt so many times, and a seed for each."""
        return paired(read_prompts("tinycanvas:evaluation"), copies, self.config.picture_seed)

    @functools.cached_property
    def unedited(self) -> tuple[Look, dict[Hookpoint, Ranges]]:
        """The unedited model's pictures, and between which values its activations lie."""
        ranges = {Hookpoint(block): Ranges() for block in (self.config.object_block, self.config.style_block)}
        return self.protocol.look({hookpoint: [own] for hookpoint, own in ranges.items()}), ranges

    def verdicts(self, look: Look) -> Verdicts:
        """What a look at all pictures comes to."""
        return Verdicts(self.protocol.asked, look.found)

    def row(self, job: Job) -> dict:
        """The row of this job, read if it is finished, else made and written."""
        names = list(job.names)
        label = "-".join([job.what, job.method, *names]) if len(names) < 3 else f"{job.what}-{job.method}-{len(names)}"
        label = "".join(letter if letter.isalnum() or letter in "-_+" else "_" for letter in label)
        mark = _hash(self.options(ROWS), SAES, self.weights, METHODS.get(job.method), names)
        path = self.config.output / "rows" / f"{label}-{mark}.json"
        return piece(path, job.make)

    def prepare(self) -> None:
        """Make the SAEs and tables that all methods read with, and the fine-tuned copy of the model."""
        self.saes(self.config.methods)
        if "fine-tuned" in self.config.conditions:
            self.oracle([])

    def search(self, method: str, target: str) -> None:
        """Find and write down the setting by which ``method`` removes ``target``, where it has one."""
        if method in METHODS:
            self.setting(method, target)

    def method(self, name: str) -> Method:
        return thinned(METHODS[name], self.config.latents, self.config.strengths)

    def block(self, kind: str) -> str:
        return self.config.object_block if kind == "object" else self.config.style_block

    def setting(self, name: str, target: str) -> tuple[Setting, int]:
        """The setting by which a method removes ``target``, searched on anchor prompts, and the images that took."""
        if (name, target) not in self.found:
            method, kind = self.method(name), self.kinds[target]
            reader = self.reader(method, target)
            seeds = {"seed": self.config.seed, "anchor_seed": self.config.seed + 3}
            anchors, images = self.protocol.of(read_prompts("tinycanvas:anchor")), self.config.search_images
            self.found[name, target] = sweep(
                anchors, reader, target, method.settings[kind], images, self.work / "sweep.journal", **seeds
            )
        return self.found[name, target]

    def edits(self, name: str, targets: Sequence[str]) -> dict[Hookpoint, list[Edit]]:
        """The edits by which a method removes all of ``targets``; none for ``none``."""
        if name == "none":
            return {}
        readers = {target: self.reader(self.method(name), target) for target in targets}
        return edits_for(readers, {target: self.setting(name, target)[0] for target in targets})

    def reader(self, method: Method, target: str) -> Bundle:
        """The SAE that ``method`` removes ``target`` with, and the table that it knows it by."""
        kind = self.kinds[target]
        if not method.learnt:
            return self.lab.reader(method.sae, self.block(kind))
        if (target, method.learnt) not in self.learnt:
            own = self.lab.learnt(method.sae, self.block(kind), target, kind, method.learnt)
            self.learnt[target, method.learnt] = own
        return self.learnt[target, method.learnt]

    def saes(self, methods: Sequence[str]) -> list[tuple[str, Bundle]]:
        """Every SAE that ``methods`` read with, by name and block."""
        blocks = dict.fromkeys((self.config.object_block, self.config.style_block))
        names = dict.fromkeys(METHODS[method].sae for method in methods if method in METHODS)
        return [(name, self.lab.reader(name, block)) for block in blocks for name in names]

    def oracle(self, without: Sequence[str]) -> StableDiffusionPipeline:
        """The model trained on without some concepts, or, without none, a fine-tuned copy."""
        path = self.work / "oracle" / f"{'-'.join(without) or 'fine-tuned'}.safetensors"
        return variant(
            self.pipeline, unet=retrained(self.pipeline.unet, without, path, self.config.oracle_steps, self.config.seed)
        )


def _hash(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]
