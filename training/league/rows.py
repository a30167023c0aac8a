"""What the rows of the league share, and how each is made."""

import dataclasses
import functools
import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, Setting, read_assignment
from saeuron.checkpoints import Bundle

from ..common.prompts import read_prompts
from ..common.resume import piece
from ..diffusion.hook import Edit, editing
from ..diffusion.load import load_model, variant
from ..diffusion.sampling import Sampling, generate
from ..evaluation.attack import How, attack
from ..evaluation.judges import Look, tinycanvas_judge
from ..evaluation.measures import Verdicts, measures
from ..evaluation.protocol import Protocol, paired
from ..evaluation.sweep import sweep
from .commands import CONDITIONS, KINDS, League
from .methods import METHODS, SAES, Lab, Method, edits_for, thinned
from .oracle import retrained
from .probes import Outside, Ranges

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


def of_target(contest: Contest, method: str, target: str) -> dict:
    """One method, one target: UA, IRA, CRA as ``[hits, total]``, and what else the pictures and activations tell."""
    kind = contest.kinds[target]
    before, ranges = contest.unedited
    setting, cost, outside = None, 0, []
    if method == "none":
        seen = before
    else:
        pipeline, edits = contest.pipeline, {Hookpoint(contest.block(kind)): []}
        if method == "oracle":
            pipeline = contest.oracle([target])
        else:
            setting, cost = contest.setting(method, target)
            edits = contest.edits(method, [target])
        outside = [Outside(ranges[hookpoint]) for hookpoint in edits]
        probed = {hookpoint: [*chain, probe] for (hookpoint, chain), probe in zip(edits.items(), outside, strict=True)}
        seen = dataclasses.replace(contest.protocol, pipeline=pipeline).look(probed)
    verdicts = contest.verdicts(seen)
    bystander = torch.tensor([name != target for name in contest.protocol.asked[kind]])
    shares = outside[0].shares if outside else {"outside_dimensions": 0.0, "outside_norm": 0.0}
    return {
        "method": method,
        "target": target,
        "kind": kind,
        "hits": {name: [rate.hits, rate.total] for name, rate in measures(verdicts, target, kind).items()},
        "collateral": float((seen.features - before.features).norm(dim=1)[bystander].mean()),
        "confidence": float(seen.confidence.mean()),
        **shares,
        "others": others(
            verdicts, kind, [name for name, own in contest.kinds.items() if own == kind and name != target]
        ),
        "setting": dataclasses.asdict(setting) if setting else None,
        "search_images": cost,
    }


def others(verdicts: Verdicts, kind: str, names: Sequence[str]) -> dict[str, float]:
    """How often each of ``names`` is found where it was asked for."""
    found: dict[str, list[bool]] = {name: [] for name in names}
    for asked, right in zip(verdicts.asked[kind], verdicts.right(kind), strict=True):
        if asked in found:
            found[asked].append(right)
    return {name: sum(own) / len(own) for name, own in found.items() if own}


def of_several(contest: Contest, method: str, removed: Sequence[str]) -> dict:
    """Several concepts removed at once: how often they are gone, and the others of each kind still there."""
    if method == "none":
        verdicts = contest.verdicts(contest.unedited[0])
    else:
        verdicts = contest.protocol.verdicts(contest.edits(method, removed))
    return {"method": method, "removed": list(removed)} | gone_and_kept(verdicts, removed)


def gone_and_kept(verdicts: Verdicts, removed: Sequence[str]) -> dict[str, list[int]]:
    """``[hits, total]``: removed concepts that are not found where asked for, and others of each kind that are."""
    counts = {"ua": [0, 0]} | {f"kept_{kind}": [0, 0] for kind in KINDS}
    for kind in KINDS:
        for asked, right in zip(verdicts.asked[kind], verdicts.right(kind), strict=True):
            count = counts["ua"] if asked in removed else counts[f"kept_{kind}"]
            count[0] += right != (asked in removed)
            count[1] += 1
    return counts


def of_condition(contest: Contest, method: str, target: str, name: str) -> dict:
    """One target removed under another sampler, number of steps or size, or from a fine-tuned copy of the model.

    SAE, table and setting stay those of the main table.
    """
    if method != "none":
        verdicts = under_condition(contest, name, contest.edits(method, [target]))
    else:
        contest.bare[name] = verdicts = contest.bare.get(name) or under_condition(contest, name, {})
    rates = measures(verdicts, target, contest.kinds[target])
    hits = {key: [rate.hits, rate.total] for key, rate in rates.items()}
    return {"method": method, "condition": name, "target": target, "hits": hits}


def under_condition(contest: Contest, name: str, edits: Mapping[Hookpoint, Sequence[Edit]]) -> Verdicts:
    """What is found in a picture of each evaluation prompt, drawn as `CONDITIONS` says."""
    wanted = CONDITIONS[name]
    pipeline = contest.oracle([]) if wanted.get("finetuned") else contest.pipeline
    if "sampler" in wanted:
        pipeline = variant(pipeline, sampler=wanted["sampler"])
    changed = {key: value for key, value in wanted.items() if key in ("steps", "height", "width")}
    sampling = dataclasses.replace(contest.protocol.sampling, **changed)
    protocol = dataclasses.replace(contest.protocol.of(*contest.pictures(1)), pipeline=pipeline, sampling=sampling)
    return protocol.verdicts(edits)


def of_attack(contest: Contest, method: str, target: str) -> dict:
    protocol = contest.protocol.of(*contest.pictures(contest.config.attack_seeds))
    how = How(iterations=contest.config.attack_iterations, seed=contest.config.seed)
    return {"method": method} | attack(protocol, contest.edits(method, [target]), target, contest.kinds[target], how)


def of_time(contest: Contest, method: str, target: str, steps: int = 10, repeats: int = 7) -> dict:
    """Milliseconds a denoising step takes with the edit and without, for two guided pictures; medians, in turns."""
    edits = {} if method in ("none", "oracle") else contest.edits(method, [target])
    prompts = [row["prompt"] for row in contest.protocol.rows if row[contest.kinds[target]] == target][:2]
    taken: dict[str, list[float]] = {"unedited": [], "edited": []}
    for _ in range(repeats):
        for name, chain in (("unedited", {}), ("edited", edits)):
            began = time.perf_counter()
            generate(contest.pipeline, prompts, [1, 2], steps=steps, guidance=3.0, taps=editing(chain))
            taken[name].append(1000 * (time.perf_counter() - began) / steps)
    unedited, edited = (statistics.median(values) for values in taken.values())
    return {"method": method, "ms_per_step": edited, "ms_per_step_unedited": unedited}


def about_sae(name: str, reader: Bundle) -> dict:
    """How well an SAE reconstructs, and how many of its assigned latents are their concept's strongest.

    The strongest is told by the table's scores, from anchor pictures that no SAE was trained on.
    """
    metrics = reader.sae.config.get("metrics", {})
    told = metrics.get("concepts", {}).values()
    found = {"sae": name, "block": reader.sae.hookpoint.name} | {key: metrics.get(key) for key in ("fvu", "dead", "l0")}
    scores = [own["auroc"] for own in told if own["auroc"] is not None]
    if told:
        strongest = {name: int(reader.table.scores(name).mean(0).argmax()) for name in reader.table.concepts}
        assignment = read_assignment(reader.sae)
        found["centralised"] = sum(assignment[name] == own for name, own in strongest.items()) / len(strongest)
        found["auroc"] = statistics.mean(scores) if scores else None
    return found


def _hash(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]
