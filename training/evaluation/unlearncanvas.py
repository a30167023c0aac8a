"""``unlearncanvas``: the UnlearnCanvas benchmark on a fine-tuned checkpoint, with its two classifiers as judges.

Concepts are removed one at a time, all prompts are drawn each time, and UA, IRA and CRA are counted as in `judging`.
Beside what the paper fixes, three things are settled here: every target is drawn from the same noise; every picture
counts once; and a plain picture (`An image of Bears.`) is one in the style that the style classifier calls Seed_Images.
Several processes draw a part of the pictures each.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saeuron import Hookpoint, SaeuronError, Setting, build_edits
from saeuron.checkpoints import Bundle
from saeuron.files import write_json, write_text

from ..common.bundles import chosen, open_bundle, with_table
from ..common.pictures import save_picture
from ..common.processes import barrier, is_main, own_device, share, whole
from ..common.progress import track
from ..common.results import tell
from ..common.resume import claim, piece
from ..diffusion.hook import Edit
from ..diffusion.load import Pipeline, check_fits, identity, open_model
from ..diffusion.sampling import Sampling, draw_all
from ..diffusion.sampling import plan as estimate
from .canvas import NAMES, PLAIN, kind_of, label, markdown, pictures, summary
from .commands import UnlearnCanvas
from .fid import distance, find_pictures, load_metric
from .measures import KINDS
from .vit import Judge, load_judge

FREE = {"targets", "sequence", "save_images", "inception", "batch"}
FREE |= {"edit", "latents", "strength", "per_timestep", "paper_exact"}
"""Options that change nothing of what is found, or whose effect the settings say."""


@dataclass(frozen=True)
class Removal:
    """What is removed at once: nothing, one target, or several. ``settings`` go by the table's names."""

    name: str
    targets: tuple[str, ...] = ()
    kind: str = ""
    settings: dict[str, Setting] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What draws the pictures and what judges them, the same for every removal."""

    pipeline: Pipeline
    judge: Judge
    hookpoint: Hookpoint
    rows: list[dict[str, str]]
    seeds: list[int]
    sampling: Sampling


def run(config: UnlearnCanvas) -> dict:
    """Run ``config`` and return its report, also written to ``unlearncanvas.json``."""
    device, sampling, bundle = own_device(config.device), Sampling.of(config), open_bundle(config)
    rows, seeds = pictures(config.seeds, config.limit)
    removals = [Removal("base"), *plan(config, bundle)]
    sae = bundle.sae.to(device)
    edits = {entry.name: build_edits(sae, bundle.table, entry.settings) for entry in removals}
    real = find_pictures(config.reference) if config.reference else []
    metric = load_metric(config.inception, device) if real and is_main() else None
    judge = load_judge({"object": config.judge_object, "style": config.judge_style}, NAMES, device)
    pipeline = open_model(config)
    check_fits(sae, pipeline)
    if config.dry_run:
        estimate(pipeline, sampling, len(rows) * len(removals)).tell(config)
        return {}
    made_with = {"sae": sae.fingerprint, "model": identity(config.model, pipeline)}
    made_with["settings"] = {entry.name: {n: s.values() for n, s in entry.settings.items()} for entry in removals}
    claim(config, config.output, free=FREE, pieces=["targets", "images", "unlearncanvas.*"], **made_with)
    bench = Bench(pipeline, judge, sae.hookpoint, rows, seeds, sampling)
    results = []
    for entry in removals:
        kept = config.output / "images" / entry.name if config.save_images or real else None

        def make(entry=entry, kept=kept) -> dict:
            found = survey(bench, entry.name, edits[entry.name], kept)
            far = fid(metric, entry, rows, kept, config.reference, real) if metric else None
            return {"name": entry.name, "targets": entry.targets, "kind": entry.kind, "found": found, "fid": far}

        results.append(piece(config.output / "targets" / f"{entry.name}.json", make))
    report = summary(rows, results)
    if is_main():
        write_json(config.output / "unlearncanvas.json", report)
        write_text(config.output / "unlearncanvas.md", markdown(report))
    tell(config, report, markdown(report))
    barrier()
    return report


def plan(config: UnlearnCanvas, bundle: Bundle) -> list[Removal]:
    """What is removed, in order. Raises SaeuronError on a concept that UnlearnCanvas or the table does not know."""
    tuned = [label(name) for name in bundle.settings]
    own = {label(name): name for name in with_table(bundle, config).table.concepts}
    # A setting may be under either way of writing a name.
    bundle.settings = {own.get(label(name), name): setting for name, setting in bundle.settings.items()}
    names = [label(name) for name in config.targets] or tuned or [name for name in own if name != PLAIN]
    kinds = {name: kind_of(name) for name in names}
    every = chosen(bundle, [own.get(name, name) for name in names], config)
    settings = dict(zip(names, every.items(), strict=True))
    if not config.sequence:
        return [Removal(name, (name,), kinds[name], dict([settings[name]])) for name in names]
    if len(set(kinds.values())) > 1:
        raise SaeuronError("a --sequence is of objects or of styles: give --targets of one kind")
    return [
        Removal(f"{n:02d}-{name}", tuple(names[:n]), kinds[name], dict(settings[first] for first in names[:n]))
        for n, name in enumerate(names, 1)
    ]


def survey(bench: Bench, name: str, edits: Sequence[Edit], kept: Path | None) -> dict[str, list[str]]:
    """What the judge finds in every picture, by kind; this process draws its share. ``kept`` is a folder for them."""
    own = share(range(len(bench.rows)))
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for start in track(range(0, len(own), bench.sampling.batch), name):
        numbers = own[start : start + bench.sampling.batch]
        rows, seeds = [bench.rows[n] for n in numbers], [bench.seeds[n] for n in numbers]
        images = draw_all(bench.pipeline, rows, seeds, bench.sampling, {bench.hookpoint: edits})
        for kind, names in bench.judge(images).items():
            found[kind] += names
        if kept:
            for number, image in zip(numbers, images, strict=True):
                save_picture(image, kept / f"{number:05d}.png")
    return {kind: whole(names) for kind, names in found.items()}


def fid(metric, entry: Removal, rows: list[dict], kept: Path, reference: Path, real: Sequence[Path]) -> float | None:
    """FID of the pictures that have a style and show no target, to real ones of the same; None where there are few."""
    hidden = {PLAIN, "Seed_Image", *entry.targets}  # the data set's folder of photographs goes by both names
    drawn = [kept / f"{n:05d}.png" for n, row in enumerate(rows) if hidden.isdisjoint((row["object"], row["style"]))]
    alike = [path for path in real if hidden.isdisjoint(path.relative_to(reference).parts)]
    return distance(metric, drawn, alike) if min(len(drawn), len(alike)) > 1 else None
