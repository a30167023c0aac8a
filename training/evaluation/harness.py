"""Removals and judges of this project for eval-unlearn, as the entry points in pyproject.toml name them.

eval-unlearn (github.com/REAL-Lab-Imperial/Eval-Unlearn) runs a technique under a metric, both by name. Its runner makes
each of the values that stand under ``config`` in the user's file, asks the metric for batches of prompts, the technique
for a picture a prompt, and the metric what it makes of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

import torch
from PIL import Image

from saeuron import SaeuronError, build_edits
from saeuron.errors import nearest
from tinycanvas.model import WEIGHTS

from ..common.bundles import chosen, open_bundle, tell_origin
from ..common.options import Device, Pictures, Prompts, Removal
from ..common.pictures import from_picture, to_picture
from ..common.processes import own_device
from ..common.prompts import concepts, labels, read_prompts
from ..diffusion.load import fit, open_model
from ..diffusion.sampling import Sampling, draw_all
from .judges import load_judge
from .measures import MEASURES, Verdicts, measures

# An option's name in eval-unlearn's own techniques → in this project.
SPELT = {"model_id": "model", "num_inference_steps": "steps", "guidance_scale": "guidance"}


@dataclass(kw_only=True)
class TechniqueOptions(Removal, Pictures):
    """Options of `Technique`: those of ``generate``, under this project's names or eval-unlearn's."""

    sae: Path | None = None
    """SAE: a bundle, or a folder; default TinyCanvas's own where that is the model."""
    erase_concept: str = ""
    """Concepts to remove, with commas between them. None draws the unedited model."""


@dataclass(kw_only=True)
class MetricOptions(Prompts, Device):
    """Options of `Metric`."""

    target_concept: str = ""
    """The removed concepts as the prompts call them, all of one kind, with commas between them."""
    judge: str = "tinycanvas"
    """`tinycanvas`, clip:FOLDER, or vit:KIND=FILE,KIND=FILE."""
    judge_prompts: Mapping[str, str] | None = None
    """CLIP's sentence for each kind, with {} where the name belongs."""
    copies: int = 1
    """Pictures of every prompt."""
    batch_size: int = 32
    """Prompts given to the technique at once."""


class Technique:
    """Any model that this project loads, with concepts removed by an SAE."""

    def __init__(self, **config: object) -> None:
        """Take `TechniqueOptions`; raises SaeuronError where something is missing or does not fit."""
        self.options = options = TechniqueOptions(**_spelt(config, TechniqueOptions))
        self.pipeline, self.edits, self.drawn = open_model(options), {}, 0
        if names := _names(options.erase_concept):
            if options.model == "tinycanvas":
                options.sae = options.sae or WEIGHTS.parent / "saes" / "tinycanvas.safetensors"
            if options.sae is None:
                raise SaeuronError(f'"erase_concept" needs "sae", an SAE of {options.model} with its concept table')
            bundle = open_bundle(options)
            settings = chosen(bundle, names, options)
            fit(bundle.sae, self.pipeline)
            self.edits = {bundle.sae.hookpoint: build_edits(bundle.sae, bundle.table, settings)}
            tell_origin(settings, bundle, options)

    def generate(self, prompts: Sequence[str], seed: int | None = None, **changes: object) -> list[Image.Image]:
        """A picture of each prompt, from ``seed``, ``seed + 1``, …; ``changes`` are sampling options for this call.

        eval-unlearn's command line gives no seed. Then seeds count up from the options' own, from one call to the next:
        whatever is removed, a run draws from the same ones.
        """
        if seed is None:
            seed, self.drawn = self.options.seed + self.drawn, self.drawn + len(prompts)
        sampling = Sampling.of(replace(self.options, **_spelt(changes, Pictures)))
        rows, seeds = [{"prompt": text} for text in prompts], [seed + n for n in range(len(prompts))]
        return [to_picture(image) for image in draw_all(self.pipeline, rows, seeds, sampling, self.edits)]


