"""``evaluate``: how well concepts are gone and how well the others stay. Several processes draw a part each."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from saeuron import Setting
from saeuron.checkpoints import Bundle

from ..common.bundles import open_bundle, targets
from ..common.results import report, table
from ..diffusion.sampling import plan
from .commands import Evaluate
from .measures import MEASURES, Rate, percent
from .protocol import Protocol, Removal, begin, open_protocol


def run(config: Evaluate) -> None:
    bundle = open_bundle(config)
    settings = targets(bundle, config.targets, config)
    protocol = open_protocol(config, bundle, config.seeds)
    removals = protocol.singles(bundle.table, settings)
    if config.dry_run:
        plan(protocol.pipeline, protocol.sampling, len(protocol.rows) * (1 + len(removals))).tell(config)
        return
    begin(config, protocol, bundle, removals, ["targets/*.json", "evaluation.json", "evaluation.md"])
    found = evaluate(protocol, bundle, settings, config.output / "targets")
    report(config, "evaluation", found, markdown(found))


def evaluate(protocol: Protocol, bundle: Bundle, settings: Mapping[str, Setting], folder: Path | None = None) -> dict:
    """Base accuracies of the unedited model, and the measures of each target removed, on the same seeds.

    ``folder`` keeps what was found, a file a removal, and what is there is not drawn again.
    """
    removals = protocol.singles(bundle.table, settings)
    wanted = [Removal(), *removals]
    missing = [own for own in wanted if not (folder and (folder / f"{own.name}.json").exists())]
    # Where the unedited pictures are judged already, it takes three removals to make up for drawing them again.
    pays = missing[:1] == wanted[:1] or len(missing) > 2
    alike = cache(lambda: protocol.alike(missing, bundle) if pays else None)
    surveys = [protocol.survey(own, bundle, folder, alike=alike) for own in wanted]
    base, *found = [protocol.rates(survey) for survey in surveys]
    values, intervals = _flat(base)
    targets = []
    for removal, rates in zip(removals, found, strict=True):
        own, own_intervals = _flat(rates)
        entry = {"name": removal.name, "kind": removal.kind} | own
        entry |= {f"{key}_interval": interval for key, interval in own_intervals.items()}
        targets.append(entry | {"setting": settings[removal.name].values()})
    return {"images": len(protocol.rows), "base": values, "base_interval": intervals, "targets": targets}


def _flat(rates: Mapping[str, Rate]) -> tuple[dict, dict]:
    told = {key: rate.values() for key, rate in rates.items()}
    return {key: own["value"] for key, own in told.items()}, {key: (o["low"], o["high"]) for key, o in told.items()}


def markdown(report: dict) -> str:
    """The report as a Markdown table, in percent with 95 % intervals."""
    rows = [
        [target["name"], target["kind"], *(percent(target[key], target[f"{key}_interval"]) for key in MEASURES)]
        for target in report["targets"]
    ]
    base = ", ".join(f"{kind} {value:.1%}" for kind, value in report["base"].items())
    told = f"Unedited model on the same {report['images']} seeds: {base}."
    return "\n".join([table(["removed", "kind", "UA", "IRA", "CRA", "kept"], rows), "", told, ""])
