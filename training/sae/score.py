"""``score``: an SAE and labelled prompts → a concept table. Several processes draw a part of the prompts each."""

from diffusers import StableDiffusionPipeline

from saeuron import ConceptStatistics, SaeuronError, SparseAutoencoder, load_sae
from saeuron.concept_table import WholeTable
from saeuron.hookpoints import whole_timestep

from ..common.config import save_config
from ..common.processes import is_main, merge, own_device, share
from ..common.progress import track
from ..common.prompts import concepts, labels, read_prompts, shuffled
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import generate
from .commands import Score


def run(config: Score) -> None:
    sae, device = load_sae(config.sae), own_device(config.device)
    sae.W_dec = None  # nothing is decoded here, and it is half of what the SAE takes
    pipeline = load_model(config.model, device, config.sampler)
    table = score(config, sae.to(device), pipeline)
    if is_main():
        save_config(config, config.output.parent)
        table.save(config.output)


def score(config: Score, sae: SparseAutoencoder, pipeline: StableDiffusionPipeline) -> WholeTable:
    """The table, not written. Raises SaeuronError on prompts without concepts and on an SAE that does not fit."""
    check_fits(sae, pipeline)
    rows = read_prompts(config.prompts)
    kinds = concepts(rows)
    if not kinds:
        raise SaeuronError(
            f"{config.prompts} names no concepts: score needs a .jsonl file with kinds beside each prompt"
        )
    count = config.images or len(rows)
    if min(count, config.steps, config.batch) < 1:
        raise SaeuronError("--images, --steps and --batch have to be at least 1")
    schedule = shuffled(rows, count, config.seed)
    pipeline.scheduler.set_timesteps(config.steps)
    timesteps = sorted({whole_timestep(t) for t in pipeline.scheduler.timesteps})
    statistics = ConceptStatistics(kinds, timesteps, sae.n_latents, sae.fingerprint, sae.origin)
    for start in track(share(range(0, count, config.batch)), "scoring"):
        picked = schedule[start : start + config.batch]
        names = [list(labels(row).values()) for row in picked]

        def tap(tokens, timestep, conditional, names=names):
            statistics.observe(sae, names, timestep, tokens[conditional])
            return tokens

        generate(
            pipeline,
            [row["prompt"] for row in picked],
            [config.seed * 1_000_003 + start + n for n in range(len(picked))],
            steps=config.steps,
            guidance=config.guidance,
            height=config.height,
            width=config.width,
            bf16=config.bf16,
            taps={sae.hookpoint: tap},
        )
    return WholeTable(merge(statistics))
