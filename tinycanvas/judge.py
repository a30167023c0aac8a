"""The judge: a small convolutional network that names the object and the style of a picture."""

import torch
from torch import nn

from .drawing import OBJECTS, STYLES


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.GroupNorm(8, after),
        nn.SiLU(),
        nn.Conv2d(after, after, 3, padding=1, stride=2),
        nn.GroupNorm(8, after),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Two heads, object and style, over one trunk.

    ``forward`` takes images ``[B, 3, 32, 32]`` in −1..1 and returns object logits ``[B, 10]`` and style logits
    ``[B, 9]``; ``features`` returns the trunk's ``[B, 128]``, a distance space for pictures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_stage(3, 32), _stage(32, 64), _stage(64, 128), nn.Flatten(), nn.Linear(2048, 128))
        self.object_head = nn.Linear(128, len(OBJECTS))
        self.style_head = nn.Linear(128, len(STYLES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.trunk(images))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images)
        return self.object_head(features), self.style_head(features)
