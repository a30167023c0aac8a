"""``generate``: pictures with and without concepts, paired by seed."""

import dataclasses
from collections.abc import Sequence

import torch

from saeuron import Hookpoint, SaeuronError, build_edits
from saeuron.checkpoints import Bundle
from saeuron.errors import nearest

from ..common.bundles import chosen, open_bundle, tell_origin
from ..common.pictures import read_picture, save_grid, save_picture
from ..common.progress import console, track
from ..common.prompts import digest, read_prompts
from ..common.results import table, tell
from ..common.resume import claim
from ..diffusion.denoiser import own_side
from ..diffusion.hook import Edit
from ..diffusion.load import fit, identity, open_model
from ..diffusion.sampling import Sampling, draw_all, plan
from .commands import Generate

ACROSS = 12
"""Pictures in a line of the grid."""
FREE = {"batch", "prompt", "edit", "latents", "strength", "per_timestep", "paper_exact"}
"""Options that change nothing of what is drawn, or whose effect the settings and prompts say."""


def run(config: Generate) -> None:
    rows = [{"prompt": text} for text in config.prompt if text.strip()]
    rows += read_prompts(config.prompts) if config.prompts else []
    if not rows:
        raise SaeuronError("there is nothing to draw: give --prompt or --prompts")
    sampling, bundles = _sampling(config), _bundles(config)
    removed = _removed(config, bundles)
    pipeline = open_model(config)
    edits: dict[Hookpoint, list[Edit]] = {}
    for bundle, settings in zip(bundles, removed, strict=True):
        fit(bundle.sae, pipeline)
        if settings:
            own = build_edits(bundle.sae, bundle.table, settings)
            edits.setdefault(bundle.sae.hookpoint, []).extend(own)
    if config.dry_run:
        pixels = 3 * own_side(pipeline) ** 2
        plan(pipeline, sampling, 2 * len(rows), 2 * len(rows) * pixels).tell(config)
        return
    made_with = {"sae": [bundle.sae.fingerprint for bundle in bundles], "model": identity(config.model, pipeline)}
    made_with["settings"] = [{name: own.values() for name, own in settings.items()} for settings in removed]
    pieces = ["before-*.png", "after-*.png", "grid.png"]
    claim(config, config.output, free=FREE, pieces=pieces, prompts=digest(rows), **made_with)
    for path, bundle, settings in zip(config.sae, bundles, removed, strict=True):
        tell_origin(settings, bundle, dataclasses.replace(config, sae=path))

    files = [[config.output / f"{when}-{n:04d}.png" for n in range(len(rows))] for when in ("before", "after")]
    missing = [n for n in range(len(rows)) if not (files[0][n].exists() and files[1][n].exists())]
    counters = {hookpoint: Counter() for hookpoint in edits}
    for start in track(range(0, len(missing), config.batch), "drawing"):
        part = missing[start : start + config.batch]
        picked, seeds = [rows[n] for n in part], [config.seed + n for n in part]
        counted = {
            hookpoint: [counter.before, *edits[hookpoint], counter.after] for hookpoint, counter in counters.items()
        }
        for paths, chains in zip(files, ({}, counted), strict=True):
            for n, image in zip(part, draw_all(pipeline, picked, seeds, sampling, chains), strict=True):
                save_picture(image, paths[n])
    lines = range(0, len(rows), ACROSS)
    strips = [paths[start : start + ACROSS] for start in lines for paths in files]
    save_grid(strips, config.output / "grid.png", rows=["before", "after"] * len(lines))
    console.print(f"{len(rows)} pairs of pictures in {config.output}", soft_wrap=True)
    _tell(config, len(rows), counters if missing else {})


def _sampling(config: Generate) -> Sampling:
    if not 0 < config.denoise <= 1:
        raise SaeuronError(f"--denoise is {config.denoise} and has to lie between 0 and 1")
    sampling = Sampling.of(config)
    if config.mask:
        sampling = dataclasses.replace(sampling, mask=read_picture(config.mask, "--mask", "L"))
    if config.init_image is None:
        return sampling
    image = read_picture(config.init_image, "--init-image")[None]
    size = tuple(
        given or own // 8 * 8 for given, own in zip((config.height, config.width), image.shape[2:], strict=True)
    )
    image = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)
    return dataclasses.replace(sampling, init_image=image, denoise=config.denoise)


def _bundles(config: Generate) -> list[Bundle]:
    if len(config.sae) != 1 and (config.table or config.settings or config.hookpoint or config.site):
        raise SaeuronError("--table, --settings, --hookpoint and --site belong to one SAE: give one --sae, or bundles")
    if not config.sae:
        raise SaeuronError("there is no SAE: give --sae")
    return [open_bundle(dataclasses.replace(config, sae=path)) for path in config.sae]


def _removed(config: Generate, bundles: Sequence[Bundle]) -> list[dict]:
    """Of each SAE, how it removes the concepts that its table knows; raises SaeuronError on one that none knows."""
    if len(bundles) == 1:
        return [chosen(bundles[0], config.remove, config) if config.remove else {}]
    known = [bundle.table.concepts if bundle.table else {} for bundle in bundles]
    for name in config.remove:
        if not any(name in own for own in known):
            every = {concept for own in known for concept in own}
            raise SaeuronError(f"concept {name!r} is in no SAE's table; the nearest are {nearest(name, sorted(every))}")
    return [
        chosen(bundle, [name for name in config.remove if name in own], config) if own else {}
        for bundle, own in zip(bundles, known, strict=True)
    ]


class Counter:
    """Counts the tokens that edits between its two ends change."""

    def __init__(self) -> None:
        self.changed = self.total = 0

    def before(self, tokens: torch.Tensor, _timestep: float, **_: torch.Tensor) -> torch.Tensor:
        self.tokens = tokens
        return tokens

    def after(self, tokens: torch.Tensor, _timestep: float, **_: torch.Tensor) -> torch.Tensor:
        self.total += tokens.shape[0] * tokens.shape[1]
        if tokens is not self.tokens:
            self.changed += int((tokens != self.tokens).any(-1).sum())
        return tokens


def _tell(config: Generate, pairs: int, counters: dict[Hookpoint, Counter]) -> None:
    lines, found = [], []
    for hookpoint, counter in counters.items():
        share = counter.changed / counter.total if counter.total else 0.0
        lines.append([hookpoint.name, f"{counter.changed} of {counter.total} ({share:.2%})"])
        found.append({"hookpoint": hookpoint.name, "changed": counter.changed, "tokens": counter.total})
        if not counter.changed:
            console.print(
                f"no token was changed at {hookpoint.name}: the pictures are the same before and after; "
                "try other concepts, more --latents, or another --edit",
                soft_wrap=True,
            )
    result = {"pairs": pairs, "output": str(config.output), "edits": found}
    tell(config, result, table(["hookpoint", "tokens changed"], lines) if lines else str(config.output / "grid.png"))
