"""Judges: what names the concepts that pictures show. `load_judge` knows them all.

TinyCanvas's is here, vision transformers are in `vit`, zero-shot CLIP is in `clip`. Another kind of judge is one more
subclass of `Judge` and one more line in `load_judge`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saeuron import SaeuronError
from saeuron.errors import nearest

KNOWN = "`tinycanvas`, clip:FOLDER, or vit:KIND=FILE,KIND=FILE"


@dataclass(frozen=True, eq=False)
class Look:
    """What a judge makes of pictures.

    ``found[kind]`` are names, one a picture; ``confidence`` ``[B]`` is the probability of the names it gives, averaged
    over kinds: pictures that look like nothing it knows get little; ``features`` ``[B, F]``, of length 1, are a space
    for distances between pictures.
    """

    found: dict[str, list[str]]
    confidence: torch.Tensor
    features: torch.Tensor

    @classmethod
    def join(cls, looks: Sequence["Look"]) -> "Look":
        """One look at the pictures of all ``looks``, of which there is at least one."""
        found = {kind: [name for look in looks for name in look.found[kind]] for kind in looks[0].found}
        return cls(found, *(torch.cat([getattr(look, name) for look in looks]) for name in ("confidence", "features")))


class Judge(ABC):
    """Finds a concept of every kind it knows in each picture.

    ``names`` maps kind → the names it tells apart. ``identity`` says which judge it is: two of the same identity give
    the same verdicts. ``batch`` pictures are looked at at once.
    """

    names: Mapping[str, Sequence[str]]
    identity: str
    batch: int = 32

    @abstractmethod
    def scores(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features ``[B, F]`` of pictures ``[B, 3, H, W]`` in 0..1, and by kind the logits ``[B, len(names)]``."""

    @torch.no_grad()
    def look(self, images: torch.Tensor) -> Look:
        """Look at pictures ``[B, 3, H, W]`` in 0..1, of any size."""
        return Look.join([self._look(part) for part in images.split(self.batch)])

    def _look(self, images: torch.Tensor) -> Look:
        features, logits = self.scores(images)
        found = {kind: [self.names[kind][i] for i in own.argmax(1).tolist()] for kind, own in logits.items()}
        confidence = torch.stack([own.softmax(1).amax(1) for own in logits.values()]).mean(0)
        return Look(found, confidence.float().cpu(), torch.nn.functional.normalize(features.float().cpu(), dim=1))

    def __call__(self, images: torch.Tensor) -> dict[str, list[str]]:
        """Kind → the name found in each of pictures ``[B, 3, H, W]`` in 0..1."""
        return self.look(images).found

    def check(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Raise SaeuronError where a prompt asks for a concept that this judge cannot find."""
        for kind, names in self.names.items():
            for name in dict.fromkeys(row[kind] for row in rows if kind in row):
                if name not in names:
                    raise SaeuronError(
                        f"the judge does not know the {kind} {name!r}; the nearest are {nearest(name, names)}"
                    )


class TinyCanvasJudge(Judge):
    """TinyCanvas's own network; pictures of another size than 32 × 32 are resized to it first."""

    identity, batch = "tinycanvas", 256

    def __init__(self) -> None:
        from tinycanvas.drawing import OBJECTS, SIZE, STYLES
        from tinycanvas.model import load_judge

        self.names, self.size, self.network = {"object": OBJECTS, "style": STYLES}, (SIZE, SIZE), load_judge()

    def scores(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if images.shape[-2:] != self.size:
            images = torch.nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        features = self.network.features(images * 2 - 1)
        return features, {
            "object": self.network.object_head(features),
            "style": self.network.style_head(features),
        }


@functools.cache
def tinycanvas_judge() -> TinyCanvasJudge:
    """TinyCanvas's judge, its weights read once."""
    return TinyCanvasJudge()


def load_judge(
    judge: str, names: Mapping[str, Sequence[str]], device: str = "cpu", prompts: Mapping[str, str] | None = None
) -> Judge:
    """The judge called ``judge``: ``tinycanvas``, ``clip:FOLDER``, or ``vit:style=FILE,object=FILE``.

    CLIP tells ``names`` (kind → names) apart, each put into its kind's one of ``prompts``; the others know their own.
    Raises SaeuronError where there is no such judge, or its files are missing or broken.
    """
    name, _, where = judge.partition(":")
    if judge == "tinycanvas":
        return tinycanvas_judge()
    if name == "clip" and where:
        from .clip import ClipJudge

        return ClipJudge(Path(where), names, device, prompts)
    if name == "vit" and where:
        from .vit import VitJudge, labels_of

        files = {kind: Path(file) for kind, _, file in (part.partition("=") for part in where.split(","))}
        return VitJudge(files, {kind: labels_of(kind, file) for kind, file in files.items()}, device)
    raise SaeuronError(f"judge {judge!r} is unknown: give {KNOWN}")
