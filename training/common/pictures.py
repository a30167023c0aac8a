"""Pictures and plots on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saeuron.files import write_atomically


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


def save_grid(
    strips: Sequence[torch.Tensor], path: Path, rows: Sequence[str], columns: Sequence[Sequence[str]] = ()
) -> None:
    """Write strips of pictures ``[N, 3, H, W]`` one below the other.

    ``rows`` names the strips; ``columns[line][place]`` stands over a picture, where it is given.
    """
    from matplotlib.figure import Figure

    count = max(len(strip) for strip in strips)
    figure = Figure(figsize=(1.0 * count + 1.2, 1.05 * len(strips) + 0.9), layout="constrained")
    axes = figure.subplots(len(strips), count, squeeze=False)
    for line, (name, strip) in enumerate(zip(rows, strips, strict=True)):
        for place in range(count):
            axis = axes[line][place]
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
            if place < len(strip):
                axis.imshow(strip[place].clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            if place == 0:
                axis.set_ylabel(name, fontsize=9)
            if line < len(columns) and place < len(columns[line]):
                axis.set_title(columns[line][place], fontsize=8)
    save_figure(figure, path)


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
        axis.set(title=target, xlabel="timestep", ylabel="score")
        axis.legend(fontsize=7)
    save_figure(figure, path)
