"""What the bench does with a model: recording, reading, streaming, scoring and learning, beside plain sampling.

    python -m benchmarks.bench

The model is TinyCanvas, or the one of ``--model``. Drawn are the same pictures each time, so that what is more than
sampling is what the work itself costs. Recorded and streamed training see equally many tokens; their FVU is that of the
same part, held out.
"""

import itertools
import shutil
import tempfile
import time
from pathlib import Path

from saeuron import Hookpoint, Recording, choose_settings, load_sae
from saeuron.checkpoints import load_bundle
from saeuron.learning import Lesson
from saeuron.recording import RecordingWriter
from tinycanvas.model import WEIGHTS
from training.common.prompts import read_prompts
from training.diffusion.load import load_model
from training.diffusion.sampling import Sampling, generate
from training.evaluation.judges import tinycanvas_judge
from training.evaluation.protocol import Protocol, Removal
from training.sae.commands import Record, Train
from training.sae.learn import begin_prompts, learn
from training.sae.record import draw, record
from training.sae.score import score
from training.sae.sources import Streamed
from training.sae.train import train

from .common import begin, in_turns, options, shown, spread, tell, timed

HOOKPOINT = "unet.up_blocks.1.attentions.1"


def main(arguments: list[str] | None = None) -> None:
    parser = options("Time recording, streaming, scoring and learning beside plain sampling.", "bench", 5)
    parser.add_argument("--model", default="tinycanvas", help="tinycanvas, a diffusers folder, or a checkpoint")
    parser.add_argument("--pictures", type=int, default=8, help="pictures drawn in a turn")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--images", type=int, default=96, help="pictures that SAEs are trained on")
    config = begin(parser, arguments)
    if config.tiny:
        config.pictures, config.steps, config.images = 6, 2, 8
    pipeline, folder = load_model(config.model), Path(tempfile.mkdtemp())
    try:
        trained, readers = of_training(config, pipeline, folder)
        drawn = of_drawing(config, pipeline, folder)
        judged = of_evaluation(config, pipeline) if config.model == "tinycanvas" else []
    finally:
        shutil.rmtree(folder)
    lines = [[row["name"], shown(row), f"{row['ms'] / drawn[0]['ms'] - 1:+.1%}"] for row in drawn]
    lines += [[row["name"], f"{row['tokens_per_s']:,.0f} tokens/s", ""] for row in readers]
    lines += [[row["name"], f"{row['seconds']:.1f} s", f"FVU {row['fvu']:.4f}"] for row in trained]
    lines += [[row["name"], shown(row), f"{row['ms'] / judged[0]['ms'] - 1:+.1%} of the first"] for row in judged]
    found = {"drawn": drawn, "reading": readers, "trained": trained, "judged": judged}
    tell(config, ["what", "ms (quartiles)", "over sampling"], lines, **found)


def of_drawing(config, pipeline, folder: Path) -> list[dict]:
    """A row for each thing that is done while pictures are drawn."""
    anchors = read_prompts("tinycanvas:anchor")
    rows = anchors[:: -(-len(anchors) // config.pictures)]
    recipe, sampling = recipe_for(config, folder / "one"), Sampling(config.steps, batch=config.pictures)
    prompts, seeds, sae = [row["prompt"] for row in rows], list(range(len(rows))), load_sae(folder / "recorded")
    images, hookpoint = list(zip(range(len(rows)), rows, seeds, strict=True)), Hookpoint(HOOKPOINT)
    turn = itertools.count()

    def recording() -> None:
        tokens = draw(pipeline, sampling, recipe, [hookpoint], images)[hookpoint]
        own = folder / f"turn {next(turn)}"
        RecordingWriter(own, hookpoint, tokens.activations.shape[1], rows, {}).write(0, tokens, 0)
        shutil.rmtree(own)

    def learning() -> None:
        half = len(prompts) // 2
        lesson = Lesson.of("word", "style", prompts[:half], prompts[half:])
        path = folder / f"lesson {next(turn)}.safetensors"
        learn(begin_prompts(pipeline, sae, lesson, sampling, 0, path), pipeline, sampling, 0)

    works = {
        "sampling": lambda: generate(pipeline, prompts, seeds, sampling),
        "recording": recording,
        "scoring": lambda: score(pipeline, sae, rows, sampling),
        "learning": learning,
    }
    taken = in_turns(config, works)
    return [{"name": name} | spread(taken[name]) for name in works]


def recipe_for(config, output: Path) -> Record:
    per_shard = max(config.images // 8, 1)
    options = {"images": config.images, "steps": config.steps, "images_per_shard": per_shard, "batch": config.pictures}
    return Record(output=output, prompts="tinycanvas:training", hookpoints=(HOOKPOINT,), **options)


def of_training(config, pipeline, folder: Path) -> tuple[list[dict], list[dict]]:
    """Recorded and streamed training, and how fast a recording is read beside how fast it is trained on."""
    recipe, found = recipe_for(config, folder / "recording"), []
    own = {"expansion": 8, "k": 16, "batch": 32 if config.tiny else 512, "epochs": 2, "lr": 1e-3}
    seconds, (recorded,) = timed(config, lambda: record(recipe))
    more, sae = timed(config, lambda: train(Train(recording=recorded, output=folder / "recorded", **own)))
    found.append({"name": "record, then train", "seconds": seconds + more, "fvu": sae.metrics["fvu"]})
    training = {"name": "training", "tokens_per_s": sae.steps * own["batch"] / more}
    stream = Streamed(recipe, pipeline)
    seconds, sae = timed(config, lambda: train(Train(output=folder / "streamed", **own), stream))
    found.append({"name": "train while drawing", "seconds": seconds, "fvu": sae.metrics["fvu"]})
    opened, began, count = Recording(recorded), time.perf_counter(), 0
    for tokens in opened.batches(own["batch"], seed=0, epoch=0):
        count += len(tokens)
    reading = {"name": "reading", "tokens_per_s": count / (time.perf_counter() - began)}
    return found, [reading, training]


def of_evaluation(config, pipeline) -> list[dict]:
    """Three removals judged on the same pictures, each drawn whole, and each from where it parts from the unedited."""
    rows = read_prompts("tinycanvas:evaluation")[:: 45 if config.tiny else 10]
    sampling = Sampling(2 if config.tiny else 25, batch=len(rows), bf16=True)
    protocol = Protocol(pipeline, tinycanvas_judge(), rows, list(range(len(rows))), sampling)
    bundle = load_bundle(WEIGHTS.parent / "saes" / "tinycanvas.safetensors")
    settings = choose_settings(bundle.sae, bundle.table, ["star", "neon", "sepia"], bundle.settings)
    removals, reports = [Removal(), *protocol.singles(bundle.table, settings)], {}
    whole, parting = "evaluate, every picture drawn whole", "evaluate"

    def plainly() -> None:
        reports[whole] = [protocol.survey(own, bundle) for own in removals]

    def from_where_they_part() -> None:
        unedited = protocol.alike(removals, bundle)
        reports[parting] = [protocol.survey(own, bundle, alike=lambda: unedited) for own in removals]

    taken = in_turns(config, {whole: plainly, parting: from_where_they_part})
    return [{"name": name, "same_verdicts": reports[name] == reports[whole]} | spread(taken[name]) for name in taken]


if __name__ == "__main__":
    main()
