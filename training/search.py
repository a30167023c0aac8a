"""``search``: the number of latents and the strength for each concept, found on anchor prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline

from saeuron import ConceptTable, SaeuronError, SparseAutoencoder, load_sae

from .config import save_config
from .judging import KINDS, Sampling, draw_all, judge_tinycanvas, measures
from .models import check_fits, load_model
from .progress import console
from .prompts import read_labelled
from .settings import Setting, ablation, grid, write_settings


@dataclass
class Search:
    """Try settings for each target on anchor prompts and keep the one with the best worst of UA, IRA and CRA."""

    sae: Path
    """Folder of the SAE (cfg.json and sae.safetensors)."""
    table: Path
    """Concept table made with this SAE (.safetensors)."""
    output: Path
    """Folder for settings.json."""
    targets: tuple[str, ...]
    """Concepts to find settings for."""
    latents: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of latents to try (τ)."""
    strengths: tuple[float, ...] = (-1.0, -3.0, -10.0, -30.0)
    """Multipliers to try (γ)."""
    per_timestep: tuple[bool, ...] = (True, False)
    """Choices to try: latents chosen at each timestep, or once for all."""
    images: int = 60
    """Anchor pictures per setting, a third of them of the target."""
    prompts: str = "tinycanvas:anchor"
    """Labelled prompts. Never those that are evaluated."""
    steps: int = 25
    """Denoising steps."""
    guidance: float = 3.0
    """Classifier-free guidance scale."""
    batch: int = 30
    """Pictures drawn at once."""
    seed: int = 3
    """Seed of the choice of prompts and of the pictures."""
    device: str = "cpu"
    """cpu or cuda."""
    bf16: bool = False
    """Run the model under bfloat16 autocast."""

    def run(self) -> None:
        sae, table = load_sae(self.sae).to(self.device), ConceptTable.load(self.table)
        candidates = grid(list(self.latents), list(self.strengths), list(self.per_timestep))
        if not candidates:
            raise SaeuronError("there is nothing to try: give --latents, --strengths and --per-timestep")
        rows = read_labelled(self.prompts, KINDS)
        chosen = {name: anchor_rows(rows, table, name, self.images, self.seed) for name in self.targets}
        pipeline = load_model("tinycanvas", self.device)
        check_fits(sae, pipeline)
        sampling = Sampling(self.steps, self.guidance, self.batch, self.bf16)
        found = {
            name: search(pipeline, sae, table, name, candidates, *anchors, sampling) for name, anchors in chosen.items()
        }
        save_config(self, self.output)
        images = len(self.targets) * len(candidates) * self.images
        write_settings(self.output / "settings.json", found, images=images, fingerprint=sae.fingerprint)
        console.print(f"settings for {len(found)} concepts in {self.output / 'settings.json'}, at {images} images")


def anchor_rows(
    rows: Sequence[dict], table: ConceptTable, target: str, images: int, seed: int
) -> tuple[list[dict], list[int]]:
    """Prompts and seeds for ``images`` pictures: a third show the target, the rest spread over the other prompts."""
    import random

    if images < 2:
        raise SaeuronError(f"a search draws at least 2 pictures a setting, and {images} is fewer")
    kind = table.concepts[target] if target in table.concepts else table.row(target)
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    own = [row for row in shuffled if row[kind] == target]
    others = [row for row in shuffled if row[kind] != target]
    if not own or not others:
        raise SaeuronError(f"the prompts need some that show {target!r} and some that do not")
    third = max(images // 3, 1)
    picked = [own[n % len(own)] for n in range(third)] + [others[n % len(others)] for n in range(images - third)]
    return picked, [seed * 1_000_003 + n for n in range(len(picked))]


def search(
    pipeline: StableDiffusionPipeline,
    sae: SparseAutoencoder,
    table: ConceptTable,
    target: str,
    candidates: Sequence[Setting],
    rows: list[dict],
    seeds: list[int],
    sampling: Sampling,
) -> Setting:
    """The candidate whose worst of UA, IRA and CRA is best; their sum decides between equals."""
    kind = table.concepts[target]
    best, best_value = candidates[0], (-1.0, -1.0)
    for candidate in candidates:
        edit = ablation(sae, table, {target: candidate})
        images = draw_all(pipeline, rows, seeds, sampling, {sae.hookpoint: [edit]})
        rates = [rate.value for rate in measures(judge_tinycanvas(images, rows), target, kind).values()]
        value = (min(rates), sum(rates))
        console.print(f"{target}: {candidate}  UA {rates[0]:.2f}  IRA {rates[1]:.2f}  CRA {rates[2]:.2f}")
        if value > best_value:
            best, best_value = candidate, value
    return best
