"""``build``: prompts → an SAE and its table in one bundle. Each stage is another command's and continues as it does."""

from pathlib import Path

from saeuron import Hookpoint, SaeuronError
from saeuron.checkpoints import Bundle, save_bundle

from ..common.bundles import tell_of
from ..common.progress import console
from ..common.prompts import concepts, digest, labels, read_prompts, shuffled
from ..common.results import Plan, tell
from ..common.resume import claim
from ..diffusion.denoiser import denoiser
from ..diffusion.load import Pipeline, identity, open_model
from ..diffusion.sampling import Sampling, plan
from . import train as training
from .commands import Build, Record, Train
from .record import check_size, record
from .score import scored
from .sources import Recorded, Streamed

DRAWN = ("model", "lora", "prompts", "labels", "site", "images", "steps", "guidance", "negative_prompt", "sampler")
DRAWN += ("height", "width", "batch", "seed", "device", "bf16", "tokens_per_map", "max_gb")


def run(config: Build) -> None:
    if config.output.suffix != ".safetensors":
        raise SaeuronError(f"--output {config.output} has to end in .safetensors to be found again")
    rows, work = read_prompts(config.prompts, config.labels), config.output.with_suffix(".build")
    if config.output.exists() and not work.exists() and not config.overwrite:
        raise SaeuronError(f"{config.output} is there already: choose another --output, or --overwrite")
    tell_of(Bundle(None), config)  # a card that cannot be read is told before the work
    pipeline, sampling = open_model(config), Sampling.of(config)
    kinds = _scorable(config, rows)
    recipe, train = _stages(config, work, len(rows))
    if config.dry_run or config.overwrite or not (work / "done").exists():
        cost = _cost(config, pipeline, sampling, recipe, train, len(rows), kinds)
        if config.dry_run:
            cost.tell(config)
            return
        console.print(f"in all, finished or not:\n{cost}", soft_wrap=True, highlight=False, markup=False)
    made_with = {"model": identity(config.model, pipeline), "prompts": digest(rows)}
    pieces = ["recording", "sae", "table.safetensors", "table.part-*", "done"]
    claim(config, work, free=["licence", "card", "max_gb"], pieces=pieces, **made_with)
    if not config.stream:
        record(recipe)
    source = Streamed(recipe, pipeline) if config.stream else Recorded(train.recording)
    sae, table = training.train(train, source), None
    if kinds:
        path = work / "table.safetensors"
        table = scored(pipeline, sae, rows, sampling, path, config.score_images, config.seed + 1)
    bundle = Bundle(sae, table)
    tell_of(bundle, config)
    save_bundle(bundle, config.output)
    (work / "done").touch()
    known = f"{len(table.concepts)} concepts" if table else "no concepts yet, which `learn` adds"
    told = {"output": str(config.output), "fvu": sae.metrics["fvu"], "concepts": dict(table.concepts) if table else {}}
    text = f"{config.output}: {sae.metrics['fvu']:.1%} of the variance unexplained, {known}; {work} may be deleted"
    tell(config, told, text)


def _scorable(config: Build, rows: list[dict[str, str]]) -> dict[str, str]:
    """Concept → kind; raises SaeuronError, before hours of work, where no table could be made of them."""
    kinds = concepts(rows)
    for kind in dict.fromkeys(kinds.values()):
        own = [name for name in kinds if kinds[name] == kind]
        if len(own) == 1:
            raise SaeuronError(
                f"{own[0]!r} is the only {kind} that the prompts name, and a score needs another: add prompts of "
                "others, or give --labels without it"
            )
    if kinds and config.score_images is not None:
        drawn = shuffled(rows, max(config.score_images, 1), config.seed + 1)
        lacking = [name for name in kinds if all(name not in labels(row).values() for row in drawn)]
        if lacking:
            raise SaeuronError(f"--score-images {config.score_images} draws no picture of {lacking[0]!r}: give more")
    return kinds


def _stages(config: Build, work: Path, prompts: int) -> tuple[Record, Train]:
    """The options of the recording and of the training."""
    count = prompts if config.images is None else config.images
    named = {name: getattr(config, name) for name in DRAWN}
    per_shard = max(1, min(64, count // 2))  # one shard is held out, so there are two at least
    folder = work / "recording"
    recipe = Record(output=folder, hookpoints=(config.hookpoint,), images_per_shard=per_shard, **named)
    own = {name: getattr(config, name) for name in ("expansion", "k", "epochs", "lr", "seed", "device", "bf16")}
    options = {"steps": config.train_steps, "batch": config.train_batch}
    return recipe, Train(recording=folder / config.hookpoint, output=work / "sae", **own, **options)


def _cost(
    config: Build,
    pipeline: Pipeline,
    sampling: Sampling,
    recipe: Record,
    train: Train,
    prompts: int,
    kinds: dict[str, str],
) -> Plan:
    """What all stages take: two pictures are drawn and two steps trained that count for nothing."""
    hookpoint = Hookpoint(config.hookpoint, config.site)
    d_in = hookpoint.width(denoiser(pipeline))
    count = prompts if config.images is None else config.images
    taken = 0 if config.stream else check_size(recipe, count, {hookpoint: d_in})
    if count < 2:
        raise SaeuronError("--images has to be at least 2: one part of them is held out for measuring")
    training.check_options(train, d_in)
    per_epoch = (count - recipe.images_per_shard) * config.steps * config.tokens_per_map // train.batch
    trained = training.rehearse(train, d_in, train.steps or train.epochs * max(per_epoch, 1))
    scores = (prompts if config.score_images is None else config.score_images) if kinds else 0
    each = 4 * (len(kinds) + len(set(kinds.values()))) * d_in * train.expansion * config.steps
    drawn = plan(pipeline, sampling, count + scores)
    disk = taken + trained.bytes + each + trained.bytes // 4
    return Plan(drawn.work | trained.work, disk, drawn.seconds + trained.seconds)