class Metric:
    """UA, IRA, CRA and kept of any technique's pictures, by a judge; the value is the mean of the first three."""

    def __init__(self, **config: object) -> None:
        """Take `MetricOptions`; raises SaeuronError where prompts, judge and target do not fit together."""
        options = self.options = MetricOptions(**_spelt(config, MetricOptions))
        if min(options.copies, options.batch_size) < 1:
            raise SaeuronError('"copies" and "batch_size" have to be at least 1')
        rows, self.targets = read_prompts(options.prompts, options.labels), _names(options.target_concept)
        known = concepts(rows)
        for name in self.targets or ("",):
            if name not in known:
                raise SaeuronError(f'"target_concept" {name!r} is in no prompt; the nearest are {nearest(name, known)}')
        names = {kind: [name for name in known if known[name] == kind] for kind in known.values()}
        self.judge = load_judge(options.judge, names, own_device(options.device), options.judge_prompts)
        self.judge.check(rows)
        kinds = [kind for kind in self.judge.names if all(kind in row for row in rows)]
        self.kind, *others = dict.fromkeys(known[name] for name in self.targets)
        if others or self.kind not in kinds:
            told = " or ".join(kinds) or "none at all"
            raise SaeuronError(f'"target_concept" has to be of one kind that judge and prompts tell apart: {told}')
        # Copies stand side by side: seeds count up within a batch, and may begin anew with the next.
        self.rows = [row for row in rows for _ in range(options.copies)]
        self.verdicts = Verdicts({kind: [] for kind in kinds}, {kind: [] for kind in kinds})

    def load_dataset(self) -> list:
        """All prompts in batches, each with its concepts; pictures are kept apart as ``target`` and ``retain``."""
        from eval_unlearn.types import Dataset

        def batch(rows: Sequence[Mapping[str, str]]) -> Dataset:
            shows = ["target" if row[self.kind] in self.targets else "retain" for row in rows]
            about = {"source": self.options.prompts, "categories": shows, "concepts": [labels(row) for row in rows]}
            return Dataset([row["prompt"] for row in rows], about)

        size = self.options.batch_size
        return [batch(self.rows[start : start + size]) for start in range(0, len(self.rows), size)]

    def update(self, images: Sequence[Image.Image], _prompts: Sequence[str], metadata: Mapping[str, list]) -> None:
        """Judge one batch of pictures, all of one size."""
        pictures = torch.stack([from_picture(image.convert("RGB")) for image in images]).float() / 255
        found, kinds = self.judge(pictures), self.verdicts.asked
        asked = {kind: [row[kind] for row in metadata["concepts"]] for kind in kinds}
        self.verdicts += Verdicts(asked, {kind: found[kind] for kind in kinds})

    def compute(self):
        """The ``MetricResult``: fractions, each with hits, total and 95 % interval under ``details``."""
        from eval_unlearn.types import MetricResult

        rates = measures(self.verdicts, self.targets, self.kind)
        counted = [rates[name].value for name in ("ua", "ira", "cra") if rates[name].total]
        details = {name: rates[name].values() for name in MEASURES}
        details |= {"target_concept": list(self.targets), "kind": self.kind, "judge": self.judge.identity}
        return MetricResult("UA_IRA_CRA", sum(counted) / len(counted) if counted else None, details)


def _spelt(config: Mapping[str, object], kind: type) -> dict[str, object]:
    """``config`` in this project's names; raises SaeuronError with the nearest of ``kind``'s where one is unknown."""
    known, spelt = {own.name: own.type for own in fields(kind)}, {}
    for given, value in config.items():
        name = SPELT.get(given, given)
        if name not in known:
            raise SaeuronError(f"{given!r} is no option here; the nearest are {nearest(name, known)}")
        spelt[name] = Path(value) if isinstance(value, str) and Path in get_args(known[name]) else value
    return spelt


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
