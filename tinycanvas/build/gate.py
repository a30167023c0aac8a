"""The gate: what TinyCanvas has to be able to do before anything measured on it counts."""

import json
from pathlib import Path

import torch
from PIL import Image

from ..captions import all_captions
from ..drawing import OBJECTS, SIZE, STYLES, draw, random_labels
from ..judge import Judge
from ..model import WEIGHTS, load_judge, load_pipeline

FLOORS = {"judge_object": 0.995, "judge_style": 0.995, "object": 0.97, "style": 0.98}


def gate(folder: Path = WEIGHTS, work: Path = Path("out/tinycanvas"), copies: int = 5) -> dict[str, float]:
    """Accuracies of the judge on fresh drawings and on pictures of the evaluation prompts (25 DDIM steps, guidance 3).

    Prints them with their floors and writes ``gate.json`` and the first pictures as ``gate.png``.
    """
    judge = load_judge(folder)
    objects, styles = random_labels(9000, torch.Generator().manual_seed(5))
    found = _judge(judge, draw(objects, styles, torch.Generator().manual_seed(6)))
    results = {"judge_object": _agreement(found[0], objects), "judge_style": _agreement(found[1], styles)}

    rows = all_captions("evaluation") * copies
    pipeline = load_pipeline(folder)
    images = []
    for start in range(0, len(rows), 90):
        generators = [torch.Generator().manual_seed(9_000_000 + start + n) for n in range(90)]
        prompts = [caption for caption, _, _ in rows[start : start + 90]]
        options = {"num_inference_steps": 25, "guidance_scale": 3.0, "output_type": "pt"}
        images.append(pipeline(prompts, generator=generators, **options).images * 2 - 1)
    pictures = torch.cat(images)
    found = _judge(judge, pictures)
    results["object"] = _agreement(found[0], torch.tensor([OBJECTS.index(o) for _, o, _ in rows]))
    results["style"] = _agreement(found[1], torch.tensor([STYLES.index(s) for _, _, s in rows]))
    for name, value in results.items():
        print(f"{name} {value:.4f} (floor {FLOORS[name]}) {'passes' if value >= FLOORS[name] else 'FAILS'}")
    work.mkdir(parents=True, exist_ok=True)
    (work / "gate.json").write_text(json.dumps(results, indent=1))
    save_contact_sheet(pictures[:90], work / "gate.png")
    return results


def save_contact_sheet(images: torch.Tensor, path: Path, zoom: int = 3) -> None:
    """Objects across, styles down: ``images`` ``[90, 3, 32, 32]`` in −1..1, object by object."""
    sheet = images.view(len(OBJECTS), len(STYLES), 3, SIZE, SIZE).permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(path)


@torch.no_grad()
def _judge(judge: Judge, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = [judge(part) for part in images.split(256)]
    return torch.cat([part[0].argmax(1) for part in logits]), torch.cat([part[1].argmax(1) for part in logits])


def _agreement(found: torch.Tensor, asked: torch.Tensor) -> float:
    return (found == asked).float().mean().item()
