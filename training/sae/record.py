"""``record``: prompts → recordings of one or several hookpoints, in one pass over the model.

Several processes draw different shards of it; together they write what one process would have written.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from saeuron import Hookpoint, Recording, RecordingWriter, SaeuronError
from saeuron.hookpoints import whole_timestep
from saeuron.recording import Tokens, bytes_per_token

from ..common.config import save_config
from ..common.processes import barrier, is_main, main_first, rank, share
from ..common.progress import track
from ..common.prompts import read_prompts, shuffled
from ..common.results import tell
from ..common.resume import remove
from ..diffusion.denoiser import denoiser
from ..diffusion.hook import reading
from ..diffusion.load import Pipeline, identity, open_model
from ..diffusion.sampling import Sampling, generate, plan
from .commands import Record


def run(config: Record) -> None:
    folders = record(config)
    if not config.dry_run:
        found = [{"recording": str(folder), "tokens": len(Recording(folder))} for folder in folders]
        tell(config, found, "\n".join(f"{own['recording']}: {own['tokens']:,} tokens" for own in found))


def record(config: Record) -> list[Path]:
    """Run ``config``; returns the folders of the recordings. Raises SaeuronError before any work on bad settings."""
    rows = read_prompts(config.prompts, config.labels)
    count = len(rows) if config.images is None else config.images
    sampling = Sampling.of(config)
    pipeline = open_model(config)
    hookpoints = [Hookpoint(name, config.site) for name in config.hookpoints]
    widths = {h: h.width(denoiser(pipeline)) for h in hookpoints}
    size = check_size(config, count, widths)
    folders = [config.output / hookpoint.name for hookpoint in hookpoints]
    if config.dry_run:
        plan(pipeline, sampling, count, size).tell(config)
        return folders

    schedule = [(row, config.seed * 1_000_003 + n) for n, row in enumerate(shuffled(rows, count, config.seed))]
    settings = described(config, pipeline)
    prompts = [row for row, _ in schedule]
    with main_first():
        if is_main() and config.overwrite:
            for folder in folders:
                remove(folder, ["shard-*", "part-*", "manifest.json", "prompts.json"])
        writers = [
            RecordingWriter(folder, hookpoint, widths[hookpoint], prompts, settings, part=rank())
            for folder, hookpoint in zip(folders, hookpoints, strict=True)
        ]
    if is_main():
        save_config(config, config.output)
    shards = _layout(writers, count, config.images_per_shard)

    def write(number: int, tokens: dict[Hookpoint, Tokens]) -> None:
        for writer, hookpoint in zip(writers, hookpoints, strict=True):
            if not writer.has(number):
                writer.write(number, tokens[hookpoint], seed=config.seed + number)

    own = [n for n in share(range(len(shards))) if not all(writer.has(n) for writer in writers)]
    with ThreadPoolExecutor(1) as thread:  # one shard is written while the next is drawn
        writing = None
        for number in track(own, "recording"):
            tokens = draw(pipeline, sampling, config, hookpoints, [(n, *schedule[n]) for n in shards[number]])
            if writing:
                writing.result()
            writing = thread.submit(write, number, tokens)
        if writing:
            writing.result()
    barrier()
    if is_main():
        for writer in writers:
            writer.finish()
    barrier()
    return folders


def _layout(writers: list[RecordingWriter], count: int, per_shard: int) -> list[range]:
    """The images of each shard. Where a recording grew, its new images begin a new shard."""
    planned = {tuple(writer.planned(count)) for writer in writers}
    if len(planned) > 1:
        raise SaeuronError("these hookpoints' recordings grew apart: record them one after another")
    parts = itertools.pairwise([0, *planned.pop()])
    return [range(n, min(n + per_shard, last)) for first, last in parts for n in range(first, last, per_shard)]


def described(config: Record, pipeline: Pipeline) -> dict:
    """What decides which tokens a recording holds."""
    kept = ("steps", "guidance", "negative_prompt", "sampler", "height", "width", "tokens_per_map", "images_per_shard")
    named = {name: getattr(config, name) for name in (*kept, "seed", "bf16")}
    return {"model": identity(config.model, pipeline)} | named


def check_size(config: Record, count: int, widths: dict[Hookpoint, int]) -> int:
    """The bytes that the recordings take; raises SaeuronError where they are more than ``max_gb``."""
    check_counts(config, count)
    per_image = config.steps * config.tokens_per_map * sum(bytes_per_token(width) for width in widths.values())
    needed = count * per_image / 1e9
    if needed > config.max_gb:
        fitting = int(config.max_gb * 1e9 / per_image)
        raise SaeuronError(
            f"the recording needs {needed:.3g} GB and --max-gb is {config.max_gb:g}: raise it, lower --tokens-per-map "
            f"(now {config.tokens_per_map}) or record at most {fitting} images (--images)"
        )
    return count * per_image


def check_counts(config: Record, count: int) -> None:
    """Raise SaeuronError where nothing would be recorded."""
    if min(count, config.tokens_per_map, config.images_per_shard) < 1:
        raise SaeuronError("--images, --tokens-per-map and --images-per-shard have to be at least 1")


def draw(
    pipeline: Pipeline,
    sampling: Sampling,
    config: Record,
    hookpoints: list[Hookpoint],
    images: list[tuple[int, dict, int]],
) -> dict[Hookpoint, Tokens]:
    """The sampled tokens of ``images``, each with its number, prompt and seed; unshuffled.

    Which tokens are kept, and in which order they are here, does not depend on how many images are drawn at once.
    """
    collected: dict[Hookpoint, list[Tokens]] = {hookpoint: [] for hookpoint in hookpoints}
    for start in range(0, len(images), config.batch):
        numbers, rows, seeds = zip(*images[start : start + config.batch], strict=True)
        generators = [torch.Generator().manual_seed(config.seed * 7919 + number) for number in numbers]

        def tap_for(hookpoint, numbers=numbers, generators=generators):
            def see(kept, timestep, _unguided):
                width = min(config.tokens_per_map, kept.shape[1])
                random = torch.stack([torch.rand(kept.shape[1], generator=generator) for generator in generators])
                places = random.topk(width, 1).indices
                chosen = kept.gather(1, places.to(kept.device)[:, :, None].expand(-1, -1, kept.shape[2]))
                collected[hookpoint].append(
                    Tokens(
                        chosen.flatten(0, 1).half().cpu(),
                        torch.tensor(numbers).repeat_interleave(width),
                        torch.full((len(numbers) * width,), whole_timestep(timestep)),
                        places.flatten(),
                    )
                )

            return reading(see)

        taps = {hookpoint: tap_for(hookpoint) for hookpoint in hookpoints}
        generate(pipeline, [row["prompt"] for row in rows], seeds, sampling, taps)
    found = {hookpoint: Tokens.cat(parts) for hookpoint, parts in collected.items()}
    return {hookpoint: tokens.pick(tokens.prompt.argsort(stable=True)) for hookpoint, tokens in found.items()}
