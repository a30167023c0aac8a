"""``blocks``: where to edit. For every transformer block, what removing a style and an object there does to both."""

from saeuron.files import write_json, write_text
from saeuron.hookpoints import names

from ..common.config import save_config
from ..common.prompts import read_prompts
from ..common.results import tell
from ..diffusion.load import load_model
from ..diffusion.sampling import Sampling
from ..evaluation.evaluate import evaluate, paired
from ..evaluation.sweep import Bench, anchor_rows, grid, sweep
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
    sampling = Sampling(bf16=True)
    anchors = read_prompts("tinycanvas:anchor")
    rows, seeds = paired(read_prompts("tinycanvas:evaluation"), 1, 188)
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
        table = scored(pipeline, sae, anchors, sampling, place / "table.safetensors", images=270)
        settings, bench = {}, Bench(pipeline, sae, table, sampling)
        for target in config.targets:
            shown = anchor_rows(anchors, table, target, config.search_images, config.seed)
            candidates = grid(list(config.latents), list(config.strengths), [True, False])
            journal = config.output / "sweep.journal"
            settings[target], _ = sweep(bench, target, candidates, *shown, journal, seed=config.seed)
        report = evaluate(pipeline, sae, table, settings, rows, seeds, sampling)
        results.append({"hookpoint": name, "fvu": sae.metrics["fvu"]} | report)
        write_json(config.output / "blocks.json", {"blocks": results})
    save_config(config, config.output)
    write_text(config.output / "blocks.md", markdown(results))
    tell(config, results, markdown(results))


def markdown(results: list[dict]) -> str:
    lines = ["| hookpoint | removed | UA | IRA | CRA |", "|---|---|---|---|---|"]
    for result in results:
        for target in result["targets"]:
            rates = " | ".join(f"{target[key]:.1%}" for key in ("ua", "ira", "cra"))
            lines.append(f"| {result['hookpoint']} | {target['name']} | {rates} |")
    return "\n".join([*lines, ""])
