"""``sweep``: the number of latents and the strength for each concept, searched on anchor prompts with optuna."""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from saeuron import (
    ConceptTable,
    SaeuronError,
    Setting,
    SparseAutoencoder,
    build_edits,
    load_sae,
    read_assignment,
    write_settings,
)

from ..common.config import save_config
from ..common.progress import console
from ..common.prompts import read_labelled
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all
from .commands import Sweep
from .judges import judge_tinycanvas
from .measures import KINDS, Rate, measures

SEARCHED = ("latents", "strength", "per_timestep")


def grid(
    latents: list[int], strengths: list[float], per_timestep: list[bool], presence: float | None = None
) -> list[Setting]:
    return [Setting(*values, presence=presence) for values in itertools.product(latents, strengths, per_timestep)]


def run(config: Sweep) -> None:
    sae, table = load_sae(config.sae).to(config.device), ConceptTable.load(config.table)
    found = candidates(config, sae)
    rows = read_labelled(config.prompts, KINDS)
    anchors = {name: anchor_rows(rows, table, name, config.images, config.seed) for name in config.targets}
    for name in config.targets:
        build_edits(sae, table, {name: found[0]})
    pipeline = load_model("tinycanvas", config.device)
    check_fits(sae, pipeline)
    sampling = Sampling(config.steps, config.guidance, config.batch, config.bf16)
    save_config(config, config.output)
    settings, images = {}, 0
    for name, (shown, seeds) in anchors.items():
        settings[name], cost = sweep(
            Bench(pipeline, sae, table, sampling),
            name,
            found,
            shown,
            seeds,
            config.output / "sweep.journal",
            config.trials,
            config.seed,
        )
        images += cost
    path = config.output / "settings.json"
    write_settings(path, settings, images=images, fingerprint=sae.fingerprint)
    console.print(f"settings for {len(settings)} concepts in {path}, at {images} images")


@dataclass(frozen=True)
class Bench:
    """What settings are tried on."""

    pipeline: StableDiffusionPipeline
    sae: SparseAutoencoder
    table: ConceptTable
    sampling: Sampling


def candidates(config: Sweep, sae: SparseAutoencoder) -> list[Setting]:
    """Every setting that ``config`` allows; a single one where the edit has nothing to search."""
    if config.assigned:
        read_assignment(sae)
    one = config.assigned and config.edit != "shift"
    latents, per_timestep = ([1], [True]) if one else (list(config.latents), list(config.per_timestep))
    source = "assigned" if config.assigned else "score"
    way = {"edit": config.edit, "scale": config.scale, "paper_exact": config.paper_exact}
    way["detect" if config.edit == "shift" else "select"] = source
    found = [
        dataclasses.replace(setting, **way)
        for setting in grid(latents, list(config.strengths), per_timestep, config.presence)
    ]
    if not found:
        raise SaeuronError("there is nothing to try: give --latents, --strengths and --per-timestep")
    return found[:1] if config.edit == "replace" else found


