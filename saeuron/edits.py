"""Edits: pure functions on tokens. They know no host and keep no state between calls."""

from dataclasses import dataclass

import torch

from .autoencoder import SparseAutoencoder
from .errors import SaeuronError
from .selection import Selection


@dataclass(frozen=True)
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
        if self.selection.is_empty:
            return tokens
        row = self.selection.at(timestep).to(tokens.device)
        flat = tokens.reshape(-1, self.sae.d_in)
        exact = self.paper_exact
        if exact:
            code = self.sae.encode_sparse(flat, per_token=True)
            matches = code.latents[:, :, None] == row.latents
            active = (code.values[:, :, None] * matches).sum(1).float()
        else:
            active = self.sae.encode_at(flat, row.latents, row.thresholds).float()
        edited = row.strengths * row.means * active
        change = torch.where(active > row.thresholds, edited - active, 0)
        if mask is not None:
            change = change * mask.expand(tokens.shape[:-1]).reshape(-1, 1)
        if exact:
            wide = self.sae.decode_sparse(code).float()
            weight = 1.0 if mask is None else mask.expand(tokens.shape[:-1]).reshape(-1, 1)
            start = flat.float() + weight * 2 * (wide - flat.float())
            return (start + change @ self.sae.W_dec[row.latents].float()).to(tokens.dtype).view_as(tokens)
        rows = change.any(-1).nonzero().squeeze(-1)
        if len(rows) == 0:
            return tokens
        delta = change[rows] @ self.sae.W_dec[row.latents].float()
        result = flat.index_copy(0, rows, (flat[rows].float() + delta).to(tokens.dtype))
        return result.view_as(tokens)
