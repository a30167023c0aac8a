"""``record``: prompts → recordings of one or several hookpoints, in one pass over the model.

Several processes draw different shards of it; together they write what one process would have written.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, RecordingWriter, SaeuronError
from saeuron.hookpoints import whole_timestep
from saeuron.recording import Tokens, bytes_per_token

from ..common.config import save_config
from ..common.processes import barrier, is_main, main_first, own_device, rank, share
from ..common.progress import track
from ..common.prompts import read_prompts, shuffled
from ..diffusion.load import load_model
from ..diffusion.sampling import generate
from .commands import Record


def record(config: Record) -> list[Path]:
    """Run ``config``; returns the folders of the recordings. Raises SaeuronError before any work on bad settings."""
    rows = read_prompts(config.prompts)
    count = config.images or len(rows)
    pipeline = load_model(config.model, own_device(config.device), config.sampler)
    hookpoints = [Hookpoint(name, config.site) for name in config.hookpoints]
    widths = {h: h.module(pipeline.unet).config.in_channels for h in hookpoints}
    _check_size(config, count, widths)

    schedule = [(row, config.seed * 1_000_003 + n) for n, row in enumerate(shuffled(rows, count, config.seed))]
    settings = _settings(config, count)
    folders = [config.output / hookpoint.name for hookpoint in hookpoints]
    prompts = [row for row, _ in schedule]
    with main_first():
        writers = [
            RecordingWriter(folder, hookpoint, widths[hookpoint], prompts, settings, part=rank())
            for folder, hookpoint in zip(folders, hookpoints, strict=True)
        ]
    if is_main():
        save_config(config, config.output)
    for shard in track(share(range(-(-count // config.images_per_shard))), "recording"):
        waiting = [writer for writer in writers if not writer.has(shard)]
        if not waiting:
            continue
        start = shard * config.images_per_shard
        part = schedule[start : start + config.images_per_shard]
        tokens = _draw(pipeline, config, hookpoints, part, start)
        for writer, hookpoint in zip(writers, hookpoints, strict=True):
            if writer in waiting:
                writer.write(shard, tokens[hookpoint], seed=config.seed + shard)
    barrier()
    if is_main():
        for writer in writers:
            writer.finish()
    barrier()
    return folders


def _settings(config: Record, count: int) -> dict:
    kept = ("model", "steps", "guidance", "sampler", "height", "width", "tokens_per_map", "images_per_shard")
    kept += ("batch", "seed", "bf16")
    return {name: getattr(config, name) for name in kept} | {"images": count}


def _check_size(config: Record, count: int, widths: dict[Hookpoint, int]) -> None:
    if min(count, config.steps, config.tokens_per_map, config.images_per_shard, config.batch) < 1:
        raise SaeuronError("--images, --steps, --tokens-per-map, --images-per-shard and --batch have to be at least 1")
    if any(side is not None and (side < 8 or side % 8) for side in (config.height, config.width)):
        raise SaeuronError("--height and --width have to be multiples of 8")
    per_image = config.steps * config.tokens_per_map * sum(bytes_per_token(width) for width in widths.values())
    needed = count * per_image / 1e9
    if needed > config.max_gb:
        fitting = int(config.max_gb * 1e9 / per_image)
        raise SaeuronError(
            f"the recording needs {needed:.3g} GB and --max-gb is {config.max_gb:g}: raise it, lower --tokens-per-map "
            f"(now {config.tokens_per_map}) or record at most {fitting} images (--images)"
        )


def _draw(
    pipeline: StableDiffusionPipeline,
    config: Record,
    hookpoints: list[Hookpoint],
    part: list[tuple[dict, int]],
    first: int,
) -> dict[Hookpoint, Tokens]:
    """The sampled tokens of one shard's images, unshuffled."""
    collected: dict[Hookpoint, list[Tokens]] = {hookpoint: [] for hookpoint in hookpoints}
    for start in range(0, len(part), config.batch):
        batch = part[start : start + config.batch]
        numbers = torch.arange(first + start, first + start + len(batch))
        generator = torch.Generator().manual_seed(config.seed * 7919 + int(numbers[0]))

        def tap_for(hookpoint, numbers=numbers, generator=generator):
            def tap(tokens, timestep, conditional):
                kept = tokens[conditional]
                width = min(config.tokens_per_map, kept.shape[1])
                places = torch.rand(kept.shape[:2], generator=generator).topk(width, 1).indices
                chosen = kept.gather(1, places.to(kept.device)[:, :, None].expand(-1, -1, kept.shape[2]))
                collected[hookpoint].append(
                    Tokens(
                        chosen.flatten(0, 1).half().cpu(),
                        numbers.repeat_interleave(width),
                        torch.full((len(numbers) * width,), whole_timestep(timestep)),
                        places.flatten(),
                    )
                )
                return tokens

            return tap

        generate(
            pipeline,
            [row["prompt"] for row, _ in batch],
            [seed for _, seed in batch],
            steps=config.steps,
            guidance=config.guidance,
            height=config.height,
            width=config.width,
            bf16=config.bf16,
            taps={hookpoint: tap_for(hookpoint) for hookpoint in hookpoints},
        )
    return {hookpoint: Tokens.cat(parts) for hookpoint, parts in collected.items()}
