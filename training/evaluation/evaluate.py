"""``evaluate``: how well concepts are gone and how well the others stay. Several processes draw a part each."""

import dataclasses
from collections.abc import Mapping, Sequence

from diffusers import StableDiffusionPipeline

from saeuron import ConceptTable, Hookpoint, SaeuronError, Setting, SparseAutoencoder, build_edits
from saeuron.files import write_json, write_text

from ..common.bundles import open_bundle, targets
from ..common.config import save_config
from ..common.processes import is_main, own_device, share, whole
from ..common.progress import console, track
from ..common.prompts import read_labelled
from ..diffusion.hook import Edit
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all
from .commands import Evaluate
from .judges import judge_tinycanvas
from .measures import KINDS, Rate, Verdicts, measures


def run(config: Evaluate) -> None:
    device = own_device(config.device)
    bundle = open_bundle(config)
    settings = targets(bundle, config.targets, config)
    sae, table = bundle.sae.to(device), bundle.table
    pipeline = load_model("tinycanvas", device, config.sampler)
    check_fits(sae, pipeline)
    rows, seeds = paired(read_labelled(config.prompts, KINDS), config.seeds, config.seed)
    sampling = Sampling(config.steps, config.guidance, config.batch, config.bf16)
    report = evaluate(pipeline, sae, table, settings, rows, seeds, sampling)
    if is_main():
        save_config(config, config.output)
        write_json(config.output / "evaluation.json", report)
        write_text(config.output / "evaluation.md", markdown(report))
        console.print(markdown(report))


def paired(rows: list[dict], copies: int, first: int) -> tuple[list[dict], list[int]]:
    """Every prompt ``copies`` times, and a seed for each picture that no other picture has."""
    if copies < 1:
        raise SaeuronError("--seeds has to be at least 1")
    repeated = [row for _ in range(copies) for row in rows]
    return repeated, [first * 1_000_003 + n for n in range(len(repeated))]


def evaluate(
    pipeline: StableDiffusionPipeline,
    sae: SparseAutoencoder,
    table: ConceptTable,
    settings: dict[str, Setting],
    rows: list[dict],
    seeds: list[int],
    sampling: Sampling,
) -> dict:
    """Base accuracies of the unedited model, and UA, IRA, CRA of each target on the same seeds."""
    edits = {name: build_edits(sae, table, {name: setting}) for name, setting in settings.items()}
    base = _verdicts(pipeline, rows, seeds, sampling)
    targets = []
    for name, chain in track(list(edits.items()), "evaluating"):
        verdicts = _verdicts(pipeline, rows, seeds, sampling, {sae.hookpoint: chain})
        kind = table.concepts[name]
        rates = measures(verdicts, name, kind)
        targets.append(
            {"name": name, "kind": kind}
            | {key: rate.value for key, rate in rates.items()}
            | {f"{key}_interval": rate.interval for key, rate in rates.items()}
            | {"setting": dataclasses.asdict(settings[name])}
        )
    return {
        "images": len(rows),
        "base": {kind: base.accuracy(kind) for kind in base.asked},
        "base_interval": {kind: Rate(sum(base.right(kind)), len(rows)).interval for kind in base.asked},
        "targets": targets,
    }


def _verdicts(
    pipeline: StableDiffusionPipeline,
    rows: list[dict],
    seeds: list[int],
    sampling: Sampling,
    edits: Mapping[Hookpoint, Sequence[Edit]] | None = None,
) -> Verdicts:
    """What the judge finds in all pictures, of which this process draws its share."""
    own, found = share(rows), {kind: [] for kind in KINDS}
    if own:
        found = judge_tinycanvas(draw_all(pipeline, own, share(seeds), sampling, edits), own).found
    asked = {kind: [row[kind] for row in rows] for kind in KINDS}
    return Verdicts(asked, {kind: whole(names) for kind, names in found.items()})


def markdown(report: dict) -> str:
    """The report as a Markdown table, in percent with 95 % intervals."""

    def cell(target: dict, key: str) -> str:
        low, high = target[f"{key}_interval"]
        return f"{target[key]:.1%} ({low:.1%} – {high:.1%})"

    lines = ["| removed | kind | UA | IRA | CRA |", "|---|---|---|---|---|"]
    for target in report["targets"]:
        cells = [cell(target, key) for key in ("ua", "ira", "cra")]
        lines.append(f"| {target['name']} | {target['kind']} | {' | '.join(cells)} |")
    base = ", ".join(f"{kind} {value:.1%}" for kind, value in report["base"].items())
    return "\n".join([*lines, "", f"Unedited model on the same {report['images']} seeds: {base}.", ""])
