"""Muon: momentum whose direction is made orthogonal, for the matrices and convolutions of a network.

Keller Jordan's optimizer with the scale of Moonshot's (update of root mean square 0.2, so that AdamW's learning rates
serve). torch has it for matrices only; convolutions are taken here as matrices of output × everything else.
"""

from collections.abc import Iterable

import torch

# The quintic steps of Newton and Schulz with coefficients tuned step by step (You, 2025).
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class Muon(torch.optim.Optimizer):
    """Every parameter has two dimensions or more; parameters of one shape are worked on together."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                for parameter in parameters:
                    state = self.state[parameter]
                    state.setdefault("average", torch.zeros_like(parameter)).lerp_(
                        parameter.grad, 1 - group["momentum"]
                    )
                ahead = [p.grad.lerp(self.state[p]["average"], group["momentum"]) for p in parameters]
                directions = orthogonal(torch.stack([direction.reshape(shape[0], -1) for direction in ahead]))
                length = 0.2 * max(directions.shape[1:]) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(direction.view(shape), alpha=-group["lr"] * length)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices to ``[B, m, n]`` whose singular values are about 1, in bfloat16 products."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in COEFFICIENTS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).float()
