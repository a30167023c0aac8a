"""The methods that the league compares: which SAE each reads with, what it searches, and how it edits."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import StableDiffusionPipeline

from saeuron import Hookpoint, Setting, build_edits, load_sae
from saeuron.checkpoints import Bundle
from saeuron.learning import Lesson
from saeuron.removal import DEFAULT

from ..common.prompts import read_prompts
from ..diffusion.hook import Edit
from ..diffusion.sampling import Sampling
from ..evaluation.sweep import grid
from ..sae.commands import Record, Train
from ..sae.learn import begin_prompts, learn
from ..sae.record import record
from ..sae.score import scored
from ..sae.train import train
from .commands import KINDS

# γ as published, thinned out: SAeUron searches 30 τ × 7 γ, SAEmnesia the same 7 γ at its one latent.
TAU, GAMMA = [1, 2, 4, 8], [-1.0, -5.0, -20.0]
GAMMA_ONE = [-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0]

SAES: dict[str, dict[str, object]] = {
    "plain": {},
    "assigned": {"labels": KINDS},
    "gated": {"labels": KINDS, "activation": "sigmoid_topk"},
    "contrastive": {"labels": KINDS, "bce": 0.0, "decorrelation": 0.0, "l1": 0.0, "contrast": 0.1},
}
"""How each SAE is trained, beside what all share. `assigned` goes on from `plain`, the others begin from scratch."""


ORDINARY = {"style": "plain"}
"""What half the neutral set shows from which a concept of a kind is learnt. No object is ordinary."""


@dataclass(frozen=True)
class Method:
    """An SAE of `SAES`, and for each kind the settings that are tried on anchor prompts; a single one costs nothing.

    ``learnt`` is how many prompts that show a concept are all that is known of it; 0 stands for the SAE's whole table.
    """

    sae: str
    settings: Mapping[str, Sequence[Setting]]
    learnt: int = 0


def _both(settings: Sequence[Setting]) -> dict[str, Sequence[Setting]]:
    return dict.fromkeys(KINDS, settings)


_SEARCH = grid(TAU, GAMMA, [True])
_PUBLISHED = [dataclasses.replace(setting, paper_exact=True) for setting in _SEARCH]
_ONE = [Setting(strength=gamma, select="assigned") for gamma in GAMMA_ONE]
_PER = [Setting(edit="replace", select="assigned")]

METHODS: dict[str, Method] = {
    # The paper's styles are not searched: τ = 1, γ = −1.
    "saeuron_paper": Method("plain", {"object": _PUBLISHED, "style": [Setting(paper_exact=True)]}),
    "saeuron": Method("plain", _both(_SEARCH)),
    "saemnesia": Method("assigned", _both(_ONE)),
    "saemnesia_per": Method("assigned", _both(_PER)),
    "gsae_per": Method("gated", _both(_PER)),
    "saeparate": Method("contrastive", _both(_SEARCH)),
    "default": Method("assigned", _both([DEFAULT])),
    "default_unsupervised": Method("plain", _both([DEFAULT])),
    "learn_5": Method("plain", _both([DEFAULT]), learnt=5),
    "learn_12": Method("plain", _both([DEFAULT]), learnt=12),
    "learn_40": Method("plain", _both([DEFAULT]), learnt=40),
}


def thinned(method: Method, tau: Sequence[int], gamma: Sequence[float]) -> Method:
    """``method`` with fewer settings to try: those of these τ and γ."""
    settings = {
        kind: [own for own in tried if own.latents in tau and own.strength in gamma] if len(tried) > 1 else tried
        for kind, tried in method.settings.items()
    }
    return dataclasses.replace(method, settings=settings)


@dataclass
class Lab:
    """The recording, SAEs and tables that the methods share, each made once and read from ``work`` ever after."""

    pipeline: StableDiffusionPipeline
    work: Path
    blocks: Sequence[str]
    images: int
    tokens_per_map: int
    expansion: int
    k: int
    batch: int
    train_steps: int
    tune_steps: int
    score_images: int
    steps: int
    seed: int
    readers: dict[tuple[str, str], Bundle] = field(default_factory=dict)

    def reader(self, name: str, block: str) -> Bundle:
        """The SAE ``name`` of `SAES` at ``block``, trained now if it is not there yet, and its table."""
        if (name, block) not in self.readers:
            self.readers[name, block] = self._make(name, block)
        return self.readers[name, block]

    def learnt(self, name: str, block: str, concept: str, kind: str, count: int) -> Bundle:
        """The SAE ``name`` and a table of ``concept`` alone, learnt from ``count`` anchor prompts that show it.

        The neutral set are as many that do not, 24 at least, half of them `ORDINARY`. A prompt may come twice, as two
        pictures.
        """
        sae, usual = self.reader(name, block).sae, ORDINARY.get(kind)
        shows, ordinary, rest = [], [], []
        for row in read_prompts("tinycanvas:anchor"):
            (shows if row[kind] == concept else ordinary if row[kind] == usual else rest).append(row["prompt"])
        picker, lacks = random.Random(f"{self.seed} {concept}"), max(count, 24)
        shows, ordinary = (picker.sample(own, min(n, len(own))) for own, n in ((shows, count), (ordinary, lacks // 2)))
        lesson = Lesson.of(concept, kind, shows, ordinary + picker.sample(rest, lacks - len(ordinary)))
        path = self.work / "learnt" / block / name / f"{concept}-{count}.safetensors"
        sampling, seed = Sampling(self.steps, bf16=True), self.seed + 2
        learner = begin_prompts(self.pipeline, sae, lesson, sampling, seed, path)
        learn(learner, self.pipeline, sampling, seed)
        return Bundle(sae, learner.table())

    def _make(self, name: str, block: str) -> Bundle:
        folder = self.work / "saes" / block / name
        path = folder / "table.safetensors"
        if not (folder / "metrics.json").exists():
            train(self._recipe(name, block, folder))
        sae = load_sae(folder)
        rows, sampling = read_prompts("tinycanvas:anchor"), Sampling(self.steps, bf16=True)
        return Bundle(sae, scored(self.pipeline, sae, rows, sampling, path, self.score_images, self.seed + 1))

    def _recipe(self, name: str, block: str, folder: Path) -> Train:
        common = {
            "recording": self._recording(block),
            "output": folder,
            "expansion": self.expansion,
            "k": self.k,
            "batch": self.batch,
            "steps": self.train_steps,
            "lr": 1e-3,
            "dead_after": 500_000,
            "seed": self.seed,
            "log_every": 500,
        }
        if name == "assigned":
            self.reader("plain", block)
            before = self.work / "saes" / block / "plain"
            common |= {"init": before, "table": before / "table.safetensors", "steps": self.tune_steps}
        return Train(**(common | SAES[name]))

    def _recording(self, block: str) -> Path:
        recipe = Record(
            output=self.work / "recording",
            hookpoints=tuple(dict.fromkeys(self.blocks)),
            images=self.images,
            steps=self.steps,
            tokens_per_map=self.tokens_per_map,
            images_per_shard=-(-self.images // 8),
            batch=25,
            seed=self.seed,
            bf16=True,
        )
        return record(recipe)[list(recipe.hookpoints).index(block)]


def edits_for(readers: Mapping[str, Bundle], settings: Mapping[str, Setting]) -> dict[Hookpoint, list[Edit]]:
    """The edits that remove all concepts in ``settings``, each by the SAE and table that ``readers`` has for it."""
    found: dict[Hookpoint, list[Edit]] = {}
    for reader in {id(reader): reader for reader in readers.values()}.values():
        own = {name: setting for name, setting in settings.items() if readers[name] is reader}
        if own:
            found.setdefault(reader.sae.hookpoint, []).extend(build_edits(reader.sae, reader.table, own))
    return found
