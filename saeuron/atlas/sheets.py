"""Sheets: a few pictures side by side in one WebP file."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image

from ..files import write_atomically

LARGEST = 256
"""Pixels of a side of a picture on a sheet."""
LOSSLESS = 64
"""Pictures of so few pixels a side are kept as they are: compression would blur what little there is."""
ACROSS = 4


def to_image(picture: torch.Tensor) -> Image.Image:
    """``picture`` ``[3, H, W]`` in 0..1, made smaller where it is larger than a sheet has room for."""
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


def write_sheet(images: Sequence[Image.Image], path: Path) -> None:
    sizes = [image.size for image in images]
    (width, height), sheet = _largest(sizes), Image.new("RGB", sheet_size(sizes))
    for number, image in enumerate(images):
        sheet.paste(image, (number % ACROSS * width, number // ACROSS * height))
    small = max(width, height) <= LOSSLESS
    write_atomically(path, lambda file: sheet.save(file, format="WEBP", lossless=small, quality=85, method=4))


def sheet_size(sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Width and height in pixels of a sheet that holds pictures of ``sizes`` (width, height)."""
    width, height = _largest(sizes)
    return width * min(ACROSS, len(sizes)), height * math.ceil(len(sizes) / ACROSS)


def _largest(sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    width, height = (max(sides) for sides in zip(*sizes, strict=True))
    return width, height


def cut(sheet: Image.Image, sizes: Sequence[Sequence[int]], number: int) -> Image.Image:
    """Picture ``number`` of a sheet that holds pictures of ``sizes`` (width, height)."""
    width, height = _largest(sizes)
    left, top = number % ACROSS * width, number // ACROSS * height
    return sheet.crop((left, top, left + sizes[number][0], top + sizes[number][1]))


def heated(
    image: Image.Image, heat: torch.Tensor, side: int, crop: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """``image`` with the heat map ``[h, w]`` in 0..1 over it, its longer side ``side`` pixels; of ``crop`` alone.

    What is cold is darkened, so that colours stay what they are where the latent fires.
    """
    shade = Image.fromarray((heat.clamp(0, 1) * 255).byte().numpy()).resize(image.size, Image.Resampling.BICUBIC)
    light = numpy.asarray(shade, dtype=numpy.float32)[..., None] / 255
    pixels = numpy.asarray(image, dtype=numpy.float32)
    image = Image.fromarray((pixels * (0.25 + 0.75 * light)).clip(0, 255).astype(numpy.uint8))
    if crop is not None:
        image = image.crop(crop)
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def window(heat: torch.Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square of a picture of ``size`` (width, height) that holds what is half as hot as the hottest place.

    At least half of the shorter side, so that there is something to recognise.
    """
    hot = heat >= heat.max() / 2
    edges = []
    for length, axis in ((size[0], 0), (size[1], 1)):
        line = hot.any(axis).nonzero().squeeze(-1)
        scale = length / hot.shape[1 - axis]
        edges.append((float(line[0]) * scale, (float(line[-1]) + 1) * scale))
    side = min(max(min(size) / 2, *(end - start for start, end in edges)), min(size))
    corner = [
        min(max((start + end - side) / 2, 0), length - side) for (start, end), length in zip(edges, size, strict=True)
    ]
    left, top = (round(place) for place in corner)
    return left, top, left + round(side), top + round(side)
