"""``score``: an SAE and labelled prompts → a concept table. Several processes draw a part of the prompts each."""

import time
from collections.abc import Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from saeuron import ConceptStatistics, ConceptTable, SaeuronError, SparseAutoencoder
from saeuron.concept_table import WholeTable

from ..common.bundles import open_sae
from ..common.processes import barrier, is_main, merge, processes, rank, share
from ..common.progress import track
from ..common.prompts import concepts, digest, labels, read_prompts, shuffled
from ..common.results import table, tell
from ..common.resume import claim, remove
from ..diffusion.hook import reading
from ..diffusion.load import check_fits, identity, open_model
from ..diffusion.sampling import Sampling, generate, plan, timesteps_of
from .commands import Score

SAVE_EVERY = 60.0
"""Seconds between two savings of what is gathered so far."""


def run(config: Score) -> None:
    sampling, sae, rows = Sampling.of(config), open_sae(config), read_prompts(config.prompts, config.labels)
    pipeline = open_model(config)
    sae = sae.to(pipeline.device)
    count, kinds = check(pipeline, sae, rows, config.images)
    if config.dry_run:
        each = 4 * (len(kinds) + len(set(kinds.values()))) * sae.n_latents
        plan(pipeline, sampling, count, each * sampling.steps).tell(config)
        return
    stem = config.output.stem
    made_with = {"sae": sae.fingerprint, "model": identity(config.model, pipeline), "prompts": digest(rows)}
    pieces = [config.output.name, f"{stem}.part-*"]
    claim(config, config.output.parent, free=["batch"], pieces=pieces, name=f"{stem}.config.json", **made_with)
    found = scored(pipeline, sae, rows, sampling, config.output, config.images, config.seed)
    lines = []
    for name, kind in found.concepts.items():
        if list(found.concepts.values()).count(kind) == 1:
            lines.append([name, kind, None, None])  # a score compares with others of the kind
            continue
        strongest, latent = found.scores(name).mean(0).max(0)
        lines.append([name, kind, int(latent), round(float(strongest), 4)])
    header = ["concept", "kind", "strongest latent", "score"]
    tell(config, [dict(zip(header, line, strict=True)) for line in lines], table(header, lines))


def check(
    pipeline: DiffusionPipeline, sae: SparseAutoencoder, rows: Sequence[dict[str, str]], images: int | None
) -> tuple[int, dict[str, str]]:
    """How many pictures are drawn, and concept → kind. Raises SaeuronError where something does not fit."""
    check_fits(sae, pipeline)
    kinds, count = concepts(rows), len(rows) if images is None else images
    if not kinds:
        raise SaeuronError("the prompt file names no concepts: score needs a .jsonl file with kinds beside each prompt")
    if count < 1:
        raise SaeuronError("--images has to be at least 1")
    return count, kinds


def scored(
    pipeline: DiffusionPipeline,
    sae: SparseAutoencoder,
    rows: Sequence[dict[str, str]],
    sampling: Sampling,
    path: Path,
    images: int | None = None,
    seed: int = 1,
) -> ConceptTable:
    """The table that lies at ``path``, made by `score` and written there where there is none yet."""
    if not path.exists():
        found = score(pipeline, sae, rows, sampling, images, seed, path)
        if is_main():
            found.save(path)
            remove(path.parent, [f"{path.stem}.part-*"])
    barrier()
    found = ConceptTable.load(path)
    found.check_belongs(sae.fingerprint)
    return found


def score(
    pipeline: DiffusionPipeline,
    sae: SparseAutoencoder,
    rows: Sequence[dict[str, str]],
    sampling: Sampling,
    images: int | None = None,
    seed: int = 1,
    output: Path | None = None,
) -> WholeTable:
    """The table, not written, of ``images`` pictures, by default one of each of ``rows``.

    With ``output``, what is gathered so far is saved beside it now and then, and continued. Raises SaeuronError on
    prompts without concepts and on an SAE that does not fit.
    """
    count, kinds = check(pipeline, sae, rows, images)
    schedule = shuffled(rows, count, seed)
    timesteps = sorted(set(timesteps_of(pipeline, sampling)))
    statistics = ConceptStatistics(kinds, timesteps, sae.n_latents, sae.fingerprint, sae.origin)
    starts, done, saved = share(range(0, count, sampling.batch)), 0, time.monotonic()
    own = f"part-{rank()}-of-{processes()}-by-{sampling.batch}"
    for path in sorted(output.parent.glob(f"{output.stem}.{own}-*")) if output else ():
        statistics, done = ConceptStatistics.load(path), int(path.stem.rsplit("-", 1)[1])
    for start in track(starts[done:], "scoring"):
        picked = schedule[start : start + sampling.batch]
        names = [list(labels(row).values()) for row in picked]

        def see(tokens, timestep, unguided, names=names):
            statistics.observe(sae, names, timestep, tokens, unguided)

        seeds = [seed * 1_000_003 + start + n for n in range(len(picked))]
        generate(pipeline, [row["prompt"] for row in picked], seeds, sampling, {sae.hookpoint: reading(see)})
        done += 1
        if output and done < len(starts) and time.monotonic() - saved > SAVE_EVERY:
            before = [path.name for path in output.parent.glob(f"{output.stem}.{own}-*")]
            statistics.save(output.with_name(f"{output.stem}.{own}-{done:06d}.safetensors"))
            remove(output.parent, before)
            saved = time.monotonic()
    return WholeTable(merge(statistics))
