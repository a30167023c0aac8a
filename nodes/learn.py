"""Learn Concept."""

import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..saeuron import SaeuronError
from ..saeuron.learning import FEWEST, Learner, Lesson, with_learnt
from .host import files, workflow
from .host.identity import identity, surroundings, text_identity
from .host.model_files import check_place
from .host.observation import PATCHED, Seen, Watched, fitted, latent_size
from .host.sockets import LoadedSae, Sae, bounded, schema
from .host.telling import tell

LOOKS = 8
"""At how many timesteps a given picture is looked at."""
TRUSTED = 0.8
"""The share of unseen prompts told rightly below which the user is warned."""


class LearnConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        prompts = {"multiline": True, "default": ""}
        return schema(
            node_id="SAeUronLearnConcept",
            display_name="Learn Concept",
            description="Teaches an SAE a concept its file does not know, from prompts or pictures. What is learnt is "
            "kept in models/saes/learnt, so that it is learnt once.",
            search_aliases=["learn", "train", "concept", "style", "unlearn", "sparse autoencoder"],
            inputs=[
                io.Model.Input("model", tooltip="The model that draws, with its LoRAs, before any patch of this pack."),
                io.Clip.Input("clip"),
                Sae.Input("sae", tooltip="An SAE of this model. It need not know any concept."),
                io.String.Input("name", default="", placeholder="neon", tooltip="What to learn, as prompts call it."),
                io.String.Input(
                    "kind",
                    default="",
                    placeholder="style",
                    tooltip="`object` for a thing, `style` for a look. It decides which prompts are made for you.",
                ),
                io.String.Input(
                    "shows",
                    placeholder="Prompts that show it, one a line. Empty: made for you.",
                    tooltip="Prompts that show the concept, one a line; better 12 than 5. Empty: made from the name. "
                    "With `images`: what stands in them, a line each or one for all, else the name.",
                    **prompts,
                ),
                io.String.Input(
                    "lacks",
                    placeholder="The like without it, one a line. Empty: made for you.",
                    tooltip="Prompts without the concept that are otherwise alike, one a line. Empty: made for you.",
                    **prompts,
                ),
                bounded("steps", 20, (4, 100), tooltip="Model calls for each prompt, by Euler's method."),
                bounded("cfg", 7.0, (1.0, 30.0, 0.5), tooltip="Guidance, as you use it for pictures."),
                bounded(
                    "seed",
                    0,
                    (0, 2**32 - 1),
                    control_after_generate=False,  # another seed would be another lesson, drawn anew at every run
                    tooltip="Seed of the first pair of prompts.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Its width and height are drawn. Without it: what the model was trained on.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures that show the concept, instead of drawing any. They need a VAE.",
                ),
                io.Image.Input(
                    "other_images",
                    optional=True,
                    tooltip="The like without the concept. Without them, such pictures are drawn from prompts.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For pictures."),
            ],
            outputs=[Sae.Output("sae", display_name="SAE", tooltip="The SAE, which now knows the concept.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        # ComfyUI repeats the sentence for every input that is asked for here, so the others are asked of the workflow.
        number = workflow.number(cls)
        return workflow.first_told(
            (check, name, workflow.inputs(number)), (check_unpatched, name, number), (check_place, name, number)
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip,
        sae: LoadedSae,
        name: str,
        kind: str,
        shows: str,
        lacks: str,
        steps: int,
        cfg: float,
        seed: int,
        latent: dict | None = None,
        images: torch.Tensor | None = None,
        other_images: torch.Tensor | None = None,
        vae=None,
    ) -> io.NodeOutput:
        shows, lacks = shows.splitlines(), lacks.splitlines()
        artist = Artist(Watched(model, sae), clip, vae, latent_size(model, latent), steps, cfg, seed)
        if images is None:
            lesson = Lesson.of(name, kind, shows, lacks)
        else:
            lesson = artist.lesson_of_pictures(name, kind, shows, lacks, images, other_images)
        about = artist.identity(model)
        learner = Learner(sae.sae, lesson, artist.timesteps, about, lesson_file(sae, lesson, about))
        calls = learn(learner, artist, workflow.number(cls))
        taught, left_out = know(sae, learner)
        return io.NodeOutput(taught, ui=ui.PreviewText(describe(learner, calls, left_out)))


def check(name: str, queued: dict) -> None:
    """Raise SaeuronError where a lesson cannot be what the inputs ``queued`` say; links are not known yet."""
    pictures = "images" in queued
    if "vae" not in queued and (pictures or "other_images" in queued):
        raise SaeuronError("pictures are learnt from through a VAE: connect the checkpoint's to `vae`")
    if "other_images" in queued and not pictures:
        raise SaeuronError("`other_images` are the like without the concept: connect pictures that show it to `images`")
    kind, shows, lacks = (queued.get(field, "") for field in ("kind", "shows", "lacks"))
    if all(isinstance(text, str) for text in (kind, shows, lacks)):
        Lesson.of(name, kind, [] if pictures else shows.splitlines(), [] if pictures else lacks.splitlines())


def check_unpatched(_: object, node_id: str | None) -> None:
    """Raise SaeuronError where the model that is to come carries a patch of this pack."""
    if any(kind in ("SAeUronAblatePatch", "SAeUronSteerPatch") for _, kind, _ in workflow.upstream(node_id, "model")):
        raise SaeuronError(PATCHED)


class Artist:
    """Draws what a lesson's prompts ask for, or looks at its pictures, and tells the tokens by timestep.

    ``size`` is channels, height and width of a latent. A lesson's pictures go by names made of their content.
    """

    def __init__(self, watched: Watched, clip, vae, size: tuple[int, int, int], steps: int, cfg: float, seed: int):
        self.watched, self.clip, self.vae = watched, clip, vae
        self.size, self.steps, self.cfg, self.seed = size, steps, cfg, seed
        self.pictures: dict[str, tuple[torch.Tensor | None, str]] = {}
        self.sigmas = watched.sampling_sigmas(steps)
        self.timesteps = watched.timesteps(self.sigmas[:-1])

    def lesson_of_pictures(
        self,
        name: str,
        kind: str,
        shows: list[str],
        lacks: list[str],
        images: torch.Tensor,
        others: torch.Tensor | None,
    ) -> Lesson:
        """A lesson of given pictures; without ``others`` such are drawn. The prompts are then what stands in them."""
        self.looks = self.watched.spread_sigmas(LOOKS)
        self.timesteps = self.watched.timesteps(self.looks)
        captions = [line for line in shows if line.strip()]
        own = self._named(images, captions or [name])  # the word itself, so that the noisiest maps show it too
        if others is not None:
            rest = self._named(others, [line for line in lacks if line.strip()])
        else:
            rest = list(dict.fromkeys(Lesson.of(name, kind, [], lacks).lacks))
            self.pictures |= {text: (None, text if captions else "") for text in rest}
        for found, input_ in ((own, "images"), (rest, "other_images")):
            if len(set(found)) < FEWEST:
                raise SaeuronError(
                    f"{name} is not learnt from {len(set(found))} `{input_}`: give {FEWEST} different ones, better 12"
                )
        return Lesson.of(name, kind, own, rest)

    def _named(self, pictures: torch.Tensor, captions: list[str]) -> list[str]:
        ratio = self.vae.spacial_compression_encode()
        pictures = fitted(pictures, self.size[1] * ratio, self.size[2] * ratio)
        names = []
        for number, picture in enumerate(pictures):
            caption = captions[number % len(captions)] if captions else ""
            content = (picture * 255).round().byte().cpu().numpy().tobytes()
            names.append(f"picture {hashlib.sha256(content).hexdigest()[:16]} {caption}".strip())
            self.pictures[names[-1]] = (picture[None], caption)
        return names

    def identity(self, model: ModelPatcher) -> dict[str, object]:
        """What a lesson's result depends on beside the lesson, the SAE and the timesteps."""
        model_is = {"model": identity(model), "around": surroundings(model), "text": text_identity(self.clip)}
        sigmas = [round(float(sigma), 3) for sigma in self.sigmas]
        return model_is | {"size": list(self.size), "cfg": self.cfg, "seed": self.seed, "sigmas": sigmas}

    def calls(self, text: str) -> int:
        """Model calls that a prompt or a picture takes."""
        given, _ = self.pictures.get(text, (None, ""))
        return (self.steps if given is None else 0) + (LOOKS if text in self.pictures else 0)

    def tokens(self, text: str, number: int, step) -> Seen:
        """Tokens by timestep. A pair of prompts, with and without the concept, begins with the same noise."""
        generator = torch.Generator().manual_seed(self.seed + number // 2)
        noise = torch.randn(1, *self.size, generator=generator)
        if text not in self.pictures:
            return self._draw(text, noise, step)[1]
        picture, caption = self.pictures[text]
        latent = self._draw(text, noise, step)[0] if picture is None else self.vae.encode(picture)
        again = torch.randn(latent.shape, generator=generator)
        return self.watched.look(latent, self._prompt(caption), self.looks, again, step)

    def _draw(self, text: str, noise: torch.Tensor, step) -> tuple[torch.Tensor, Seen]:
        return self.watched.draw(self._prompt(text), self._prompt(""), self.cfg, self.sigmas, noise, step)

    def _prompt(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))


def lesson_file(sae: LoadedSae, lesson: Lesson, about: dict) -> Path:
    """Where what is finished of a lesson is kept: in models/saes, under an ending that no list offers."""
    digest = hashlib.sha256(repr((asdict(lesson), about)).encode()).hexdigest()[:8]
    parts = (Path(sae.name).with_suffix("").as_posix(), lesson.name, digest)
    return files.folder() / "learnt" / ("-".join(re.sub(r"[^\w.]+", "_", part)[-40:] for part in parts) + ".lesson")


def learn(learner: Learner, artist: Artist, node_id: str | None) -> int:
    """Draw what is waiting, a prompt after another; the number of model calls that it took."""
    waiting, prompts = learner.waiting, learner.lesson.prompts
    calls = sum(artist.calls(prompts[number][0]) for number in waiting)
    tell(node_id, f"{learner.lesson.name}: {len(waiting)} of {len(prompts)} to draw, {calls} model calls")
    progress = comfy.utils.ProgressBar(max(1, calls))
    for number in waiting:
        comfy.model_management.throw_exception_if_processing_interrupted()
        seen = artist.tokens(prompts[number][0], number, lambda: progress.update(1))
        device = learner.sae.W_enc.device  # where ComfyUI has left it while the model was called
        learner.observe(number, {t: (tokens.to(device), unguided) for t, (tokens, unguided) in seen.items()})
    return calls


def know(sae: LoadedSae, learner: Learner) -> tuple[LoadedSae, list[str]]:
    """The SAE with what it knew and what was learnt, and the concepts that had to be left out.

    These are those of a file of the old version: its tables say too little to stand beside what is learnt.
    """
    old = sae.bundle.table
    left_out = [] if old is None or old.has_contrasts else [c for c in old.concepts if c != learner.lesson.name]
    return replace(sae, bundle=with_learnt(sae.bundle, learner)), left_out


def describe(learner: Learner, calls: int, left_out: list[str]) -> str:
    """What the node shows under itself."""
    lesson, trust = learner.lesson, learner.trust()
    lines = [
        f"{lesson.name} ({lesson.kind}), from {len(lesson.shows)} that show it and {len(lesson.lacks)} that do not",
        f"told rightly on {trust:.0%} of those it was not fitted to",
        f"{calls} model calls" + ("" if calls else ": all was kept from before"),
        f"kept in {learner.path.parent.name}/{learner.path.name}",
    ]
    if trust < TRUSTED:
        lines.insert(
            0,
            f"⚠ {lesson.name} is told from the rest too seldom ({trust:.0%}; chance is 50%): give more and clearer "
            "prompts that show it, and others that are alike but for it.",
        )
    if left_out:
        lines.append(f"left out, since this SAE file is of an older version: {', '.join(left_out)}")
    return "\n".join(lines)
