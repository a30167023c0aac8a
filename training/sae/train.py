"""``train``: a recording → an SAE. Several processes share each batch, and learn what one process would learn."""

import hashlib
import itertools
import json
import math
import time
from contextlib import nullcontext
from functools import partial

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
from saeuron.errors import check_same
from saeuron.files import write_json
from saeuron.recording import Tokens

from ..common.bundles import without_folder
from ..common.config import option_values
from ..common.processes import barrier, check_device, is_main, joined, own_device, processes, sum_gradients
from ..common.progress import console
from ..common.results import Plan, table, tell
from ..common.resume import ADVICE, FREE, READ, claim
from . import checkpoint
from .commands import Train
from .measure import measure
from .supervise import Supervision, read_targets, report, supervised_losses
from .trainer import Normalisation, TrainingAutoencoder, descend

ACTIVATIONS = ("batch_topk", "topk", "sigmoid_topk")
PIECES = ("sae.safetensors", "cfg.json", "metrics.json", checkpoint.NAME, "tensorboard")


def run(config: Train) -> None:
    sae = train(config)
    if sae is not None:
        told = {name: sae.metrics[name] for name in ("fvu", "dead", "l0")} | {"steps": sae.steps}
        rows = [("unexplained variance", f"{told['fvu']:.3f}"), ("dead latents", f"{told['dead']:.1%}")]
        rows += [("active latents per token (L0)", f"{told['l0']:.1f}"), ("steps", told["steps"])]
        if sae.metrics.get("concepts"):
            own = [concept["centralised"] for concept in sae.metrics["concepts"].values()]
            rows.append(("concepts whose assigned latent is the strongest", f"{sum(own)} of {len(own)}"))
        tell(config, told | {"sae": str(config.output)}, table([str(config.output), ""], rows))


def train(config: Train) -> SparseAutoencoder | None:
    """Run ``config`` and return the SAE, also saved to ``config.output`` with its ``metrics.json``.

    None of a dry run.
    """
    recording = Recording(config.recording)
    if not recording.complete:
        raise SaeuronError(f"{config.recording} is not finished; run `record` on it again to complete it")
    check_options(config, recording.d_in)
    torch.manual_seed(config.seed)
    held_out, shards = _split(recording)
    rows = sum(recording.shards[name] for name in shards)
    per_epoch = rows // config.batch
    if per_epoch == 0:
        raise SaeuronError(f"the recording has {rows} tokens to train on, fewer than one --batch of {config.batch}")
    steps = config.steps or config.epochs * per_epoch

    device = torch.device(own_device(config.device))
    first = recording.read(shards[0]).activations.float()
    normalisation = Normalisation.of(first)
    initial = load_sae(config.init) if config.init else None
    model = _start(config, recording, normalisation, initial)
    if initial is None:
        model.fit_encoder(normalisation(first[: config.batch]))
    del first
    normalisation.mean = normalisation.mean.to(device)
    supervision = _supervision(config, recording, len(model.W_enc), initial)
    stream = partial(_stream, recording, shards, config, steps=steps, per_epoch=per_epoch)
    if config.dry_run:
        plan(config, model.to(device), normalisation, stream(0), steps).tell(config)
        return None

    made_with = {"recording": recording.settings_hash, "init": initial.fingerprint if initial else None}
    made_with["assignment"] = supervision.assignment if supervision else None
    identity, state, before = _identity(config, made_with), None, None
    if not config.overwrite:
        state, before = checkpoint.read(config.output), checkpoint.finished(config.output, identity)
        known = state["steps"] if state else max(before.steps, steps) if before else steps
        check_same(config.output, {"steps": known}, {"steps": steps}, ADVICE)
    claim(config, config.output, free=["steps", "epochs"], pieces=PIECES, **made_with)
    barrier()
    if before and before.steps == steps:
        return before.to(device)
    start = 0
    if before and not state:
        model, start = TrainingAutoencoder.unfold(before, normalisation), before.steps
        console.print(f"training on from step {start}, where it was finished")
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    optimizer.param_groups[0]["initial_lr"] = config.lr
    decay = partial(_decay, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decay, last_epoch=start - 1)
    done = checkpoint.restore(state, model, optimizer, schedule) if state else start
    barrier()

    k_aux = config.k_aux or max(recording.d_in // 2, 1)
    with SummaryWriter(str(config.output / "tensorboard"), purge_step=done) if is_main() else nullcontext() as log:
        for step, tokens in stream(done):
            losses, batch = _losses(model, tokens, normalisation, config, k_aux)
            terms = {"auxiliary": config.aux * losses.auxiliary}
            if supervision and is_main():  # hardly any work, and of the whole batch
                terms |= supervised_losses(model, batch, losses.code, tokens, supervision, config)
            (losses.fvu + sum(terms.values())).backward()
            sum_gradients(model.parameters())
            descend(model, optimizer)
            schedule.step()
            if (step + 1) % config.log_every == 0:
                _log(log, step + 1, steps, losses, terms, model, config)
            last = step + 1 == steps
            # What was finished before is not replaced until there is something to go on from.
            if is_main() and ((last and start) or (not last and (step + 1) % config.checkpoint_every == 0)):
                checkpoint.save(config.output, identity, step + 1, steps, model, optimizer, schedule)
    base_model = without_folder(str(recording.settings.get("model", "")))
    sae = model.fold(normalisation, hookpoint=recording.hookpoint, base_model=base_model).to(device)
    if is_main():
        _finish(config, recording, held_out, steps, identity, sae, supervision)
    barrier()
    return checkpoint.finished(config.output, identity).to(device)


def _decay(step: int, steps: int) -> float:
    """What the learning rate is multiplied with: 1 for a fifth of the steps, then less and less, 0 in the end."""
    return min(1.0, 1.25 * (1 - step / steps))


def _losses(model: TrainingAutoencoder, tokens: Tokens, normalisation: Normalisation, config: Train, k_aux: int):
    """The losses of ``tokens``, and the batch they are of, ``[B, d_in]`` as training sees it."""
    device = normalisation.mean.device
    batch = normalisation(tokens.activations.to(device, torch.float32))
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16 or device.type == "cuda"):
        return model.losses(batch, config.dead_after, k_aux), batch


