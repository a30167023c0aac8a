"""Edits: pure functions on tokens. They know no host and keep no state between calls."""

from dataclasses import dataclass

import torch

from .autoencoder import SparseAutoencoder
from .errors import SaeuronError
from .selection import Row, Selection


@dataclass(frozen=True, eq=False)
class Ablate:
    """SAeUron's ablation (§3.3): ``f_i ← γ μ(i,t,D_c) f_i`` for selected latents, where ``f_i > μ̄(i,t)``.

    The reconstruction error is kept, so the result is ``x + Σ_i (f'_i − f_i) W_dec[i]``: only selected latents are
    decoded, and a token on which none fires leaves as it came, bit for bit.

    ``paper_exact`` reproduces the published code instead of the published equation. There the error enters with the
    opposite sign, so that a token leaves as ``x̂_edited + (x̂ − x)``; and the activation is always top-k per token.
    Published γ were tuned with it.
    """

    sae: SparseAutoencoder
    selection: Selection
    paper_exact: bool = False

    def __post_init__(self) -> None:
        if self.selection.fingerprint != self.sae.fingerprint:
            raise SaeuronError(
                f"the selection was made with the SAE {self.selection.fingerprint} and this SAE is "
                f"{self.sae.fingerprint}: use the SAE and the table that belong together"
            )

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor, timestep: float, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Edit ``tokens`` ``[B, N, d_in]`` at ``timestep``.

        ``mask`` ``[B or 1, N]`` in 0..1 says how much of the edit each token receives. The result has the tokens'
        shape, dtype and device. Raises SaeuronError where the width is not the SAE's.
        """
        self.sae.check_width(tokens)
        row = self.selection.at(timestep)
        if len(row.latents) == 0:
            return tokens
        row = row.to(tokens.device)
        flat = tokens.reshape(-1, self.sae.d_in)
        weight = 1.0 if mask is None else mask.expand(tokens.shape[:-1]).reshape(-1, 1)
        if self.paper_exact:
            return self._published(flat, row, weight).view_as(tokens)
        change = weight * _change(self.sae.encode_at(flat, row.latents, row.thresholds), row)
        rows = change.any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        delta = change[rows] @ self.sae.W_dec[row.latents].float()
        return flat.index_copy(0, rows, (flat[rows].float() + delta).to(tokens.dtype)).view_as(tokens)

    def _published(self, flat: torch.Tensor, row: Row, weight: float | torch.Tensor) -> torch.Tensor:
        """``x̂_edited + (x̂ − x)``, which is ``x + 2 (x̂ − x)`` and the change."""
        code = self.sae.encode_sparse(flat, per_token=True)
        active = (code.values[:, :, None] * (code.latents[:, :, None] == row.latents)).sum(1)
        error = self.sae.decode_sparse(code).float() - flat.float()
        change = _change(active, row) @ self.sae.W_dec[row.latents].float()
        return (flat.float() + weight * (2 * error + change)).to(flat.dtype)


def _change(active: torch.Tensor, row: Row) -> torch.Tensor:
    """``f'_i − f_i`` for activations ``[T, m]``, in float32: γ·μ·f is a square, and leaves float16 early."""
    active = active.float()
    return torch.where(active > row.thresholds, (row.strengths * row.means - 1) * active, 0)
