"""``blocks``: where to edit. For every transformer block, what removing a style and an object there does to both."""

from saeuron.checkpoints import Bundle
from saeuron.files import write_json, write_text
from saeuron.hookpoints import names

from ..common.config import save_config
from ..common.prompts import read_prompts
from ..common.results import table, tell
from ..diffusion.load import load_model
from ..diffusion.sampling import Sampling
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
    pipeline = load_model("tinycanvas")
    hookpoints = names(pipeline.unet)
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
    sampling, prompts = Sampling(bf16=True), read_prompts("tinycanvas:anchor")
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
    save_config(config, config.output)
    write_text(config.output / "blocks.md", markdown(results))
    tell(config, results, markdown(results))


def markdown(results: list[dict]) -> str:
    rows = [
        [result["hookpoint"], target["name"], *(f"{target[key]:.1%}" for key in MEASURES)]
        for result in results
        for target in result["targets"]
    ]
    return table(["hookpoint", "removed", "UA", "IRA", "CRA", "kept"], rows) + "\n"