def plan(config: Train, model: TrainingAutoencoder, normalisation: Normalisation, batches, steps: int) -> Plan:
    """What the training takes, as two of its steps tell that change nothing; ``batches`` are as `_stream` gives."""
    taken, k_aux = [], config.k_aux or max(model.W_enc.shape[1] // 2, 1)
    for _, tokens in itertools.islice(batches, 2):
        began = time.perf_counter()
        losses, _ = _losses(model, tokens, normalisation, config, k_aux)
        losses.fvu.backward()
        taken.append(time.perf_counter() - began)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    # The SAE, and while it is trained a checkpoint with Adam's two moments.
    return Plan({"training steps": steps, "tokens": steps * config.batch}, 4 * weights, steps * taken[-1])


def _identity(config: Train, made_with: dict) -> str:
    """What a checkpoint and an SAE have to share with a run to be continued by it; more steps are no other training."""
    told = {key: value for key, value in option_values(config).items() if key not in {*FREE, *READ, "steps", "epochs"}}
    return hashlib.sha256(json.dumps([told, made_with], sort_keys=True).encode()).hexdigest()[:16]


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
    (config.output / checkpoint.NAME).unlink(missing_ok=True)


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


def check_options(config: Train, d_in: int) -> None:
    """Raise SaeuronError on options that cannot be, for a recording of this width."""
    for name in ("expansion", "k", "epochs", "batch", "log_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise SaeuronError(f"--{name.replace('_', '-')} is {getattr(config, name)} and has to be at least 1")
    if config.steps is not None and config.steps < 1:
        raise SaeuronError(f"--steps is {config.steps} and has to be at least 1")
    if config.k > d_in * config.expansion:
        raise SaeuronError(
            f"--k is {config.k} and the SAE has only {d_in * config.expansion} latents: lower it or raise --expansion"
        )
    if config.activation not in ACTIVATIONS:
        raise SaeuronError(f"--activation {config.activation!r} is unknown; it is one of {', '.join(ACTIVATIONS)}")
    if config.table and not (config.labels and config.init):
        raise SaeuronError("--table assigns latents of the SAE in --init to the concepts of --labels: give both")
    if config.batch % processes():
        raise SaeuronError(f"--batch is {config.batch} and has to be a multiple of the {processes()} processes")
    if config.contrast and processes() > 1:
        raise SaeuronError("--contrast compares all codes of a batch: train with it in one process")
    check_device(config.device)


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
