"""``blocks``: where to edit. For every transformer block, what removing a style and an object there does to both."""

from diffusers import StableDiffusionPipeline

from saeuron.checkpoints import Bundle
from saeuron.files import write_json, write_text
from saeuron.hookpoints import names

from ..common.prompts import read_prompts
from ..common.results import Plan, table, tell
from ..common.resume import claim
from ..diffusion.load import load_model
from ..diffusion.sampling import Sampling, plan
from ..evaluation.evaluate import evaluate
from ..evaluation.judges import tinycanvas_judge
from ..evaluation.measures import MEASURES
from ..evaluation.protocol import Protocol, paired
from ..evaluation.sweep import grid, sweep
from ..sae.commands import Record, Train
from ..sae.record import record
from ..sae.score import scored
from ..sae.train import train
from .commands import Blocks


def run(config: Blocks) -> None:
    pipeline, sampling = load_model("tinycanvas"), Sampling(bf16=True)
    hookpoints = names(pipeline.unet)
    if config.dry_run:
        _plan(config, pipeline, sampling, len(hookpoints))
        return
    claim(config, config.output, pieces=["recordings", "unet.*", "blocks.*", "sweep.journal"])
    folders = record(
        Record(
            output=config.output / "recordings",
            hookpoints=tuple(hookpoints),
            images=config.images,
            steps=25,
            tokens_per_map=config.tokens_per_map,
            seed=config.seed,
        )
    )
    prompts = read_prompts("tinycanvas:anchor")
    pictures = paired(read_prompts("tinycanvas:evaluation"), 1, 188)
    protocol = Protocol(pipeline, tinycanvas_judge(), *pictures, sampling)
    anchors, journal = protocol.of(prompts), config.output / "sweep.journal"
    candidates = grid(list(config.latents), list(config.strengths), [True, False])
    seeds = {"seed": config.seed, "anchor_seed": config.seed}
    results = []
    for name, folder in zip(hookpoints, folders, strict=True):
        place = config.output / name
        sae = train(
            Train(
                recording=folder,
                output=place,
                expansion=config.expansion,
                k=config.k,
                steps=config.steps,
                batch=config.batch,
                dead_after=500_000,
                seed=config.seed,
            )
        )
        bundle = Bundle(sae, scored(pipeline, sae, prompts, sampling, place / "table.safetensors", images=270))
        for target in config.targets:
            setting, _ = sweep(anchors, bundle, target, candidates, config.search_images, journal, **seeds)
            bundle.settings[target] = setting
        report = evaluate(protocol, bundle, bundle.settings)
        results.append({"hookpoint": name, "fvu": sae.metrics["fvu"]} | report)
        write_json(config.output / "blocks.json", {"blocks": results})
    write_text(config.output / "blocks.md", markdown(results))
    tell(config, results, markdown(results))


def _plan(config: Blocks, pipeline: StableDiffusionPipeline, sampling: Sampling, places: int) -> None:
    """Tell what it takes at most: searches give hopeless settings up after a third of their pictures.

    The time of a training step is that of two cores; a token takes 264 bytes.
    """
    tried = 2 * len(config.latents) * len(config.strengths) * config.search_images
    each = 270 + len(config.targets) * (tried + 90) + 90
    drawing, steps = plan(pipeline, sampling, config.images + places * each), places * config.steps
    tokens = config.images * 25 * config.tokens_per_map * places
    Plan(drawing.work | {"training steps": steps}, 264 * tokens, drawing.seconds + 0.06 * steps).tell(config)


def markdown(results: list[dict]) -> str:
    rows = [
        [result["hookpoint"], target["name"], *(f"{target[key]:.1%}" for key in MEASURES)]
        for result in results
        for target in result["targets"]
    ]
    return table(["hookpoint", "removed", "UA", "IRA", "CRA", "kept"], rows) + "\n"
