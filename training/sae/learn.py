"""Learning a word: the prompts of a lesson are drawn, and what they do to a map is gathered."""

from pathlib import Path

import torch

from saeuron import SparseAutoencoder
from saeuron.hookpoints import whole_timestep
from saeuron.learning import Learner, Lesson

from ..common.progress import track
from ..diffusion.load import Pipeline
from ..diffusion.sampling import Sampling, generate


def learn(
    pipeline: Pipeline, sae: SparseAutoencoder, lesson: Lesson, sampling: Sampling, seed: int, path: Path | None = None
) -> Learner:
    """Draw what is not drawn yet of ``lesson``, a picture a prompt, and return the learner that has seen it all.

    ``path`` is where finished prompts are kept.
    """
    pipeline.scheduler.set_timesteps(sampling.steps)
    timesteps = [whole_timestep(t) for t in pipeline.scheduler.timesteps]
    learner = Learner(sae, lesson, timesteps, [vars(sampling), seed], path)
    waiting = learner.waiting
    for start in track(range(0, len(waiting), sampling.batch), f"learning {lesson.name}"):
        numbers = waiting[start : start + sampling.batch]
        seen: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

        def tap(tokens, timestep, conditional, seen=seen):
            unguided = tokens[: conditional.start] if conditional.start else None
            seen[whole_timestep(timestep)] = tokens[conditional], unguided
            return tokens

        prompts = [lesson.prompts[number][0] for number in numbers]
        generate(pipeline, prompts, [seed * 1_000_003 + n for n in numbers], sampling, {sae.hookpoint: tap})
        for place, number in enumerate(numbers):
            own = {
                t: (tokens[place : place + 1], None if unguided is None else unguided[place : place + 1])
                for t, (tokens, unguided) in seen.items()
            }
            learner.observe(number, own)
    return learner
