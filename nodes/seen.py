"""The pictures that probes saw in this session, kept so that the panel can search by what is brushed in them."""

import itertools
from dataclasses import dataclass

import torch
from PIL import Image

from ..saeuron import SaeuronError
from ..saeuron.atlas.sheets import to_image
from ..saeuron.atlas.survey import Seen

GONE = "this picture is no longer kept: run its workflow again"
KEPT = 16
"""Pictures that are kept, the latest."""
OFFERED = 60
SIDES = 64
"""Places a side that a brush may come in."""


@dataclass(frozen=True, eq=False)
class SeenPicture:
    """One picture of a survey, and the SAE that it was seen with."""

    sae_name: str
    image: Image.Image
    seen: Seen
    place: int


_pictures: dict[int, SeenPicture] = {}
_numbers = itertools.count(1)


def remember(sae_name: str, seen: Seen, images: torch.Tensor) -> None:
    """Keep the pictures ``[B, H, W, 3]`` in 0..1 of a survey; the oldest of before are let go."""
    known = {(id(one.seen), one.place) for one in _pictures.values()}
    for place, image in enumerate(images[: len(seen.heat)]):
        if (id(seen), place) not in known:
            _pictures[next(_numbers)] = SeenPicture(sae_name, to_image(image.movedim(-1, 0)), seen, place)
    while len(_pictures) > KEPT:
        del _pictures[next(iter(_pictures))]


def seen_pictures() -> dict[int, SeenPicture]:
    """By number, the latest first."""
    return dict(sorted(_pictures.items(), reverse=True))


def search_by_brush(number: object, rows: object, sae_name: str, usual: torch.Tensor | None = None) -> list[int]:
    """The latents that fire where ``rows`` (a list of lists of 0…1) say and not elsewhere in picture ``number``.

    ``usual`` ``[n_latents]`` is how much each fires over all pictures of the atlas.
    """
    one = _pictures.get(number) if isinstance(number, int) else None
    if one is None or one.sae_name != sae_name:
        raise SaeuronError(GONE)
    sound = isinstance(rows, list) and 0 < len(rows) <= SIDES and all(isinstance(row, list) for row in rows)
    sound = sound and 0 < len(rows[0]) <= SIDES and all(len(row) == len(rows[0]) for row in rows)
    if not sound or not all(isinstance(value, int | float) for row in rows for value in row):
        raise SaeuronError(f"a brush is rows of numbers, up to {SIDES} a side")
    values = one.seen.firing_in(torch.tensor(rows, dtype=torch.float32).clamp(0, 1), one.place, usual)
    best, latents = values.topk(min(OFFERED, len(values)))
    return latents[best > 0].tolist()