def anchor_rows(
    rows: Sequence[dict], table: ConceptTable, target: str, images: int, seed: int
) -> tuple[list[dict], list[int]]:
    """Prompts and seeds for ``images`` pictures: a third show the target, the rest spread over the other prompts."""
    if images < 2:
        raise SaeuronError(f"a search draws at least 2 pictures a setting, and {images} is fewer")
    kind = table.kind(target)
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    own = [row for row in shuffled if row[kind] == target]
    others = [row for row in shuffled if row[kind] != target]
    if not own or not others:
        raise SaeuronError(f"the prompts need some that show {target!r} and some that do not")
    third = max(images // 3, 1)
    picked = [own[n % len(own)] for n in range(third)] + [others[n % len(others)] for n in range(images - third)]
    return picked, [seed * 1_000_003 + n for n in range(len(picked))]


def sweep(
    bench: Bench,
    target: str,
    settings: Sequence[Setting],
    rows: Sequence[dict],
    seeds: Sequence[int],
    journal: Path,
    trials: int | None = None,
    seed: int = 0,
) -> tuple[Setting, int]:
    """The setting whose worst of UA, IRA and CRA is best, their mean deciding between equals; and the images it cost.

    ``journal`` holds what was tried; the same call continues there, and a finished search is only read from it. All
    ``settings`` are tried in order, or ``trials`` of them that optuna's TPE picks. A setting is given up after a third
    of its pictures where one of its measures lies, with its 95 % interval, under the best worst measure so far.
    """
    if len(settings) == 1:
        return settings[0], 0
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    name = f"{target}-{_identity(bench, settings, rows, seeds, trials, seed)}"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    choices = {field: sorted({getattr(setting, field) for setting in settings}) for field in SEARCHED}
    order = [n for third in range(3) for n in range(third, len(rows), 3)]
    rows, seeds = [rows[n] for n in order], [seeds[n] for n in order]
    first = -(-len(rows) // 3)

    def finished(*states: TrialState) -> list[optuna.trial.FrozenTrial]:
        return study.get_trials(deepcopy=False, states=states or (TrialState.COMPLETE, TrialState.PRUNED))

    def objective(trial: optuna.Trial) -> float:
        values = {field: trial.suggest_categorical(field, choices[field]) for field in SEARCHED}
        for known in finished():
            if known.params == values:  # TPE may ask twice; the answer is free
                trial.set_user_attr("images", 0)
                if known.state == TrialState.PRUNED:
                    raise optuna.TrialPruned
                return known.value
        setting = dataclasses.replace(settings[0], **values)
        best = max((done.value for done in finished(TrialState.COMPLETE)), default=-1.0)
        images = _draw(bench, target, setting, rows[:first], seeds[:first])
        rates = _rates(bench, target, images, rows[:first])
        if any(rate.interval[1] < best for rate in rates):
            _tell(trial, target, setting, rates, first)
            raise optuna.TrialPruned
        images = torch.cat([images, _draw(bench, target, setting, rows[first:], seeds[first:])])
        rates = _rates(bench, target, images, rows)
        _tell(trial, target, setting, rates, len(rows))
        found = [rate.value for rate in rates]
        return min(found) + sum(found) / 3000

    wanted = min(trials or len(settings), len(settings))
    while (done := len(finished())) < wanted:
        study.sampler = optuna.samplers.TPESampler(seed=seed + done)  # so that it can go on as if never interrupted
        if wanted == len(settings) and not finished(TrialState.WAITING):
            study.enqueue_trial({field: getattr(settings[done], field) for field in SEARCHED})
        study.optimize(objective, n_trials=1)
    best = max(finished(TrialState.COMPLETE), key=lambda trial: trial.value)
    images = sum(trial.user_attrs["images"] for trial in finished())
    return dataclasses.replace(settings[0], **best.params), images


def _draw(bench: Bench, target: str, setting: Setting, rows: Sequence[dict], seeds: Sequence[int]) -> torch.Tensor:
    chain = build_edits(bench.sae, bench.table, {target: setting})
    return draw_all(bench.pipeline, rows, seeds, bench.sampling, {bench.sae.hookpoint: chain})


def _rates(bench: Bench, target: str, images: torch.Tensor, rows: Sequence[dict]) -> list[Rate]:
    """UA, IRA and CRA; one of which there is no picture yet is left out."""
    rates = measures(judge_tinycanvas(images, rows), target, bench.table.concepts[target]).values()
    return [rate for rate in rates if rate.total]


def _tell(trial, target: str, setting: Setting, rates: Sequence[Rate], images: int) -> None:
    trial.set_user_attr("images", images)
    trial.set_user_attr("rates", [rate.value for rate in rates])
    told = "  ".join(f"{rate.value:.2f}" for rate in rates)
    console.print(f"{target}: {setting}  UA IRA CRA {told}  after {images} images", highlight=False)


def _identity(bench: Bench, *inputs: object) -> str:
    parts = (bench.sae.fingerprint, bench.sampling, *inputs)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
