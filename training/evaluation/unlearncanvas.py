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

from saeuron import ConceptTable, Hookpoint, SaeuronError, Setting, build_edits, load_sae, read_settings
from saeuron.files import write_json, write_text

from ..common.config import made, recipe, save_config
from ..common.pictures import save_picture
from ..common.processes import barrier, is_main, of_main, own_device, share, whole
from ..common.progress import console, track
from ..diffusion.hook import Edit
from ..diffusion.load import Pipeline, check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all
from .canvas import NAMES, PLAIN, kind_of, label, markdown, pictures, summary
from .commands import UnlearnCanvas
from .fid import distance, find_pictures, load_metric
from .measures import KINDS
from .vit import Judge, load_judge

# Options that may differ between runs that continue each other.
FREE = {"output", "targets", "sequence", "settings", "latents", "strength", "per_timestep"}
FREE |= {"save_images", "inception", "batch", "device"}


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
    device = own_device(config.device)
    rows, seeds = pictures(config.seeds, config.limit)
    sae, table = load_sae(config.sae).to(device), ConceptTable.load(config.table)
    removals = [Removal("base"), *plan(config, table)]
    edits = {entry.name: build_edits(sae, table, entry.settings) for entry in removals}
    real = find_pictures(config.reference) if config.reference else []
    metric = load_metric(config.inception, device) if real and is_main() else None
    judge = load_judge({"object": config.judge_object, "style": config.judge_style}, NAMES, device)
    pipeline = load_model(config.model, device, config.sampler)
    check_fits(sae, pipeline)
    sampling = Sampling(config.steps, config.guidance, config.batch, config.bf16, config.height, config.width)
    bench = Bench(pipeline, judge, sae.hookpoint, rows, seeds, sampling)
    results = []
    for entry in removals:
        settings = {name: dataclasses.asdict(setting) for name, setting in entry.settings.items()}
        how = recipe(config, FREE, sae=sae.fingerprint, settings=settings)
        path = config.output / "targets" / f"{entry.name}.json"
        result = of_main(made(path, how) if is_main() else None)
        if result is None:
            kept = config.output / "images" / entry.name if config.save_images or real else None
            found = survey(bench, entry.name, edits[entry.name], kept)
            result = {"name": entry.name, "targets": entry.targets, "kind": entry.kind, "found": found, "fid": None}
            if is_main():
                if metric:
                    result["fid"] = fid(metric, entry, rows, kept, config.reference, real)
                write_json(path, result | {"recipe": how})
        results.append(result)
    report = summary(rows, results)
    if is_main():
        save_config(config, config.output)
        write_json(config.output / "unlearncanvas.json", report)
        write_text(config.output / "unlearncanvas.md", markdown(report))
        console.print(markdown(report))
    barrier()
    return report


def plan(config: UnlearnCanvas, table: ConceptTable) -> list[Removal]:
    """What is removed, in order. Raises SaeuronError on a concept that UnlearnCanvas or the table does not know."""
    tuned = read_settings(config.settings) if config.settings else {}
    tuned = {label(name): setting for name, setting in tuned.items()}
    own = {label(name): name for name in table.concepts}
    names = [label(name) for name in config.targets] or list(tuned) or [name for name in own if name != PLAIN]
    kinds = {name: kind_of(name) for name in names}
    default = Setting(config.latents, config.strength, config.per_timestep, paper_exact=config.paper_exact)
    settings = {name: (own.get(name, name), tuned.get(name, default)) for name in names}
    for of_table, _ in settings.values():
        table.kind(of_table)
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
