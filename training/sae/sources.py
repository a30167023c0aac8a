"""Where training tokens come from: a recording on disk, or a model that draws them as they are needed.

A source has parts, of which the last is held out for measuring. Training reads the others, and both kinds mix
`TOGETHER` of them at a time.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from saeuron import Hookpoint, Recording, SaeuronError
from saeuron.recording import Tokens, mixed, settings_digest

from ..common.processes import processes, share, whole
from ..common.prompts import read_prompts, shuffled
from ..common.results import Plan
from ..diffusion.denoiser import denoiser, own_side
from ..diffusion.hookpoints import places
from ..diffusion.load import Pipeline, open_model
from ..diffusion.sampling import Sampling, plan, timesteps_of
from .commands import Record
from .record import check_counts, described, draw

TOGETHER = 4


class Source(Protocol):
    """Tokens of one ``hookpoint``, ``[N, d_in]``, in parts; ``digest`` tells them from others, ``rows`` counts those to
    train on."""

    hookpoint: Hookpoint
    d_in: int
    prompts: Sequence[dict]
    settings: dict
    digest: str
    rows: int

    def first(self) -> torch.Tensor:
        """The activations of the first part, in float32."""

    def held_out(self) -> Tokens:
        """The tokens that are never trained on."""

    def batches(self, size: int, seed: int, start: int, steps: int, by_map: bool) -> Iterator[tuple[int, Tokens]]:
        """``(step, Tokens)`` from step ``start`` to ``steps``, the same as an uninterrupted run would see them.

        ``by_map`` keeps the tokens of one map together.
        """

    def cost(self) -> Plan | None:
        """What it takes to draw the tokens, None where they are there."""


class Recorded:
    """A finished recording. Raises SaeuronError where it is not finished, or has one part only."""

    def __init__(self, folder: Path) -> None:
        self.recording = Recording(folder)
        if not self.recording.complete:
            raise SaeuronError(f"{folder} is not finished; run `record` on it again to complete it")
        names = list(self.recording.shards)
        if len(names) < 2:
            raise SaeuronError(
                f"{folder} has one shard and training holds one out: record more images, or fewer a shard"
            )
        *self.shards, self.last = names
        self.hookpoint, self.d_in = self.recording.hookpoint, self.recording.d_in
        self.settings, self.digest = self.recording.settings, self.recording.settings_hash
        self.rows = sum(self.recording.shards[name] for name in self.shards)

    @cached_property
    def prompts(self) -> list[dict]:
        return self.recording.prompts

    def first(self) -> torch.Tensor:
        return self.recording.read(self.shards[0]).activations.float()

    def held_out(self) -> Tokens:
        return self.recording.read(self.last)

    def batches(self, size: int, seed: int, start: int, steps: int, by_map: bool) -> Iterator[tuple[int, Tokens]]:
        per_epoch = self.rows // size
        step = start // per_epoch * per_epoch
        for epoch in range(start // per_epoch, math.ceil(steps / per_epoch)):
            for tokens in self.recording.batches(size, seed, epoch, TOGETHER, self.shards, by_map):
                if start <= step < steps:
                    yield step, tokens
                step += 1

    def cost(self) -> None:
        return None


class Streamed:
    """What `record` would record with the options ``recipe``, drawn when it is read and kept in memory alone.

    A window of `TOGETHER` parts is drawn, mixed, and passed over as often as the steps ask for; then comes the next.
    So a training that is interrupted draws again what its window held, and nothing else. Of several processes each
    draws a share of the window. Raises SaeuronError where the options cannot be.
    """

    def __init__(self, recipe: Record, pipeline: Pipeline | None = None) -> None:
        rows = read_prompts(recipe.prompts, recipe.labels)
        count = len(rows) if recipe.images is None else recipe.images
        if len(recipe.hookpoints) != 1:
            raise SaeuronError("an SAE is trained at one place: give one of --hookpoints to stream from")
        check_counts(recipe, count)
        if count <= recipe.images_per_shard:
            raise SaeuronError(
                f"--images {count} come to one shard of {recipe.images_per_shard} and training holds one out: "
                "draw more, or fewer a shard"
            )
        self.recipe, self.sampling = recipe, Sampling.of(recipe)
        self.pipeline = pipeline or open_model(recipe)
        self.hookpoint = Hookpoint(recipe.hookpoints[0], recipe.site)
        self.d_in = self.hookpoint.width(denoiser(self.pipeline))
        self.per_picture = self._per_picture()
        self.settings = described(recipe, self.pipeline)
        self.digest = settings_digest(self.settings, self.hookpoint, self.d_in)
        self.prompts = shuffled(rows, count, recipe.seed)
        starts = range(0, count, recipe.images_per_shard)
        *self.parts, self.last = [range(n, min(n + recipe.images_per_shard, count)) for n in starts]
        self.rows = sum(map(self._rows, self.parts))
        self._first: Tokens | None = None

    def first(self) -> torch.Tensor:
        self._first = self._first or self._draw(self.parts[0])
        return self._first.activations.float()

    def held_out(self) -> Tokens:
        return self._draw(self.last)

    def batches(self, size: int, seed: int, start: int, steps: int, by_map: bool) -> Iterator[tuple[int, Tokens]]:
        windows = [self.parts[n : n + TOGETHER] for n in range(0, len(self.parts), TOGETHER)]
        rows = [sum(map(self._rows, parts)) for parts in windows]
        passes = next(n for n in itertools.count(1) if sum(n * count // size for count in rows) >= steps)
        step = 0
        for number, (parts, count) in enumerate(zip(windows, rows, strict=True)):
            here = range(step, min(step + passes * count // size, steps))
            step += passes * count // size
            if here.stop > max(start, here.start):
                pool = Tokens.cat(self._drawn(parts))
                generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
                order = torch.cat([mixed(pool, generator, by_map) for _ in range(passes)])
                for n in range(max(start, here.start), here.stop):
                    at = (n - here.start) * size
                    yield n, pool.pick(order[at : at + size])

    def cost(self) -> Plan:
        pictures = sum(map(len, self.parts)) + len(self.last)
        return plan(self.pipeline, self.sampling, pictures)

    def _drawn(self, parts: Sequence[range]) -> list[Tokens]:
        """The tokens of ``parts``, of which this process draws its share; the first is drawn once."""
        if processes() == 1 and self._first is not None and parts[0] is self.parts[0]:
            kept, self._first = self._first, None
            return [kept, *map(self._draw, parts[1:])]
        return whole([self._draw(part) for part in share(parts)])

    def _draw(self, part: range) -> Tokens:
        seeded = [(n, self.prompts[n], self.recipe.seed * 1_000_003 + n) for n in part]
        return draw(self.pipeline, self.sampling, self.recipe, [self.hookpoint], seeded)[self.hookpoint]

    def _rows(self, part: range) -> int:
        return len(part) * self.per_picture

    def _per_picture(self) -> int:
        """The tokens kept of a picture: some of each map, and a map each time that the model is called."""
        scale, own = self.pipeline.vae_scale_factor, own_side(self.pipeline)
        height, width = ((given or own) // scale for given in (self.recipe.height, self.recipe.width))
        sizes = {name: rows * columns for name, _, rows, columns in places(denoiser(self.pipeline), height, width)}
        per_map = min(self.recipe.tokens_per_map, sizes[self.hookpoint.name])
        return per_map * len(timesteps_of(self.pipeline, self.sampling))
