"""``learn``: a word and what shows it → a bundle that knows it. Prompts are drawn, pictures are noised."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from saeuron import SaeuronError, SparseAutoencoder
from saeuron.checkpoints import save_bundle
from saeuron.hookpoints import whole_timestep
from saeuron.learning import Learner, Lesson, with_learnt

from ..common.bundles import open_bundle
from ..common.progress import console, track
from ..common.prompts import read_prompts
from ..common.results import tell
from ..common.resume import claim
from ..diffusion.hook import reading
from ..diffusion.load import Pipeline, fit, identity, open_model
from ..diffusion.sampling import Sampling, generate, plan, timesteps_of
from .commands import Learn
from .noised import TIMESTEPS, check_apart, look, pictures_in

TRUSTED = 0.8
"""The share of unseen prompts that has to be told rightly for a word to be removed with confidence."""


def run(config: Learn) -> None:
    lesson, pictures = _lesson(config)
    path = config.output.with_name(f"{config.output.stem}.lesson.safetensors")
    if config.output.suffix != ".safetensors":
        raise SaeuronError(f"--output {config.output} has to end in .safetensors to be found again")
    if config.output.resolve() == config.sae.resolve():
        raise SaeuronError(f"--output {config.output} is the SAE that is read: give the new bundle another name")
    bundle, sampling = open_bundle(config), Sampling.of(config)
    pipeline = open_model(config)
    fit(bundle.sae, pipeline)
    model = identity(config.model, pipeline)
    if pictures:  # one model call a timestep, without guidance
        sampling = replace(sampling, steps=len(TIMESTEPS), guidance=1.0)
    if not config.dry_run:
        read = {"sae": bundle.sae.fingerprint, "model": model, "lesson": _digest(lesson)}
        pieces, free = [config.output.name, path.name], ["shows", "lacks", "images", "other_images"]
        claim(config, config.output.parent, free=free, pieces=pieces, name=f"{config.output.stem}.config.json", **read)
    if pictures:
        made_with = ["noised", [sampling.height, sampling.width, sampling.bf16], config.seed, model]
        learner = Learner(bundle.sae, lesson, TIMESTEPS, made_with, path)
    else:
        learner = begin_prompts(pipeline, bundle.sae, lesson, sampling, config.seed, path, model)
    if config.dry_run:
        plan(pipeline, sampling, len(learner.waiting), 4 * bundle.sae.n_latents * sampling.steps * 5).tell(config)
        return
    what = "noised and looked at" if pictures else f"drawn in {sampling.steps} steps each"
    _say(f"{len(learner.waiting)} of {len(lesson.prompts)} pictures will be {what}; the others are finished")
    if pictures:
        learn_pictures(learner, pipeline, pictures, sampling, config.seed)
    else:
        learn(learner, pipeline, sampling, config.seed)
    trust = learner.trust()
    if bundle.table is not None and not bundle.table.has_contrasts:
        _say(f"the table of {config.sae} holds means alone, so the bundle knows {lesson.name} in place of its concepts")
    taught = with_learnt(bundle, learner)
    save_bundle(taught, config.output)
    if trust < TRUSTED:
        _say(
            f"{lesson.name} is not told reliably, in {trust:.0%} of pictures that the fit had not seen, where 50% is "
            "chance: give more prompts that show it plainly and more that do not, before it is removed"
        )
    told = {"output": str(config.output), "concept": lesson.name, "trust": trust, "concepts": taught.table.concepts}
    tell(config, told, f"{config.output} knows {lesson.name}: told rightly in {trust:.0%} of pictures not seen before")


def _lesson(config: Learn) -> tuple[Lesson, list[Path]]:
    """What is learnt, and the pictures in the order of the lesson's prompts; none where prompts are drawn."""
    if config.images is None and config.other_images is None:
        shows, lacks = (
            [row["prompt"] for row in read_prompts(file)] if file else () for file in (config.shows, config.lacks)
        )
        return Lesson.of(config.name, config.kind, shows, lacks), []
    if config.images is None or config.other_images is None:
        raise SaeuronError("--images shows the word and --other-images what is not it: give both folders")
    if config.shows or config.lacks:
        raise SaeuronError("--shows and --lacks are drawn, --images and --other-images are not: give one of the two")
    own, others = pictures_in(config.images, "--images"), pictures_in(config.other_images, "--other-images")
    check_apart(own, others)
    lesson = Lesson.of(config.name, config.kind, list(own), list(others))
    return lesson, [(own if shown else others)[name] for name, shown in lesson.prompts]


def _digest(lesson: Lesson) -> str:
    return hashlib.sha256(json.dumps(asdict(lesson), sort_keys=True).encode()).hexdigest()[:12]


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def begin_prompts(
    pipeline: Pipeline,
    sae: SparseAutoencoder,
    lesson: Lesson,
    sampling: Sampling,
    seed: int,
    path: Path | None = None,
    identity: object = None,
) -> Learner:
    """A learner of prompts that are drawn; ``path`` keeps finished ones, ``identity`` says of which model they are."""
    timesteps = timesteps_of(pipeline, sampling)
    sampler = type(pipeline.scheduler).__name__  # the config names it only where it came from a file
    made_with = [vars(sampling), seed, *([] if identity is None else [identity, sampler])]
    return Learner(sae, lesson, timesteps, made_with, path)


def learn(learner: Learner, pipeline: Pipeline, sampling: Sampling, seed: int) -> None:
    """Draw what ``learner`` still waits for, a picture a prompt, as it was begun by `begin_prompts`."""
    lesson, hookpoint = learner.lesson, learner.sae.hookpoint
    waiting, every = set(learner.waiting), range(len(lesson.prompts))
    # A batch is always of the same prompts: what a picture is, to the last bit, depends on those beside it.
    batches = [every[start : start + sampling.batch] for start in every[:: sampling.batch]]
    for numbers in track([batch for batch in batches if waiting & set(batch)], f"learning {lesson.name}"):
        seen: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

        def see(tokens, timestep, unguided, seen=seen):
            seen[whole_timestep(timestep)] = tokens, unguided

        prompts = [lesson.prompts[number][0] for number in numbers]
        generate(pipeline, prompts, [seed * 1_000_003 + n for n in numbers], sampling, {hookpoint: reading(see)})
        for place, number in enumerate(numbers):
            own = {
                t: (tokens[place : place + 1], None if unguided is None else unguided[place : place + 1])
                for t, (tokens, unguided) in seen.items()
            }
            if number in waiting:
                learner.observe(number, own)


def learn_pictures(learner: Learner, pipeline: Pipeline, pictures: list[Path], sampling: Sampling, seed: int) -> None:
    """As `learn`, from ``pictures`` in the order of the lesson's prompts, which are only their names.

    Those that show the word are looked at with the word as prompt, the others with none.
    """
    lesson = learner.lesson
    for number in track(learner.waiting, f"learning {lesson.name}"):
        text = lesson.name if lesson.prompts[number][1] else ""
        own = look(pipeline, pictures[number], text, seed * 1_000_003 + number, sampling, learner.sae.hookpoint)
        learner.observe(number, own)
