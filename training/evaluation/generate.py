"""``generate``: pictures with and without concepts, paired by seed."""

from dataclasses import dataclass
from pathlib import Path

from saeuron import ConceptTable, SaeuronError, Setting, build_edits, load_sae, read_settings

from ..common.config import save_config
from ..common.pictures import save_grid, save_picture
from ..common.progress import console
from ..common.prompts import read_prompts
from ..diffusion.load import check_fits, load_model
from ..diffusion.sampling import Sampling, draw_all


@dataclass
class Generate:
    """Draw pictures before and after concepts are removed, from the same seeds."""

    sae: Path
    """Folder of the SAE (cfg.json and sae.safetensors)."""
    table: Path
    """Concept table made with this SAE (.safetensors)."""
    output: Path
    """Folder for the pictures: before-*.png, after-*.png and grid.png."""
    remove: tuple[str, ...] = ()
    """Concepts to remove, by name. None draws the same picture twice."""
    prompt: tuple[str, ...] = ()
    """Prompts to draw, each in quotes; or use `prompts`."""
    prompts: str | None = None
    """Prompt file (.txt or .jsonl), or tinycanvas:evaluation."""
    settings: Path | None = None
    """settings.json with a setting per concept, as sweep and demo write it; it wins over the three below."""
    latents: int = 1
    """Latents removed per concept and timestep (τ)."""
    strength: float = -1.0
    """Multiplier of the removed latents (γ), negative to push the concept away."""
    per_timestep: bool = True
    """Choose latents at each timestep, or once for all."""
    paper_exact: bool = False
    """Reproduce the published code's sign of the reconstruction error."""
    model: str = "tinycanvas"
    """`tinycanvas`, a diffusers folder, or a single-file checkpoint."""
    steps: int = 25
    """Denoising steps; any number works with any table."""
    guidance: float = 3.0
    """Classifier-free guidance scale."""
    sampler: str = "ddim"
    """ddim, euler, euler-a, dpm++2m or heun."""
    height: int | None = None
    """Height in pixels; default the model's own."""
    width: int | None = None
    """Width in pixels; default the model's own."""
    seed: int = 0
    """Seed of the first picture; the following ones count up."""
    batch: int = 16
    """Pictures drawn at once."""
    device: str = "cpu"
    """cpu or cuda."""

    def run(self) -> None:
        rows = [{"prompt": text} for text in self.prompt if text.strip()]
        rows += read_prompts(self.prompts) if self.prompts else []
        if not rows:
            raise SaeuronError("there is nothing to draw: give --prompt or --prompts")
        sae, table = load_sae(self.sae), ConceptTable.load(self.table)
        tuned = read_settings(self.settings) if self.settings else {}
        plain = Setting(self.latents, self.strength, self.per_timestep, paper_exact=self.paper_exact)
        chosen = {name: tuned.get(name, plain) for name in self.remove}
        for name in chosen:
            table.kind(name)
        edits = {sae.hookpoint: build_edits(sae.to(self.device), table, chosen)}
        pipeline = load_model(self.model, self.device, self.sampler)
        check_fits(sae, pipeline)
        sampling = Sampling(self.steps, self.guidance, self.batch, height=self.height, width=self.width)
        seeds = [self.seed + n for n in range(len(rows))]
        before = draw_all(pipeline, rows, seeds, sampling)
        after = draw_all(pipeline, rows, seeds, sampling, edits)
        save_config(self, self.output)
        for number in range(len(rows)):
            save_picture(before[number], self.output / f"before-{number:04d}.png")
            save_picture(after[number], self.output / f"after-{number:04d}.png")
        save_grid([before, after], self.output / "grid.png", rows=["before", "after"])
        console.print(f"{len(rows)} pairs of pictures in {self.output}")
