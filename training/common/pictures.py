"""Pictures and plots on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from saeuron import SaeuronError
from saeuron.files import write_atomically

MOST_PIXELS = 40_000_000
"""Of a whole grid. Pictures are made smaller where they would be more."""
SMALLEST = 64
"""Width of the smallest pictures in a grid: those of TinyCanvas have 32 pixels."""


def to_picture(image: torch.Tensor) -> Image.Image:
    """``image`` ``[3, H, W]`` in 0..1 as 8 bit."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def from_picture(picture: Image.Image) -> torch.Tensor:
    """The bytes ``[3, H, W]`` of an RGB picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def save_picture(image: torch.Tensor, path: Path) -> None:
    """Write ``image`` ``[3, H, W]`` in 0..1 as a PNG."""
    picture = to_picture(image)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def read_picture(path: Path, option: str, mode: str = "RGB") -> torch.Tensor:
    """The picture that an option names, ``[3, H, W]`` in 0..1, or ``[H, W]`` in mode ``L``."""
    try:
        picture = np.array(Image.open(path).convert(mode))
    except OSError as error:
        raise SaeuronError(f"{option} {path} is not a readable picture: {error}") from None
    tensor = torch.from_numpy(picture).float() / 255
    return tensor if mode == "L" else tensor.permute(2, 0, 1)


def save_grid(
    strips: Sequence[Sequence[Image.Image | Path]],
    path: Path,
    rows: Sequence[str],
    columns: Sequence[Sequence[str]] = (),
) -> None:
    """Write strips of pictures one below the other, all at the size of the first.

    ``rows`` names the strips; ``columns[line][place]`` stands over a picture, where it is given. Each picture is opened
    when it is pasted, and where there are very many they are made smaller.
    """
    count = sum(map(len, strips))
    width, height = _open(strips[0][0]).size
    scale = max(min(1.0, (MOST_PIXELS / (count * width * height)) ** 0.5), 8 / min(width, height))
    if width < SMALLEST:  # so that a label fits over it
        scale *= SMALLEST / width
    width, height = round(width * scale), round(height * scale)
    font = ImageFont.load_default(11)
    heads = [14 * max([0, *(text.count("\n") + 1 for text in line)]) for line in (*columns, *[[]] * len(strips))]
    heads, left = (
        heads[: len(strips)],
        12 + max(round(font.getlength(line)) for row in rows for line in row.split("\n")),
    )
    size = left + max(map(len, strips)) * (width + 4), sum(heads) + len(strips) * (height + 4)
    grid = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(grid), 0
    for line, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        top += heads[line]
        draw.multiline_text((4, top + height // 2 - 8), name, "black", font)
        for place, picture in enumerate(strip):
            across = left + place * (width + 4)
            grid.paste(_open(picture).resize((width, height), Image.Resampling.BOX), (across, top))
            if line < len(columns) and place < len(columns[line]):
                draw.multiline_text((across, top - heads[line]), columns[line][place], "black", font, spacing=1)
        top += height + 4
    write_atomically(path, lambda temporary: grid.save(temporary, format="PNG"))


def _open(picture: Image.Image | Path) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.open(picture).convert("RGB")


def save_figure(figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def plot_scores(table, targets: Sequence[str], path: Path, strongest: int = 5) -> None:
    """For each target, the scores of its strongest latents over timesteps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(targets), 3.2), layout="constrained")
    axes = figure.subplots(1, len(targets), squeeze=False)[0]
    for axis, target in zip(axes, targets, strict=True):
        scores = table.scores(target)
        for latent in scores.mean(0).topk(strongest).indices.tolist():
            axis.plot(table.timesteps, scores[:, latent], label=f"latent {latent}")
        axis.invert_xaxis()
        axis.set(xlabel="timestep", ylabel="score")
        axis.set_title(target, parse_math=False)
        axis.legend(fontsize=7)
    save_figure(figure, path)
