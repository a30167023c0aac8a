"""``atlas``: an SAE and prompts → an atlas, what its latents do over the pictures of the prompts."""

import time
from pathlib import Path

from diffusers import DiffusionPipeline

from saeuron import SaeuronError, SparseAutoencoder
from saeuron.atlas import Atlas, Survey, merge_atlases
from saeuron.atlas.cards import read_cards
from saeuron.atlas.folder import key_of
from saeuron.atlas.sheets import to_image

from ..common.bundles import open_sae
from ..common.progress import track
from ..common.prompts import digest, read_prompts, shuffled
from ..common.results import table, tell
from ..common.resume import claim
from ..diffusion.hook import reading
from ..diffusion.load import check_fits, identity, open_model
from ..diffusion.sampling import Sampling, generate, plan
from .commands import BuildAtlas

SAVE_EVERY = 60.0
"""Seconds between two savings of what is gathered so far."""
PIECES = ("atlas.json", "cards.json", "parts", "statistics-*")


def run(config: BuildAtlas) -> None:
    if config.merge:
        return _tell(config, merged(config))
    sampling, sae, rows = Sampling.of(config), open_sae(config), read_prompts(config.prompts)
    pipeline = open_model(config)
    check_fits(sae, pipeline)
    sae = sae.to(pipeline.device)
    schedule = shuffled(rows, len(rows) if config.images is None else config.images, config.seed)
    first, last = config.part or (0, len(schedule))
    if not 0 <= first < last <= len(schedule):
        raise SaeuronError(f"--part is {first} {last}: give two numbers of the {len(schedule)} pictures, such as 0 100")
    if config.dry_run:
        plan(pipeline, sampling, last - first, sae.n_latents * 12 * 272 + 20_000 * (last - first)).tell(config)
        return
    made_with = {"sae": sae.fingerprint, "model": identity(config.model, pipeline), "prompts": digest(rows)}
    claim(config, config.output, free=["merge"], pieces=PIECES, **made_with)
    build(pipeline, sae, schedule, sampling, config.output, config.seed, (first, last), made_with)
    _tell(config, config.output)


def build(
    pipeline: DiffusionPipeline,
    sae: SparseAutoencoder,
    schedule: list[dict[str, str]],
    sampling: Sampling,
    folder: Path,
    seed: int = 0,
    part: tuple[int, int] | None = None,
    settings: dict | None = None,
) -> Atlas:
    """The atlas in ``folder`` of the pictures ``part`` (first, behind the last) of ``schedule``, which it goes on with.

    A picture's noise is that of its number in the schedule, so parts drawn apart and merged are what one drawing gives.
    """
    first, last = part or (0, len(schedule))
    atlas = Atlas.load(folder) if (folder / "atlas.json").exists() else None
    if atlas is not None:
        atlas.check_belongs(sae.fingerprint)
    starts = range(first + (atlas.pictures if atlas else 0), last, sampling.batch)
    saved = time.monotonic()
    for start in track(starts, "atlas"):
        numbers = range(start, min(start + sampling.batch, last))
        prompts = [schedule[number]["prompt"] for number in numbers]
        survey = Surveyor(sae, len(prompts), sampling)
        seeds = [seed * 1_000_003 + number for number in numbers]
        images = generate(pipeline, prompts, seeds, sampling, {sae.hookpoint: reading(survey.see)})
        seen = survey.of(images).finish()
        if atlas is None:
            about = {"steps": sampling.steps, "guidance": sampling.guidance, **(settings or {})}
            atlas = Atlas.create(folder, sae, seen.grid, about)
        keys = [key_of(prompt, one) for prompt, one in zip(prompts, seeds, strict=True)]
        atlas.add(seen, [to_image(image) for image in images], prompts, keys)
        if time.monotonic() - saved > SAVE_EVERY:
            atlas.save()
            saved = time.monotonic()
    if atlas.unsaved:
        atlas.save()
    read_cards(folder)
    return atlas


class Surveyor:
    """Surveys the conditional half of a batch of ``pictures``, whatever the proportions of its maps turn out to be."""

    def __init__(self, sae: SparseAutoencoder, pictures: int, sampling: Sampling) -> None:
        self.sae, self.pictures, self.sampling = sae, pictures, sampling
        self.survey: Survey | None = None

    def see(self, tokens, timestep, _unguided=None):
        if self.survey is None:
            height, width = self.sampling.height or 1, self.sampling.width or 1
            if not (self.sampling.height and self.sampling.width):
                height = width = 1  # models draw squares unless they are told otherwise
            self.survey = Survey(self.sae, self.pictures, *shape_of(tokens.shape[1], height / width))
        self.survey.see(tokens, timestep)

    def of(self, images) -> Survey:
        height, width = images.shape[-2:]
        wanted = shape_of(self.survey.height * self.survey.width, height / width)
        if wanted != (self.survey.height, self.survey.width):
            raise SaeuronError(f"the pictures are {width} × {height}: give both --height and --width")
        return self.survey


def shape_of(tokens: int, ratio: float) -> tuple[int, int]:
    """Height and width of a map of so many ``tokens`` of a picture whose height is ``ratio`` times its width."""
    divisors = [height for height in range(1, tokens + 1) if tokens % height == 0]
    height = min(divisors, key=lambda height: abs(height * height / tokens / ratio - 1))
    return height, tokens // height


def merged(config: BuildAtlas) -> Path:
    """The atlases that ``--merge`` names, in order, as one in the output."""
    if (config.output / "atlas.json").exists() and not config.overwrite:
        raise SaeuronError(f"{config.output} holds an atlas already: choose another --output, or --overwrite")
    if len(config.merge) != 2:
        raise SaeuronError("--merge takes two folders of atlases")
    merge_atlases(*(Atlas.load(folder) for folder in config.merge), config.output)
    read_cards(config.output)
    return config.output


def _tell(config: BuildAtlas, folder: Path) -> None:
    cards = read_cards(folder)
    words = [text.split(" ")[0] for text in cards["words"]]
    found = {
        "pictures": cards["pictures"],
        "latents": cards["latents"],
        "dead": len(cards["dead"]),
        "dense": len(cards["dense"]),
        "with words": sum(map(bool, words)),
        "MB": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1),
    }
    tell(config, found, table(list(found), [list(found.values())]))
