"""The distance between two sets of pictures (FID), by torchmetrics."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from saeuron import SaeuronError

from ..common.pictures import from_picture

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
FEATURES = 2048


def find_pictures(folder: Path) -> list[Path]:
    """Every picture under ``folder``, sorted; raises SaeuronError where there are fewer than two."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if len(found) < 2:
        raise SaeuronError(f"{folder} holds {len(found)} pictures, and a distance needs at least two")
    return found


def load_metric(inception: Path | None, device: str):
    """torchmetrics' FID with the Inception weights in ``inception``, or those in torch-fidelity's cache.

    Raises SaeuronError with what to install, or what to fetch.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        weights = None if inception is None else str(inception)
        return FrechetInceptionDistance(feature=FEATURES, feature_extractor_weights_path=weights).to(device)
    except ImportError as error:
        raise SaeuronError("FID needs two packages: pip install torchmetrics torch-fidelity") from error
    except Exception as error:  # no network, a broken file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SaeuronError(
            f"FID's Inception network could not be loaded ({reason}); give torch-fidelity's file "
            "weights-inception-2015-12-05-6726825d.pth as --inception"
        ) from error


def distance(metric, pictures: Sequence[Path], reference: Sequence[Path], batch: int = 32) -> float:
    """FID of two lists of picture files, as ``metric`` works it out; ``reference`` is scaled to the others' size."""
    size = Image.open(pictures[0]).size
    metric.reset()
    for paths, real in ((pictures, False), (reference, True)):
        for start in range(0, len(paths), batch):
            images = torch.stack([_read(path, size) for path in paths[start : start + batch]])
            metric.update(images.to(metric.device), real=real)
    return float(metric.compute())


def _read(path: Path, size: tuple[int, int]) -> torch.Tensor:
    try:
        picture = Image.open(path).convert("RGB")
    except OSError as error:
        raise SaeuronError(f"{path} is not a readable picture: {error}") from None
    return from_picture(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC))
