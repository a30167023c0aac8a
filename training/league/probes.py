"""What the league looks at beside what the judge makes of pictures: where activations go."""

from dataclasses import dataclass, field

import torch


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
