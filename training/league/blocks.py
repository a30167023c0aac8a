"""``blocks``: where to edit. For every transformer block, what removing a style and an object there does to both."""

from dataclasses import dataclass
from pathlib import Path

from saeuron.files import write_json, write_text
from saeuron.hookpoints import names

from ..common.config import save_config
from ..common.progress import console
from ..common.prompts import read_prompts
from ..diffusion.load import load_model
from ..diffusion.sampling import Sampling
from ..evaluation.evaluate import evaluate, paired
from ..evaluation.sweep import Bench, anchor_rows, grid, sweep
from ..sae.record import Record, record
from ..sae.score import Score, score
from ..sae.train import Train, train


@dataclass
class Blocks:
    """Train an SAE at every transformer block of TinyCanvas and compare what each can remove."""

    output: Path = Path("out/blocks")
    """Folder for the recordings, the SAEs, blocks.json and blocks.md."""
    targets: tuple[str, ...] = ("neon", "star")
    """Concepts to remove at each block."""
    images: int = 400
    """Images recorded."""
    tokens_per_map: int = 16
    """Tokens kept of each feature map."""
    expansion: int = 8
    """Latents per input channel."""
    k: int = 16
    """Active latents per token."""
    steps: int = 1500
    """Training steps of each SAE."""
    batch: int = 2048
    """Tokens per training step."""
    latents: tuple[int, ...] = (1, 4, 16)
    """Numbers of latents to try."""
    strengths: tuple[float, ...] = (-1.0, -5.0, -20.0)
    """Multipliers to try."""
    search_images: int = 30
    """Anchor pictures per setting tried."""
    seed: int = 0
    """Seed of everything."""

    def run(self) -> None:
        pipeline = load_model("tinycanvas")
        hookpoints = names(pipeline.unet)
        folders = record(
            Record(
                output=self.output / "recordings",
                hookpoints=tuple(hookpoints),
                images=self.images,
                steps=25,
                tokens_per_map=self.tokens_per_map,
                seed=self.seed,
            )
        )
        sampling = Sampling(bf16=True)
        rows, seeds = paired(read_prompts("tinycanvas:evaluation"), 1, 188)
        results = []
        for name, folder in zip(hookpoints, folders, strict=True):
            place = self.output / name
            sae = train(
                Train(
                    recording=folder,
                    output=place,
                    expansion=self.expansion,
                    k=self.k,
                    steps=self.steps,
                    batch=self.batch,
                    dead_after=500_000,
                    seed=self.seed,
                )
            )
            table = score(Score(sae=place, output=place / "table.safetensors", images=270, bf16=True), sae, pipeline)
            settings, bench = {}, Bench(pipeline, sae, table, sampling)
            for target in self.targets:
                anchors, anchor_seeds = anchor_rows(
                    read_prompts("tinycanvas:anchor"), table, target, self.search_images, self.seed
                )
                candidates = grid(list(self.latents), list(self.strengths), [True, False])
                journal = self.output / "sweep.journal"
                settings[target], _ = sweep(bench, target, candidates, anchors, anchor_seeds, journal, seed=self.seed)
            report = evaluate(pipeline, sae, table, settings, rows, seeds, sampling)
            results.append({"hookpoint": name, "fvu": sae.metrics["fvu"]} | report)
            write_json(self.output / "blocks.json", {"blocks": results})
        save_config(self, self.output)
        write_text(self.output / "blocks.md", markdown(results))
        console.print(markdown(results))


def markdown(results: list[dict]) -> str:
    lines = ["| hookpoint | removed | UA | IRA | CRA |", "|---|---|---|---|---|"]
    for result in results:
        for target in result["targets"]:
            rates = " | ".join(f"{target[key]:.1%}" for key in ("ua", "ira", "cra"))
            lines.append(f"| {result['hookpoint']} | {target['name']} | {rates} |")
    return "\n".join([*lines, ""])
