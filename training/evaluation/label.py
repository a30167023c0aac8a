"""``label``: texts for an atlas's latents, found with CLIP or published by others. What a user wrote stays."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from saeuron import SaeuronError
from saeuron.atlas import Atlas
from saeuron.atlas.cards import read_cards
from saeuron.atlas.labels import LONGEST, read, write
from saeuron.atlas.sheets import window

from ..common.pictures import from_picture
from ..common.progress import track
from ..common.results import table, tell
from ..sae.supervise import auroc
from .clip import ClipJudge
from .commands import Label

BATCH = 32
NUMBERS, TEXTS = ("latent", "feature", "index", "feature_index", "idx", "id"), ("text", "label", "description", "name")
"""What published tables call the two columns."""
FEWEST = 3
"""Unseen pictures with and without a latent from which on a faithfulness is told."""


def run(config: Label) -> None:
    if (config.clip is None) == (config.published is None):
        raise SaeuronError("give --clip, a folder of transformers' CLIP, or --published, a file of labels")
    atlas = Atlas.load(config.atlas)
    if config.published is not None:
        found = published(config.published, atlas.about["n_latents"], config.by or config.published.stem)
    else:
        texts = read_texts(config.texts) if config.texts else vocabulary(atlas)
        judge = ClipJudge(config.clip, {"text": texts}, config.device, {"text": config.prompt})
        found = by_clip(atlas, judge, config.crops, config.most)
    before = read(config.atlas)
    write(config.atlas, found | {latent: label for latent, label in before.items() if label.get("by") == "you"})
    told = [label["faithfulness"] for label in found.values() if "faithfulness" in label]
    middle = round(float(torch.tensor(told).median()), 3) if told else None
    result = {"labelled": len(found), "with faithfulness": len(told), "median faithfulness": middle}
    tell(config, result, table(list(result), [list(result.values())]))


def vocabulary(atlas: Atlas) -> list[str]:
    """The words that the cards of latents show."""
    return sorted({word for words in read_cards(atlas.folder)["words"] for word in words.split(" ") if word})


def read_texts(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"--texts {path} could not be read: {error}") from None
    return [line.strip()[:LONGEST] for line in lines if line.strip()]


def by_clip(atlas: Atlas, judge: ClipJudge, crops: int, most: int | None) -> dict[str, dict]:
    """The text that fits the strongest crops of each latent best, with its faithfulness.

    How well a text fits is the cosine of CLIP's embeddings, less what it is on average over all latents: texts that fit
    everything say nothing. Of more than ``most`` latents those are labelled whose words are clearest.
    """
    cards = read_cards(atlas.folder)
    clear = [float(odds.split(" ")[0] or 0) for odds in cards["odds"]]
    alive = [latent for latent in range(atlas.about["n_latents"]) if cards["crops"][latent]]
    alive = sorted(alive, key=lambda latent: -clear[latent])[:most]
    texts, names = judge.texts["text"], judge.names["text"]
    shown = torch.stack([_cropped(atlas, judge, latent, crops) for latent in track(alive, "crops")])
    fits = shown @ texts.T
    best = (fits - fits.mean(0)).argmax(1).tolist()
    pictures = [atlas.picture(number) for number in range(atlas.pictures)]
    similar = torch.cat([_embedded(judge, pictures[n : n + BATCH]) for n in range(0, len(pictures), BATCH)]) @ texts.T
    strengths = _strengths(atlas, alive)
    found = {}
    for row, (latent, text) in enumerate(zip(alive, best, strict=True)):
        unseen = torch.ones(atlas.pictures, dtype=torch.bool)
        unseen[atlas.strongest.pictures[latent][atlas.strongest.pictures[latent] >= 0].long()] = False
        share = faithfulness(similar[unseen, text], strengths[row][unseen])
        told = {} if share is None else {"faithfulness": round(share, 3)}
        found[str(latent)] = {"text": names[text], "by": "CLIP"} | told
    return found


def faithfulness(similar: torch.Tensor, strengths: torch.Tensor) -> float | None:
    """How often a picture in which a latent fires strongly is more like its text than one in which it hardly does.

    That is the area under the ROC curve, 0.5 by chance, of pictures over half of the strongest against the others; None
    where there are too few of either.
    """
    fires = strengths > strengths.max() / 2
    if fires.sum() < FEWEST or (~fires).sum() < FEWEST:
        return None
    return auroc(similar, fires)


def published(path: Path, n_latents: int, by: str) -> dict[str, dict]:
    """Labels from a table that somebody published: JSON, JSON lines or CSV; latent → text, or rows with both.

    Raises SaeuronError naming the file where it has no such columns, or names a latent that the SAE lacks.
    """
    found = {}
    for number, text in _rows(path):
        if not str(number).isdigit() or int(number) >= n_latents:
            raise SaeuronError(f"{path} labels latent {str(number)[:40]!r}, and the atlas has 0 to {n_latents - 1}")
        if isinstance(text, str) and text.strip():
            found[str(int(number))] = {"text": " ".join(text.split())[:LONGEST], "by": by[:LONGEST]}
    return found


def _rows(path: Path) -> list[tuple[object, object]]:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".csv":
            content = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            content = json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SaeuronError(f"--published {path} could not be read: {error}") from None
    if isinstance(content, Mapping):
        return [(number, _text(entry)) for number, entry in content.items()]
    return [_pair(path, row) for row in content]


def _text(entry: object) -> object:
    return next((entry[name] for name in TEXTS if name in entry), "") if isinstance(entry, Mapping) else entry


def _pair(path: Path, row: object) -> tuple[object, object]:
    number = next((row[name] for name in NUMBERS if name in row), None) if isinstance(row, Mapping) else None
    if number is None or not any(name in row for name in TEXTS):
        raise SaeuronError(f"--published {path} needs columns `latent` and `label`")
    return number, _text(row)


def _cropped(atlas: Atlas, judge: ClipJudge, latent: int, crops: int) -> torch.Tensor:
    """The mean embedding ``[F]`` of what a latent's strongest pictures show where it fires."""
    found = []
    for rank, number in enumerate(atlas.strongest.pictures[latent, :crops].tolist()):
        if number >= 0:
            image = atlas.picture(number)
            found.append(image.crop(window(atlas.strongest.heat[latent, rank].float().view(atlas.grid), image.size)))
    return torch.nn.functional.normalize(_embedded(judge, found).mean(0), dim=0)


@torch.no_grad()
def _embedded(judge: ClipJudge, images: Sequence) -> torch.Tensor:
    return judge.scores([from_picture(image).float() / 255 for image in images])[0]


def _strengths(atlas: Atlas, latents: Sequence[int]) -> torch.Tensor:
    """How strong ``latents`` are in every picture, ``[len(latents), pictures]``."""
    row = torch.full((atlas.about["n_latents"],), -1)
    row[torch.tensor(latents)] = torch.arange(len(latents))
    pictures, found, strengths = atlas.codes()
    wanted = row[found] >= 0
    every = torch.zeros(len(latents), atlas.pictures)
    every[row[found][wanted], pictures[wanted]] = strengths[wanted]
    return every
