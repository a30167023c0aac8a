"""``train``: a recording → an SAE. Several processes share each batch, and learn what one process would learn."""

import dataclasses
import hashlib
import math
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from saeuron import (
    ConceptTable,
    Recording,
    SaeuronError,
    SparseAutoencoder,
    assign,
    assign_at_random,
    load_sae,
    save_sae,
)
from saeuron.files import read_json, write_atomically, write_json
from saeuron.recording import Tokens

from ..common.config import save_config
from ..common.processes import barrier, is_main, joined, own_device, processes, sum_gradients
from ..common.progress import console
from .commands import Train
from .supervise import Supervision, Weights, read_targets, report, supervised_losses
from .trainer import Normalisation, TrainingAutoencoder

ACTIVATIONS = ("batch_topk", "topk", "sigmoid_topk")


def train(config: Train) -> SparseAutoencoder:
    """Run ``config`` and return the SAE, also saved to ``config.output`` with its ``metrics.json``."""
    recording = Recording(config.recording)
    if not recording.complete:
        raise SaeuronError(f"{config.recording} is not finished; run `record` on it again to complete it")
    _check(config, recording)
    torch.manual_seed(config.seed)
    held_out, shards = _split(recording)
    rows = sum(recording.shards[name] for name in shards)
    per_epoch = rows // config.batch
    if per_epoch == 0:
        raise SaeuronError(f"the recording has {rows} tokens to train on, fewer than one --batch of {config.batch}")
    steps = config.steps or config.epochs * per_epoch

    device = torch.device(own_device(config.device))
    normalisation = Normalisation.of(recording.read(shards[0]).activations.float())
    normalisation.mean = normalisation.mean.to(device)
    initial = load_sae(config.init) if config.init else None
    model = _start(config, recording, normalisation, initial).to(device)
    supervision = _supervision(config, recording, len(model.W_enc), initial)
    weights = Weights(config.bce, config.decorrelation, config.l1, config.contrast, config.temperature)
    identity = _identity(config, recording, steps, initial, supervision)
    finished = _finished(config.output, identity)
    barrier()
    if finished:
        return finished.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 1.25 * (1 - step / steps)))
    start = _resume(config.output, identity, model, optimizer, schedule)
    barrier()
    if is_main():
        save_config(config, config.output)

    k_aux = config.k_aux or max(recording.d_in // 2, 1)
    with SummaryWriter(str(config.output / "tensorboard"), purge_step=start) if is_main() else nullcontext() as log:
        for step, tokens in _stream(recording, shards, config, start, steps, per_epoch):
            batch = normalisation(tokens.activations.to(device, torch.float32))
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses = model.losses(batch, config.dead_after, k_aux)
            terms = {"auxiliary": config.aux * losses.auxiliary}
            if supervision and is_main():  # hardly any work, and of the whole batch
                terms |= supervised_losses(model, batch, losses.code, tokens, supervision, weights)
            (losses.fvu + sum(terms.values())).backward()
            sum_gradients(model.parameters())
            model.project_gradient()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            model.normalise_decoder()
            if (step + 1) % config.log_every == 0:
                _log(log, step + 1, steps, losses, terms, model, config)
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps and is_main():
                _checkpoint(config.output, identity, step + 1, model, optimizer, schedule)
    sae = model.fold(normalisation, hookpoint=recording.hookpoint, base_model=str(recording.settings.get("model", "")))
    sae = sae.to(device)
    if is_main():
        _finish(config, recording, held_out, steps, identity, sae, supervision)
    barrier()
    return _finished(config.output, identity).to(device)


def _finish(
    config: Train,
    recording: Recording,
    held_out: str,
    steps: int,
    identity: str,
    sae: SparseAutoencoder,
    supervision: Supervision | None,
) -> None:
    """Measure the SAE and write all that there is to say of it."""
    unseen = recording.read(held_out)
    metrics = measure(sae, unseen)
    notes = {"recording": recording.settings_hash, "seed": config.seed, "steps": steps, "identity": identity}
    if sae.activation == "sigmoid_topk":
        notes["normalize_decoder"] = False
    if supervision and config.bce:
        metrics["concepts"] = report(sae, unseen, recording.prompts, supervision)
        notes["assignment"] = supervision.assignment
    save_sae(sae, config.output, metrics=metrics, **notes)
    write_json(config.output / "metrics.json", metrics)
    (config.output / "checkpoint.pt").unlink(missing_ok=True)
    console.print(
        f"SAE: unexplained variance {metrics['fvu']:.3f}, dead latents {metrics['dead']:.1%}, L0 {metrics['l0']:.1f}"
    )
    if metrics.get("concepts"):
        own = [concept["centralised"] for concept in metrics["concepts"].values()]
        console.print(f"the assigned latent is the strongest for {sum(own)} of {len(own)} concepts")


def _finished(folder: Path, identity: str) -> SparseAutoencoder | None:
    """The SAE that a run of this identity has left in ``folder``."""
    try:
        sae, metrics = load_sae(folder), read_json(folder / "metrics.json")
    except SaeuronError:
        return None
    if sae.config.get("identity") != identity:
        return None
    sae.metrics = metrics
    return sae


def _start(
    config: Train, recording: Recording, normalisation: Normalisation, initial: SparseAutoencoder | None
) -> TrainingAutoencoder:
    """The model before its first step: the SAE of ``--init``, or random weights."""
    if initial is None:
        generator = torch.Generator().manual_seed(config.seed)
        n_latents = recording.d_in * config.expansion
        return TrainingAutoencoder(recording.d_in, n_latents, config.k, config.activation, generator)
    initial.check_width(torch.empty(0, recording.d_in))
    if initial.activation not in ACTIVATIONS:
        raise SaeuronError(f"--init has the activation {initial.activation!r}, which is not trained here")
    if initial.hookpoint not in (None, recording.hookpoint):
        raise SaeuronError(
            f"the SAE of --init reads {initial.hookpoint.name} ({initial.hookpoint.site}) and the recording is of "
            f"{recording.hookpoint.name} ({recording.hookpoint.site})"
        )
    return TrainingAutoencoder.unfold(initial, normalisation)


def _supervision(
    config: Train, recording: Recording, n_latents: int, initial: SparseAutoencoder | None
) -> Supervision | None:
    if not config.labels:
        return None
    kinds, targets = read_targets(recording.prompts, config.labels)
    if config.table is None:
        return Supervision(kinds, assign_at_random(kinds, n_latents, config.seed), targets)
    table = ConceptTable.load(config.table)
    table.check_belongs(initial.fingerprint)
    return Supervision(kinds, assign(table, kinds), targets)


@torch.no_grad()
def measure(sae: SparseAutoencoder, tokens: Tokens) -> dict:
    """What the SAE does on tokens it has not seen, as inference runs it.

    ``fvu`` is the fraction of variance unexplained, also per timestep; ``dead`` the fraction of latents that fire on
    none of the tokens; ``l0`` the mean number of active latents.
    """
    unexplained, fired, active = [], torch.zeros(sae.n_latents, dtype=torch.bool), 0
    for start in range(0, len(tokens), 4096):
        batch = tokens.activations[start : start + 4096].to(sae.W_enc)
        code = sae.encode(batch)
        unexplained.append((batch - sae.decode(code)).pow(2).sum(1).cpu())
        fired |= (code > 0).any(0).cpu()
        active += int((code > 0).sum())
    left = torch.cat(unexplained).double()
    activations = tokens.activations.double()
    variance = (activations - activations.mean(0)).pow(2).sum()
    by_timestep = {}
    for timestep in tokens.timestep.unique(sorted=True).tolist():
        rows = tokens.timestep == timestep
        own = activations[rows]
        by_timestep[timestep] = float(left[rows].sum() / (own - own.mean(0)).pow(2).sum())
    return {
        "fvu": float(left.sum() / variance),
        "dead": float((~fired).float().mean()),
        "l0": active / len(tokens),
        "tokens": len(tokens),
        "fvu_by_timestep": by_timestep,
    }


def _check(config: Train, recording: Recording) -> None:
    for name in ("expansion", "k", "epochs", "batch", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise SaeuronError(f"--{name.replace('_', '-')} is {getattr(config, name)} and has to be at least 1")
    if config.steps is not None and config.steps < 1:
        raise SaeuronError(f"--steps is {config.steps} and has to be at least 1")
    if config.k > recording.d_in * config.expansion:
        raise SaeuronError(
            f"--k is {config.k} and the SAE has only {recording.d_in * config.expansion} latents: "
            "lower it or raise --expansion"
        )
    if config.activation not in ACTIVATIONS:
        raise SaeuronError(f"--activation {config.activation!r} is unknown; it is one of {', '.join(ACTIVATIONS)}")
    if config.table and not (config.labels and config.init):
        raise SaeuronError("--table assigns latents of the SAE in --init to the concepts of --labels: give both")
    if config.batch % processes():
        raise SaeuronError(f"--batch is {config.batch} and has to be a multiple of the {processes()} processes")
    if config.contrast and processes() > 1:
        raise SaeuronError("--contrast compares all codes of a batch: train with it in one process")
    if config.device != "cpu" and not torch.cuda.is_available():
        raise SaeuronError(f"device {config.device!r} is not there; use --device cpu")


def _split(recording: Recording) -> tuple[str, list[str]]:
    """The last shard is held out for measuring; the rest trains."""
    names = list(recording.shards)
    if len(names) < 2:
        raise SaeuronError(
            f"{recording.folder} has one shard and training holds one out: record more images, or fewer a shard"
        )
    return names[-1], names[:-1]


def _stream(recording: Recording, shards: list[str], config: Train, start: int, steps: int, per_epoch: int):
    """``(step, Tokens)`` from ``start`` on, the same as an uninterrupted run would see them."""
    step = start // per_epoch * per_epoch
    for epoch in range(start // per_epoch, math.ceil(steps / per_epoch)):
        batches = recording.batches(config.batch, config.seed, epoch, shards=shards, by_map=bool(config.labels))
        for tokens in batches:
            if start <= step < steps:
                yield step, tokens
            step += 1


def _identity(
    config: Train,
    recording: Recording,
    steps: int,
    initial: SparseAutoencoder | None,
    supervision: Supervision | None,
) -> str:
    """What a checkpoint has to share with a run to be continued by it."""
    values = dataclasses.asdict(config)
    for free in ("output", "recording", "log_every", "checkpoint_every", "epochs", "device", "table"):
        values.pop(free)
    values |= {"steps": steps, "recording": recording.settings_hash}
    values["init"] = initial.fingerprint if initial else None
    values["assignment"] = supervision.assignment if supervision else None
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]


def _checkpoint(folder: Path, identity: str, step: int, model, optimizer, schedule) -> None:
    state = {"identity": identity, "step": step, "model": model.state_dict()}
    state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    write_atomically(folder / "checkpoint.pt", lambda path: torch.save(state, path))


def _resume(folder: Path, identity: str, model, optimizer, schedule) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise SaeuronError(f"{path} is not a readable checkpoint; delete it to start anew") from error
    if state["identity"] != identity:
        raise SaeuronError(f"{path} is of a run with other settings; choose another --output or delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    console.print(f"continuing at step {state['step']}")
    return state["step"]


def _log(
    log: SummaryWriter | None, step: int, steps: int, losses, terms: dict, model: TrainingAutoencoder, config: Train
) -> None:
    """Each process has its share of the losses; the main one logs their sums and the supervised terms, its own."""
    parts = torch.stack([losses.fvu, losses.l0, losses.auxiliary]).detach()
    sums = joined(parts[None]).sum(0).tolist()
    if log is None:
        return
    dead = float((model.tokens_since_fired > config.dead_after).float().mean())
    named = dict(zip(("fvu", "l0", "auxiliary"), sums, strict=True))
    for name, value in ({name: term.item() for name, term in terms.items()} | named | {"dead": dead}).items():
        log.add_scalar(name, value, step)
    fvu, l0 = sums[:2]
    console.print(f"step {step}/{steps}  fvu {fvu:.4f}  l0 {l0:.1f}  dead {dead:.1%}")
