"""``sweep``: the number of latents and the strength for each concept, searched on anchor prompts with optuna."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

from saeuron import SaeuronError, Setting, SparseAutoencoder, read_assignment, write_settings
from saeuron.checkpoints import Bundle

from ..common.bundles import open_bundle, with_table
from ..common.progress import console
from ..common.prompts import digest
from ..common.results import table, tell
from ..common.resume import claim
from ..diffusion.load import identity
from ..diffusion.sampling import plan
from .commands import Sweep
from .measures import Rate, Verdicts, measures
from .protocol import Protocol, Removal, anchor_rows, open_protocol

SEARCHED = ("latents", "strength", "per_timestep")
DECIDING = ("ua", "ira", "cra")
"""The measures of which the worst decides."""
FREE = ("targets", "edit", "scale", "assigned", "presence", "paper_exact", "latents", "strengths", "per_timestep")
FREE += ("trials", "images", "seed", "batch", "judge", "judge_prompts")
"""Options that may change: another search is another study in the journal."""


def run(config: Sweep) -> None:
    bundle = with_table(open_bundle(config), config)
    found = candidates(config, bundle.sae)
    for name in config.targets:
        Removal(name, settings={name: found[0]}).edits(bundle)
    protocol = open_protocol(config, bundle)
    for name in config.targets:
        anchored(protocol, bundle, name, config.images, config.seed)
    if config.dry_run:
        tried = min(config.trials or len(found), len(found)) if len(found) > 1 else 0
        plan(protocol.pipeline, protocol.sampling, tried * config.images * len(config.targets)).tell(config)
        return
    made_with = {"sae": bundle.sae.fingerprint, "model": identity(config.model, protocol.pipeline)}
    made_with |= {"prompts": digest(protocol.rows), "judge": protocol.judge.identity}
    claim(config, config.output, free=FREE, pieces=["settings.json", "sweep.journal"], **made_with)
    settings, images, journal = {}, 0, config.output / "sweep.journal"
    for name in config.targets:
        settings[name], cost = sweep(
            protocol, bundle, name, found, config.images, journal, config.trials, config.seed, config.seed
        )
        images += cost
    path = config.output / "settings.json"
    write_settings(path, settings, images=images, fingerprint=bundle.sae.fingerprint)
    rows = [[name, *(getattr(setting, field) for field in ("edit", *SEARCHED))] for name, setting in settings.items()]
    tell(
        config,
        {"settings": {name: own.values() for name, own in settings.items()}, "images": images},
        table(["concept", "edit", *SEARCHED], rows),
    )
    console.print(f"settings for {len(settings)} concepts in {path}, at {images} images")


def grid(
    latents: list[int], strengths: list[float], per_timestep: list[bool], presence: float | None = None
) -> list[Setting]:
    return [Setting(*values, presence=presence) for values in itertools.product(latents, strengths, per_timestep)]


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


def anchored(protocol: Protocol, bundle: Bundle, target: str, images: int, seed: int) -> Protocol:
    """``protocol`` with ``images`` pictures of its prompts, every third of them like the others.

    Raises SaeuronError where ``target`` is unknown, or no prompt shows it, or all do.
    """
    protocol.kind(bundle.table, target)
    rows, seeds = anchor_rows(protocol.rows, bundle.table, target, images, seed)
    order = [n for third in range(3) for n in range(third, len(rows), 3)]
    return protocol.of([rows[n] for n in order], [seeds[n] for n in order])


def sweep(
    protocol: Protocol,
    bundle: Bundle,
    target: str,
    settings: Sequence[Setting],
    images: int,
    journal: Path,
    trials: int | None = None,
    seed: int = 0,
    anchor_seed: int = 0,
) -> tuple[Setting, int]:
    """The setting whose worst of UA, IRA and CRA is best, their mean deciding between equals; and the images it cost.

    Each is tried on ``images`` pictures of ``protocol``'s prompts, chosen and seeded by ``anchor_seed``. ``journal``
    holds what was tried; the same call continues there, and a finished search is only read from it. All ``settings``
    are tried in order, or ``trials`` of them that optuna's TPE picks by ``seed``. A setting is given up after a third
    of its pictures where one of its measures lies, with its 95 % interval, under the best worst measure so far.
    """
    if len(settings) == 1:
        return settings[0], 0
    anchors = anchored(protocol, bundle, target, images, anchor_seed)
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    identity = (bundle.sae.fingerprint, protocol.judge.identity, protocol.sampling, settings, anchors.rows)
    name = f"{target}-{_hash(*identity, anchors.seeds, trials, seed)}"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    choices = {field: sorted({getattr(setting, field) for setting in settings}) for field in SEARCHED}
    first = -(-images // 3)
    parts = [anchors.of(anchors.rows[part], anchors.seeds[part]) for part in (slice(first), slice(first, None))]

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
        verdicts = tried(parts[0], bundle, target, setting)
        rates = _rates(bundle, target, verdicts)
        if any(rate.interval[1] < best for rate in rates):
            _tell(trial, target, setting, rates, first)
            raise optuna.TrialPruned
        if images > first:
            verdicts += tried(parts[1], bundle, target, setting)
        rates = _rates(bundle, target, verdicts)
        _tell(trial, target, setting, rates, images)
        found = [rate.value for rate in rates]
        return min(found) + sum(found) / 3000

    wanted = min(trials or len(settings), len(settings))
    while (done := len(finished())) < wanted:
        study.sampler = optuna.samplers.TPESampler(seed=seed + done)  # so that it can go on as if never interrupted
        if wanted == len(settings) and not finished(TrialState.WAITING):
            study.enqueue_trial({field: getattr(settings[done], field) for field in SEARCHED})
        study.optimize(objective, n_trials=1)
    best = max(finished(TrialState.COMPLETE), key=lambda trial: trial.value)
    return dataclasses.replace(settings[0], **best.params), sum(trial.user_attrs["images"] for trial in finished())


def tried(protocol: Protocol, bundle: Bundle, target: str, setting: Setting) -> Verdicts:
    """What is found in the pictures of ``protocol`` when ``target`` is removed by ``setting``."""
    return protocol.verdicts(Removal(target, settings={target: setting}).edits(bundle))


def _rates(bundle: Bundle, target: str, verdicts: Verdicts) -> list[Rate]:
    """UA, IRA and CRA; one of which there is no picture yet is left out."""
    rates = measures(verdicts, target, bundle.table.concepts[target])
    return [rates[name] for name in DECIDING if rates[name].total]


def _tell(trial, target: str, setting: Setting, rates: Sequence[Rate], images: int) -> None:
    trial.set_user_attr("images", images)
    trial.set_user_attr("rates", [rate.value for rate in rates])
    told = "  ".join(f"{rate.value:.2f}" for rate in rates)
    console.print(f"{target}: {setting}  UA IRA CRA {told}  after {images} images", highlight=False)


def _hash(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]
