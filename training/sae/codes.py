"""A batch's code while it is trained: sparse, or dense where so many latents are active that pairs cost more."""

from dataclasses import dataclass

import torch

from . import kernels
from .selection import Active


@dataclass(frozen=True, eq=False)
class SparseCode:
    """The ``values`` ``[m]`` of the ``active`` pairs of a token and a latent; a value of 0 is as good as none."""

    values: torch.Tensor
    active: Active

    def decode(self, W_dec: torch.Tensor) -> torch.Tensor:
        return kernels.decode(self.values, self.active, W_dec)

    def dense(self) -> torch.Tensor:
        """``[B, n_latents]``, with the gradient of the values."""
        zeros = self.values.new_zeros(self.active.n_rows, self.active.n_latents)
        return zeros.index_put((self.active.rows, self.active.latents), self.values)

    def fired(self) -> torch.Tensor:
        """Which latents are active on any token, bool ``[n_latents]``."""
        counts = torch.zeros(self.active.n_latents, device=self.values.device)
        return counts.index_add_(0, self.active.latents, (self.values.detach() > 0).float()) > 0

    def entries(self) -> torch.Tensor:
        """All values among which the active ones are those above 0."""
        return self.values.detach()


@dataclass(frozen=True, eq=False)
class DenseCode:
    """The whole code ``[B, n_latents]``."""

    code: torch.Tensor

    def decode(self, W_dec: torch.Tensor) -> torch.Tensor:
        return self.code @ W_dec

    def dense(self) -> torch.Tensor:
        return self.code

    def fired(self) -> torch.Tensor:
        return (self.code.detach() > 0).any(0)

    def entries(self) -> torch.Tensor:
        return self.code.detach()
