"""``demo``: the whole job on TinyCanvas, from recording to verdict."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from saeuron import SaeuronError, Setting, build_edits, choose_settings
from saeuron.checkpoints import save_bundle
from saeuron.checkpoints.bundle import Bundle
from saeuron.errors import nearest
from saeuron.files import write_json, write_text

from ..common.config import option_values
from ..common.pictures import plot_scores, save_grid, to_picture
from ..common.progress import console
from ..common.prompts import concepts, read_prompts
from ..common.results import Plan, tell
from ..common.resume import claim
from ..diffusion.load import load_model
from ..diffusion.sampling import Sampling, draw_all, plan
from ..evaluation.evaluate import evaluate, markdown
from ..evaluation.judges import tinycanvas_judge
from ..evaluation.measures import Verdicts
from ..evaluation.protocol import Protocol, paired
from ..sae.commands import Record, Train
from ..sae.record import record
from ..sae.score import scored
from ..sae.train import train
from .commands import KINDS, Demo

PIECES = ("recording", "unsupervised", "sae", "*.json", "*.md", "*.safetensors", "*.png")
CARD = "An SAE of TinyCanvas, trained by `make demo`: ten objects and nine styles, a latent each."


def demo(config: Demo) -> dict:
    """Run ``config`` and return its report, also written to ``report.json``."""
    kinds = concepts(read_prompts("tinycanvas:evaluation"))
    for name in config.targets:
        if name not in kinds:
            raise SaeuronError(f"--targets {name!r} is unknown to TinyCanvas; the nearest are {nearest(name, kinds)}")
    seconds: dict[str, float] = {}
    sampling = Sampling(bf16=True)
    pipeline = load_model("tinycanvas")
    if config.dry_run:
        _plan(config, pipeline, sampling)
        return {}
    claim(config, config.output, pieces=PIECES)
    with stage("judge", seconds):
        judged = judge_drawings()
    with stage("record", seconds):
        recording = record(
            Record(
                output=config.output / "recording",
                hookpoints=(config.hookpoint,),
                images=config.images,
                steps=25,
                images_per_shard=50,
                batch=25,
                seed=config.seed,
                bf16=True,
            )
        )[0]
    for name in ("unsupervised", "sae"):
        with stage(f"train {name}", seconds):
            sae = train(recipe(config, recording, name))
        with stage(f"score {name}", seconds):
            folder = config.output / name
            table = scored(pipeline, sae, read_prompts("tinycanvas:anchor"), sampling, folder / "table.safetensors")
    bundle = Bundle(sae, table, card=CARD, licence="Apache-2.0")
    settings = choose_settings(sae, table, config.targets, {})
    with stage("evaluate", seconds):
        save_bundle(bundle, config.output / "tinycanvas.safetensors")
        pictures = paired(read_prompts("tinycanvas:evaluation"), config.seeds, 188)
        protocol = Protocol(pipeline, tinycanvas_judge(), *pictures, sampling)
        evaluation = evaluate(protocol, bundle, settings)
        write_text(config.output / "evaluation.md", markdown(evaluation))
    with stage("pictures", seconds):
        picture(config, protocol, bundle, settings)
        plot_scores(table, config.targets, config.output / "scores.png")
    report = {
        "judge": judged,
        "base": evaluation["base"],
        "sae": {key: sae.metrics[key] for key in ("fvu", "dead", "l0")},
        "targets": evaluation["targets"],
        "images": evaluation["images"],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": versions(),
        "config": option_values(config),
    }
    write_json(config.output / "report.json", report)
    tell(config, report, markdown(evaluation))
    console.print(f"{sum(seconds.values()):.0f} seconds of work")
    for name in ("report.json", "tinycanvas.safetensors", "grid.png", "scores.png"):
        console.print(config.output / name, soft_wrap=True)
    return report


def _plan(config: Demo, pipeline: StableDiffusionPipeline, sampling: Sampling) -> None:
    """Tell what the demo takes; the training's part of the time is that of two cores."""
    pictures = config.images + 2 * len(read_prompts("tinycanvas:anchor"))
    pictures += 90 * config.seeds * (len(config.targets) + 1) + 12 * len(config.targets)
    drawing, steps = plan(pipeline, sampling, pictures), config.train_steps + config.tune_steps
    Plan(drawing.work | {"training steps": steps}, 300_000_000, drawing.seconds + 0.06 * steps).tell(config)


def recipe(config: Demo, recording: Path, name: str) -> Train:
    """How the SAE is trained: first without labels, then on from there with SAEmnesia's losses."""
    common = {"recording": recording, "output": config.output / name, "lr": 1e-3, "batch": 2048}
    common |= {"dead_after": 500_000, "seed": config.seed, "log_every": 500}
    if name == "unsupervised":
        return Train(**common, expansion=config.expansion, k=config.k, steps=config.train_steps)
    before = config.output / "unsupervised"
    table = before / "table.safetensors"
    return Train(**common, k=config.k, steps=config.tune_steps, labels=KINDS, init=before, table=table)


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    console.rule(name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def judge_drawings(count: int = 4500) -> dict[str, float]:
    """How often the judge is right on drawings nobody was trained on."""
    from tinycanvas.drawing import OBJECTS, STYLES, draw

    names = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES))]
    pairs = torch.tensor(names * (count // len(names)))
    images = draw(pairs[:, 0], pairs[:, 1], torch.Generator().manual_seed(77)) / 2 + 0.5
    asked = {"object": [OBJECTS[o] for o, _ in pairs.tolist()], "style": [STYLES[s] for _, s in pairs.tolist()]}
    verdicts = Verdicts(asked, tinycanvas_judge()(images))
    return {kind: verdicts.accuracy(kind) for kind in asked}


def picture(config: Demo, protocol: Protocol, bundle: Bundle, settings: Mapping[str, Setting]) -> None:
    """``grid.png``: for each target, three pictures that show it and three that do not, before and after."""
    rows, targets = read_prompts("tinycanvas:evaluation"), list(config.targets)
    before, after, columns = [], [], []
    for name in targets:
        kind = bundle.table.concepts[name]
        shown = [row for row in rows if row[kind] == name]
        hidden = [row for row in rows if row[kind] != name]
        picked = shown[:: max(len(shown) // 3, 1)][:3] + hidden[:: max(len(hidden) // 3, 1)][:3]
        seeds = list(range(len(picked)))
        chain = build_edits(bundle.sae, bundle.table, {name: settings[name]})
        for strip, edits in ((before, {}), (after, {bundle.sae.hookpoint: chain})):
            images = draw_all(protocol.pipeline, picked, seeds, protocol.sampling, edits)
            strip.append([to_picture(image) for image in images])
        columns.append([f"{row['object']}\n{row['style']}" for row in picked])
    strips = [strip for pair in zip(before, after, strict=True) for strip in pair]
    names = [f"{when}\n{name}" for name in targets for when in ("with", "without")]
    save_grid(strips, config.output / "grid.png", rows=names, columns=[c for pair in columns for c in (pair, [])])


def versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
