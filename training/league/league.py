"""``league``: every method on TinyCanvas under one protocol, with one judge, on the same seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from saeuron import SaeuronError
from saeuron.errors import nearest
from saeuron.files import write_json, write_text

from ..common.config import option_values, save_config
from ..common.processes import alone, barrier, is_main, main_first, share
from ..common.progress import console, track
from ..common.prompts import concepts, read_prompts
from ..common.results import Plan, tell
from ..common.resume import remove
from ..diffusion.sampling import Sampling
from ..diffusion.sampling import plan as cost
from .commands import CONDITIONS, ORDER, QUICK, League
from .contest import Contest, Job
from .methods import METHODS
from .report import markdown, near_pairs, plot, summaries
from .rows import about_sae, of_attack, of_condition, of_several, of_target, of_time

T = TypeVar("T")
SEQUENCE = ("circle", "ring", "square", "diamond", "triangle", "star", "cross", "heart", "moon")
TOGETHER = (("star", "neon"), ("circle", "sepia"), ("heart", "mosaic"))
COUNTS = (3, 6, 9)
CONDITION_METHODS = ("none", "saeuron", "default")


def league(config: League) -> dict | None:
    """Run ``config`` and return what it writes to ``league.json``.

    Of several processes the main one makes the SAEs; then all share searches and rows, and the main one reports.
    """
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    kinds = concepts(read_prompts("tinycanvas:evaluation"))
    _check(config, kinds)
    contest = Contest(config, kinds)
    targets = list(config.targets) or [name for name in kinds if name != "plain"]
    jobs = plan(contest, targets)
    if config.dry_run:
        _cost(contest, jobs).tell(config)
        return None
    with main_first(), alone():
        if is_main() and config.overwrite:
            remove(config.output, ["rows", "work-*", "league.*"])
        save_config(config, config.output)
        contest.prepare()
    searched = [(job.method, name) for job in jobs for name in job.names if name in kinds]
    _shared(searched, "searching", lambda pair: contest.search(*pair))
    _shared(jobs, "drawing", contest.row)
    if not is_main():
        return None
    with alone():
        return _report(contest, jobs, targets)


def plan(contest: Contest, targets: Sequence[str]) -> list[Job]:
    """Every row but the timing: the main table, removals in sequence and two at once, other conditions, attacks."""
    config, jobs = contest.config, []

    def add(what: str, method: str, names: Sequence[str], make: Callable[..., dict], *arguments: object) -> None:
        jobs.append(Job(what, method, tuple(names), partial(make, contest, method, *arguments)))

    for method in config.methods:
        for name in targets:
            add("target", method, [name], of_target, name)
    for method in ("none", *(name for name in config.extra_methods if name in config.methods)):
        for count in COUNTS[-1:] if config.quick else COUNTS:
            add("sequence", method, SEQUENCE[:count], of_several, SEQUENCE[:count])
        for pair in TOGETHER[:1] if config.quick else TOGETHER:
            add("together", method, pair, of_several, pair)
        for target in config.extra_targets:
            for name in config.conditions if method in CONDITION_METHODS else ():
                add("conditions", method, [target, name], of_condition, target, name)
            if method != "none":
                add("attack", method, [target], of_attack, target)
    return jobs


def _cost(contest: Contest, jobs: Sequence[Job]) -> Plan:
    """What the league takes where nothing of it is there yet, but for searches, which end when they have found.

    The time of a training step is that of two cores.
    """
    config, saes = contest.config, {METHODS[name].sae for name in contest.config.methods if name in METHODS}
    pictures = config.images + len(saes) * config.score_images + len(jobs) * 90 * config.seeds
    steps = len(saes) * config.train_steps + config.tune_steps
    drawing = cost(contest.pipeline, Sampling(config.steps, bf16=True), pictures)
    return Plan(
        drawing.work | {"rows": len(jobs), "training steps": steps}, 2_000_000_000, drawing.seconds + 0.06 * steps
    )


def _shared(items: Sequence[T], description: str, work: Callable[[T], object]) -> None:
    """Do ``work`` on every item, each process on its share, and wait for the others."""
    own = share(list(dict.fromkeys(items)))
    with alone():
        for item in track(own, description):
            work(item)
    barrier()


def _report(contest: Contest, jobs: Sequence[Job], targets: Sequence[str]) -> dict:
    config, found = contest.config, {}
    for job in jobs:
        found.setdefault(job.what, []).append(contest.row(job))
    timing = {}
    for method in config.methods:
        make = partial(of_time, contest, method, targets[0])
        timing[method] = contest.row(Job("timing", method, (targets[0],), make))
    report = {
        "command": command(config),
        "config": option_values(config),
        "rows": summaries(found["target"], timing, config.methods),
        "targets": found["target"],
        "near": near_pairs(found["target"]),
        **{what: found.get(what, []) for what in ("sequence", "together", "conditions", "attack")},
        "saes": [about_sae(name, reader) for name, reader in contest.saes(config.methods)],
    }
    write_json(config.output / "league.json", report)
    write_text(config.output / "league.md", markdown(report))
    plot(report, config.output / "league.png")
    tell(config, report, markdown(report))
    for name in ("league.json", "league.md", "league.png"):
        console.print(config.output / name)
    return report


def command(config: League) -> str:
    """The command line that plays this league."""
    if config.quick:
        return "python -m training league --quick"
    plain, words = League(), ["python -m training league"]
    for name in option_values(config):
        value = getattr(config, name)
        if value != getattr(plain, name) and name != "output":
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def _check(config: League, kinds: Mapping[str, str]) -> None:
    known = {
        "methods": ORDER,
        "targets": kinds,
        "extra_methods": ORDER,
        "extra_targets": kinds,
        "conditions": CONDITIONS,
    }
    for name, valid in known.items():
        for value in getattr(config, name):
            if value not in valid:
                option = name.replace("_", "-")
                raise SaeuronError(f"--{option} {value!r} is unknown; the nearest are {nearest(value, valid)}")
