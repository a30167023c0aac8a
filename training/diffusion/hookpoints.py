"""``hookpoints``: the places in a model where an SAE can read."""

from torch import nn

from saeuron import Hookpoint
from saeuron.families import family_of, width_of
from saeuron.hookpoints import names

from ..common.results import table, tell
from .commands import Hookpoints
from .denoiser import denoiser, own_side
from .load import load_model
from .sampling import check_size


def run(config: Hookpoints) -> None:
    pipeline = load_model(config.model)
    scale, own = pipeline.vae_scale_factor, own_side(pipeline)
    height, width = config.height or own, config.width or own
    check_size(height, width, scale)
    found = places(denoiser(pipeline), height // scale, width // scale)
    lines = [[name, channels, f"{rows * columns} ({rows} × {columns})"] for name, channels, rows, columns in found]
    result = [dict(zip(("hookpoint", "width", "rows", "columns"), place, strict=True)) for place in found]
    text = table(["hookpoint", "width", "tokens"], lines)
    tell(config, result, f"{config.model} at {width} × {height} pixels\n\n{text}")


def places(model: nn.Module, height: int, width: int) -> list[tuple[str, int, int, int]]:
    """``(name, width, rows, columns)`` of every hookpoint of ``model`` for latent images ``[_, _, height, width]``."""
    if family_of(model):  # whose patches all are 2 × 2
        return [(name, width_of(model), -(-height // 2), -(-width // 2)) for name in names(model)]
    found = []
    for name in names(model):
        path = name.split(".")[1:]
        found.append((name, Hookpoint(name).width(model), *_size(model, path, height, width)))
    return found


def _size(unet: nn.Module, path: list[str], height: int, width: int) -> tuple[int, int]:
    """Rows and columns inside a block: halved, rounded up, by each downsampler before it and restored by upsamplers."""
    down = [block.downsamplers is not None for block in unet.down_blocks]
    up = [block.upsamplers is not None for block in unet.up_blocks]
    halved = sum(down[: int(path[1])] if path[0] == "down_blocks" else down)
    halved -= sum(up[: int(path[1])] if path[0] == "up_blocks" else [])
    for _ in range(halved):
        height, width = -(-height // 2), -(-width // 2)
    return height, width
