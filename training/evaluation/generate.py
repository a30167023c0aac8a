"""``generate``: pictures with and without concepts, paired by seed."""

from saeuron import ConceptTable, SaeuronError, Setting, build_edits, load_sae, read_settings

from ..common.config import save_config
from ..common.pictures import save_grid, save_picture
from ..common.progress import console
from ..common.prompts import read_prompts
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all
from .commands import Generate


def run(config: Generate) -> None:
    rows = [{"prompt": text} for text in config.prompt if text.strip()]
    rows += read_prompts(config.prompts) if config.prompts else []
    if not rows:
        raise SaeuronError("there is nothing to draw: give --prompt or --prompts")
    sae, table = load_sae(config.sae), ConceptTable.load(config.table)
    tuned = read_settings(config.settings) if config.settings else {}
    plain = Setting(config.latents, config.strength, config.per_timestep, paper_exact=config.paper_exact)
    chosen = {name: tuned.get(name, plain) for name in config.remove}
    for name in chosen:
        table.kind(name)
    edits = {sae.hookpoint: build_edits(sae.to(config.device), table, chosen)}
    pipeline = load_model(config.model, config.device, config.sampler)
    check_fits(sae, pipeline)
    sampling = Sampling(config.steps, config.guidance, config.batch, height=config.height, width=config.width)
    seeds = [config.seed + n for n in range(len(rows))]
    before = draw_all(pipeline, rows, seeds, sampling)
    after = draw_all(pipeline, rows, seeds, sampling, edits)
    save_config(config, config.output)
    for number in range(len(rows)):
        save_picture(before[number], config.output / f"before-{number:04d}.png")
        save_picture(after[number], config.output / f"after-{number:04d}.png")
    save_grid([before, after], config.output / "grid.png", rows=["before", "after"])
    console.print(f"{len(rows)} pairs of pictures in {config.output}")
