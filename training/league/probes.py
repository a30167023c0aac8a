"""What the league looks at beside UA, IRA and CRA: features, the judge's confidence, and where activations go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..evaluation.measures import KINDS, Verdicts


@dataclass(frozen=True)
class Look:
    """What the judge makes of pictures: verdicts, ``confidence`` ``[B]`` and ``features`` ``[B, 128]`` of length 1."""

    verdicts: Verdicts
    confidence: torch.Tensor
    features: torch.Tensor


@torch.no_grad()
def look(images: torch.Tensor, rows: Sequence[Mapping[str, str]]) -> Look:
    """Look at pictures ``[B, 3, H, W]`` in 0..1; those of another size than 32 × 32 are resized to it first.

    Confidence is the probability of the name the judge gives, averaged over object and style: pictures that look like
    nothing it knows get little.
    """
    from tinycanvas.drawing import OBJECTS, SIZE, STYLES
    from tinycanvas.model import load_judge

    judge = load_judge()
    if images.shape[-2:] != (SIZE, SIZE):
        images = torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    features = torch.cat([judge.features(part * 2 - 1) for part in images.split(256)])
    shares = [head(features).softmax(1).max(1) for head in (judge.object_head, judge.style_head)]
    found = {
        kind: [names[i] for i in share.indices.tolist()]
        for kind, names, share in zip(KINDS, (OBJECTS, STYLES), shares, strict=True)
    }
    verdicts = Verdicts({kind: [row[kind] for row in rows] for kind in KINDS}, found)
    confidence = torch.stack([share.values for share in shares]).mean(0)
    return Look(verdicts, confidence, torch.nn.functional.normalize(features, dim=1))


@dataclass
class Ranges:
    """Between which values a model's tokens lie at each timestep: every dimension's, and last the norm's.

    Called like an edit, it widens the ranges by the tokens ``[B, N, d]`` that pass and hands them on.
    """

    low: dict[float, torch.Tensor] = field(default_factory=dict)
    high: dict[float, torch.Tensor] = field(default_factory=dict)

    def __call__(self, tokens: torch.Tensor, timestep: float) -> torch.Tensor:
        values = with_norm(tokens)
        low, high = values.amin(0), values.amax(0)
        self.low[timestep] = torch.minimum(low, self.low.get(timestep, low))
        self.high[timestep] = torch.maximum(high, self.high.get(timestep, high))
        return tokens


@dataclass
class Outside:
    """The share of values outside ``ranges``, among the tokens that pass: of dimensions, and of norms."""

    ranges: Ranges
    dimensions: float = 0.0
    norms: float = 0.0
    tokens: int = 0

    def __call__(self, tokens: torch.Tensor, timestep: float) -> torch.Tensor:
        values = with_norm(tokens)
        beyond = (values < self.ranges.low[timestep]) | (values > self.ranges.high[timestep])
        self.dimensions += float(beyond[:, :-1].float().mean(1).sum())
        self.norms += float(beyond[:, -1].sum())
        self.tokens += len(values)
        return tokens

    @property
    def shares(self) -> dict[str, float]:
        """0 where nothing was seen: an edit that is never made leaves everything in range."""
        count = max(self.tokens, 1)
        return {"outside_dimensions": self.dimensions / count, "outside_norm": self.norms / count}


def with_norm(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens ``[B, N, d]`` as rows ``[B·N, d + 1]`` with their norm as the last value."""
    flat = tokens.flatten(0, 1).float()
    return torch.cat([flat, flat.norm(dim=1, keepdim=True)], 1)
