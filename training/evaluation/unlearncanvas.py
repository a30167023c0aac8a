"""``unlearncanvas``: the UnlearnCanvas benchmark on a fine-tuned checkpoint, with its two classifiers as judges.

Concepts are removed one at a time, all prompts are drawn each time, and UA, IRA and CRA are counted as in `measures`.
Beside what the paper fixes, three things are settled here: every target is drawn from the same noise; every picture
counts once; and a plain picture (`An image of Bears.`) is one in the style that the style classifier calls Seed_Images.
Several processes draw a part of the pictures each.
"""

from collections.abc import Sequence
from pathlib import Path

from saeuron import SaeuronError
from saeuron.checkpoints import Bundle

from ..common.bundles import chosen, given_settings, open_bundle, with_table
from ..common.pictures import save_picture
from ..common.processes import barrier, is_main, own_device
from ..common.results import report
from ..diffusion.sampling import Sampling
from ..diffusion.sampling import plan as cost
from .canvas import NAMES, PLAIN, kind_of, label, markdown, pictures, summary
from .commands import UnlearnCanvas
from .fid import distance, find_pictures, load_metric
from .protocol import Protocol, Removal, begin, pipeline_for
from .vit import VitJudge

FREE = ("sequence", "save_images", "reference", "inception", "judge_style", "judge_object")
"""Options that may differ between runs that continue each other."""
PIECES = ("targets/*.json", "images/*", "unlearncanvas.json", "unlearncanvas.md")


def run(config: UnlearnCanvas) -> dict | None:
    """Run ``config`` and return its report, also written to ``unlearncanvas.json``."""
    device, (rows, seeds) = own_device(config.device), pictures(config.seeds, config.limit)
    bundle = open_bundle(config)
    removals = [Removal(), *plan(config, bundle)]
    real = find_pictures(config.reference) if config.reference else []
    metric = load_metric(config.inception, device) if real and is_main() else None
    judge = VitJudge({"object": config.judge_object, "style": config.judge_style}, NAMES, device)
    protocol = Protocol(pipeline_for(config, bundle), judge, rows, seeds, Sampling.of(config))
    if config.dry_run:
        return cost(protocol.pipeline, protocol.sampling, len(rows) * len(removals)).tell(config)
    begin(config, protocol, bundle, removals, PIECES, FREE, label)

    def make(removal: Removal) -> dict:
        folder = config.output / "images" / removal.name if config.save_images or real else None
        keep = (lambda number, image: save_picture(image, folder / f"{number:05d}.png")) if folder else None
        found = protocol.verdicts(removal.edits(bundle), removal.name, keep).found
        return {"found": found, "fid": fid(metric, removal, rows, folder, config.reference, real) if metric else None}

    folder = config.output / "targets"
    found = summary(rows, [protocol.survey(own, bundle, folder, lambda own=own: make(own)) for own in removals])
    report(config, "unlearncanvas", found, markdown(found))
    barrier()
    return found


def plan(config: UnlearnCanvas, bundle: Bundle) -> list[Removal]:
    """What is removed, in order. Raises SaeuronError on a concept that UnlearnCanvas or the table does not know."""
    own = {label(name): name for name in with_table(bundle, config).table.concepts}
    bundle.settings = {own.get(label(name), name): setting for name, setting in bundle.settings.items()}
    names = list(config.targets or given_settings(config) or bundle.settings or (name for name in own if name != PLAIN))
    names = [label(name) for name in names]
    kinds = {name: kind_of(name) for name in names}
    settings = chosen(bundle, [own.get(name, name) for name in names], config)
    if config.sequence and len(set(kinds.values())) > 1:
        raise SaeuronError("a --sequence is of objects or of styles: give --targets of one kind")

    def removal(name: str, targets: Sequence[str]) -> Removal:
        of_table = [own.get(target, target) for target in targets]
        return Removal(name, tuple(targets), kinds[targets[0]], {target: settings[target] for target in of_table})

    if config.sequence:
        return [removal(f"{n:02d}-{name}", names[:n]) for n, name in enumerate(names, 1)]
    return [removal(name, [name]) for name in names]


def fid(metric, removal: Removal, rows: list[dict], kept: Path, reference: Path, real: Sequence[Path]) -> float | None:
    """FID of the pictures that have a style and show no target, to real ones of the same; None where there are few."""
    hidden = {PLAIN, "Seed_Image", *removal.targets}  # the data set's folder of photographs goes by both names
    drawn = [kept / f"{n:05d}.png" for n, row in enumerate(rows) if hidden.isdisjoint((row["object"], row["style"]))]
    alike = [path for path in real if hidden.isdisjoint(path.relative_to(reference).parts)]
    return distance(metric, drawn, alike) if min(len(drawn), len(alike)) > 1 else None
