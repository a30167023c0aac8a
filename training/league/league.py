"""``league``: every method on TinyCanvas under one protocol, with one judge, on the same seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from saeuron import SaeuronError
from saeuron.errors import nearest
from saeuron.files import write_json, write_text

from ..common.config import save_config
from ..common.processes import alone, barrier, is_main, main_first, share
from ..common.progress import console, track
from ..common.prompts import concepts, read_prompts
from .methods import METHODS
from .report import markdown, near_pairs, plot, summaries
from .rows import CONDITIONS, Contest, about_sae, of_attack, of_condition, of_several, of_target, of_time

T = TypeVar("T")
ORDER = ("none", *list(METHODS)[:-1], "oracle", "default")
SEQUENCE = ("circle", "ring", "square", "diamond", "triangle", "star", "cross", "heart", "moon")
TOGETHER = (("star", "neon"), ("circle", "sepia"), ("heart", "mosaic"))
COUNTS = (3, 6, 9)
CONDITION_METHODS = ("none", "saeuron", "default")
QUICK: dict[str, object] = {
    "targets": ("circle", "star", "neon"),
    "images": 200,
    "train_batch": 1024,
    "train_steps": 600,
    "tune_steps": 300,
    "score_images": 180,
    "search_images": 12,
    "latents": (1, 4),
    "strengths": (-1.0, -10.0, -20.0),
    "seeds": 1,
    "steps": 15,
    "oracle_steps": 30,
    "extra_methods": ("default",),
    "extra_targets": ("star",),
    "conditions": ("ddim 10", "euler", "32 × 48"),
    "attack_seeds": 1,
}


@dataclass
class League:
    """Compare every method on TinyCanvas. Started again, it continues; finished rows are read, not made again."""

    output: Path = Path("out/league")
    """Folder for league.json, league.md, league.png and all that they are made from."""
    quick: bool = False
    """A small league in six minutes: few targets, pictures and steps. Wins over the options below."""
    methods: tuple[str, ...] = ORDER
    """Methods to compare."""
    targets: tuple[str, ...] = ()
    """Concepts to remove, each on its own; default all ten objects, and all styles but plain."""
    object_block: str = "unet.up_blocks.1.attentions.1"
    """Where objects are read and edited."""
    style_block: str = "unet.up_blocks.1.attentions.1"
    """Where styles are read and edited."""
    images: int = 600
    """Pictures recorded for the SAEs."""
    tokens_per_map: int = 32
    """Tokens kept of each feature map."""
    expansion: int = 8
    """Latents per input channel of every SAE."""
    k: int = 32
    """Active latents per token."""
    train_batch: int = 2048
    """Tokens per training step."""
    train_steps: int = 2500
    """Training steps of each SAE that begins from scratch."""
    tune_steps: int = 1500
    """Training steps of the supervised SAE that goes on from the unsupervised one."""
    score_images: int = 540
    """Anchor pictures of each concept table."""
    search_images: int = 18
    """Anchor pictures per setting tried."""
    latents: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of latents that searches try (τ), of those a method may try."""
    strengths: tuple[float, ...] = (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)
    """Multipliers that searches try (γ), of those a method may try."""
    seeds: int = 1
    """Pictures of each of the 90 evaluation prompts."""
    seed: int = 188
    """Seed of everything; the pictures' first."""
    steps: int = 25
    """Denoising steps."""
    oracle_steps: int = 50
    """Training steps of each oracle, and of the fine-tuned copy."""
    extra_methods: tuple[str, ...] = ("saeuron", "saemnesia", "default")
    """Methods that are also tried in sequence, on two concepts at once and under attack. The default and SAeUron are
    tried under other conditions too."""
    extra_targets: tuple[str, ...] = ("star", "neon")
    """Concepts that are removed under other conditions and under attack."""
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    """Samplers, numbers of steps and sizes to try, and the model itself fine-tuned."""
    attack_seeds: int = 2
    """Pictures of each prompt that are attacked."""
    attack_iterations: int = 40
    """Gradient steps of each attack."""

    def run(self) -> None:
        league(self)


@dataclass(frozen=True)
class Job:
    """One row of the league: ``what`` kind of row, of which method, about which concepts or conditions."""

    what: str
    method: str
    names: Sequence[str]
    make: Callable[[], dict]


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
    with main_first(), alone():
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
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in vars(config).items()},
        "rows": summaries(found["target"], timing, config.methods),
        "targets": found["target"],
        "near": near_pairs(found["target"]),
        **{what: found.get(what, []) for what in ("sequence", "together", "conditions", "attack")},
        "saes": [about_sae(name, reader) for name, reader in contest.saes(config.methods)],
    }
    write_json(config.output / "league.json", report)
    write_text(config.output / "league.md", markdown(report))
    plot(report, config.output / "league.png")
    console.print(markdown(report))
    for name in ("league.json", "league.md", "league.png"):
        print(config.output / name)
    return report


def command(config: League) -> str:
    """The command line that plays this league."""
    if config.quick:
        return "python -m training league --quick"
    plain, words = League(), ["python -m training league"]
    for name in vars(config):
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
