"""``train``: a recording, or a model that draws as it goes → an SAE.

Several processes share each batch, and learn what one process would learn.
"""

import hashlib
import json
import time
from contextlib import nullcontext
from functools import partial

import torch
from torch.utils.tensorboard import SummaryWriter

from saeuron import (
    ConceptTable,
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
from ..common.config import option_values, read_config
from ..common.processes import barrier, check_device, is_main, joined, own_device, processes, sum_gradients
from ..common.progress import console
from ..common.results import Plan, table, tell
from ..common.resume import ADVICE, FREE, READ, claim
from . import checkpoint
from .commands import Record, Train
from .measure import measure
from .sources import Recorded, Source, Streamed
from .supervise import Supervision, read_targets, report, supervised_losses
from .trainer import Normalisation, TrainingAutoencoder, descend

ACTIVATIONS = ("batch_topk", "topk", "sigmoid_topk")
USELESS = 0.9
"""The fraction of variance unexplained above which an SAE is no use; the mean alone gives 1."""
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


def train(config: Train, source: Source | None = None) -> SparseAutoencoder | None:
    """Run ``config`` and return the SAE, also saved to ``config.output`` with its ``metrics.json``.

    Tokens are those of ``source``, by default of the one that the options name. None of a dry run.
    """
    source = source or _source(config)
    check_options(config, source.d_in)
    torch.manual_seed(config.seed)
    per_epoch = source.rows // config.batch
    if per_epoch == 0:
        raise SaeuronError(f"there are {source.rows} tokens to train on, fewer than one --batch of {config.batch}")
    steps = config.steps or config.epochs * per_epoch
    if config.dry_run:
        rehearse(config, source.d_in, steps, source.cost()).tell(config)
        return None

    device = torch.device(own_device(config.device))
    initial = load_sae(config.init) if config.init else None
    check_initial(initial, source)
    n_latents = initial.n_latents if initial else source.d_in * config.expansion
    supervision = _supervision(config, source, n_latents, initial)
    made_with = {"recording": source.digest, "init": initial.fingerprint if initial else None}
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
    start = before.steps if before and not state else 0
    if start:
        console.print(f"training on from step {start}, where it was finished")
    model, normalisation = _start(config, source, before if start else initial)
    model, normalisation.mean = model.to(device), normalisation.mean.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    optimizer.param_groups[0]["initial_lr"] = config.lr
    decay = partial(_decay, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, decay, last_epoch=start - 1)
    done = checkpoint.restore(state, model, optimizer, schedule) if state else start
    barrier()

    k_aux = config.k_aux or max(source.d_in // 2, 1)
    with SummaryWriter(str(config.output / "tensorboard"), purge_step=done) if is_main() else nullcontext() as log:
        for step, tokens in source.batches(config.batch, config.seed, done, steps, bool(config.labels)):
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
    base_model = without_folder(str(source.settings.get("model", "")))
    sae = model.fold(normalisation, hookpoint=source.hookpoint, base_model=base_model).to(device)
    if is_main():
        _finish(config, source, steps, identity, sae, supervision)
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


def rehearse(config: Train, d_in: int, steps: int, drawing: Plan | None = None) -> Plan:
    """What the training takes, as two of its steps tell that are made on random tokens; ``drawing`` comes on top."""
    device = torch.device(own_device(config.device))
    generator = torch.Generator().manual_seed(config.seed)
    model = TrainingAutoencoder(d_in, d_in * config.expansion, config.k, config.activation, generator).to(device)
    random, numbers = torch.randn(config.batch, d_in, generator=generator), torch.zeros(config.batch, dtype=torch.long)
    normalisation, taken = Normalisation.of(random.to(device)), []
    for _ in range(2):
        began = time.perf_counter()
        losses, _ = _losses(
            model, Tokens(random, *[numbers] * 3), normalisation, config, config.k_aux or d_in // 2 or 1
        )
        losses.fvu.backward()
        taken.append(time.perf_counter() - began)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    # The SAE, and while it is trained a checkpoint with Adam's two moments.
    own = Plan({"training steps": steps, "tokens": steps * config.batch}, 4 * weights, steps * taken[-1])
    return Plan(drawing.work | own.work, own.bytes, drawing.seconds + own.seconds) if drawing else own


def _identity(config: Train, made_with: dict) -> str:
    """What a checkpoint and an SAE have to share with a run to be continued by it; more steps are no other training."""
    told = {key: value for key, value in option_values(config).items() if key not in {*FREE, *READ, "steps", "epochs"}}
    return hashlib.sha256(json.dumps([told, made_with], sort_keys=True).encode()).hexdigest()[:16]


def _finish(
    config: Train,
    source: Source,
    steps: int,
    identity: str,
    sae: SparseAutoencoder,
    supervision: Supervision | None,
) -> None:
    """Measure the SAE and write all that there is to say of it."""
    unseen = source.held_out()
    metrics = measure(sae, unseen)
    if metrics["fvu"] > USELESS:
        explained = f"⚠ the SAE explains {max(0, 1 - metrics['fvu']):.0%} of what it reads"
        console.print(f"{explained}: give it more --steps or tokens, a larger --k, or a smaller --lr", soft_wrap=True)
    notes = {"recording": source.digest, "seed": config.seed, "steps": steps, "identity": identity}
    if sae.activation == "sigmoid_topk":
        notes["normalize_decoder"] = False
    if supervision and config.bce:
        metrics["concepts"] = report(sae, unseen, source.prompts, supervision)
        notes["assignment"] = supervision.assignment
    save_sae(sae, config.output, metrics=metrics, **notes)
    write_json(config.output / "metrics.json", metrics)
    (config.output / checkpoint.NAME).unlink(missing_ok=True)


def _source(config: Train) -> Source:
    if (config.recording is None) == (config.stream is None):
        raise SaeuronError("give --recording, or with --stream a file of the options that `record` would take")
    if config.recording:
        return Recorded(config.recording)
    lacking = {"output": config.output}
    return Streamed(Record(**lacking | read_config(config.stream, Record)))


def _start(
    config: Train, source: Source, initial: SparseAutoencoder | None
) -> tuple[TrainingAutoencoder, Normalisation]:
    """The model before its first step, ``initial`` or random weights, and how its tokens are normalised."""
    first = source.first()
    normalisation = Normalisation.of(first)
    if initial:
        return TrainingAutoencoder.unfold(initial, normalisation), normalisation
    generator = torch.Generator().manual_seed(config.seed)
    n_latents = source.d_in * config.expansion
    model = TrainingAutoencoder(source.d_in, n_latents, config.k, config.activation, generator)
    model.fit_encoder(normalisation(first[: config.batch]))
    return model, normalisation


def check_initial(initial: SparseAutoencoder | None, source: Source) -> None:
    """Raise SaeuronError where the SAE of ``--init`` cannot be trained on with the tokens of ``source``."""
    if initial is None:
        return
    initial.check_width(torch.empty(0, source.d_in))
    if initial.activation not in ACTIVATIONS:
        raise SaeuronError(f"--init has the activation {initial.activation!r}, which is not trained here")
    if initial.hookpoint not in (None, source.hookpoint):
        raise SaeuronError(
            f"the SAE of --init reads {initial.hookpoint.name} ({initial.hookpoint.site}) and the recording is of "
            f"{source.hookpoint.name} ({source.hookpoint.site})"
        )


def _supervision(
    config: Train, source: Source, n_latents: int, initial: SparseAutoencoder | None
) -> Supervision | None:
    if not config.labels:
        return None
    kinds, targets = read_targets(source.prompts, config.labels)
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
