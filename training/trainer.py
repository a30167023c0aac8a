"""The SAE's training: BatchTopK with AuxK, on mean-centred and scaled tokens; both fold into the weights at the end."""

from dataclasses import dataclass, field

import torch
from torch import nn

from saeuron import SparseAutoencoder


@dataclass
class Normalisation:
    """``x' = (x − mean) · scale``, so that ``x'`` has mean 0 and mean squared norm ``d_in``."""

    mean: torch.Tensor
    scale: float

    @classmethod
    def of(cls, tokens: torch.Tensor) -> "Normalisation":
        mean = tokens.mean(0)
        return cls(mean, float((tokens - mean).pow(2).mean().clamp(min=1e-12).rsqrt()))

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens - self.mean) * self.scale


@dataclass
class Losses:
    """What one step measured, as 0-dim tensors, so that reading them is the caller's choice."""

    fvu: torch.Tensor
    auxiliary: torch.Tensor
    l0: torch.Tensor
    active: torch.Tensor = field(repr=False)


class TrainingAutoencoder(nn.Module):
    """The autoencoder in training coordinates: ``f = batch_topk(relu(W_enc x' + b_enc))``, ``x̂' = f W_dec + b_dec``.

    Unlike SparseAutoencoder, ``b_dec`` is not subtracted before encoding: on centred tokens it starts at zero, and one
    matrix product is saved. ``fold`` turns the two into each other exactly.
    """

    def __init__(self, d_in: int, n_latents: int, k: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        rows = nn.functional.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.k, self.activation = k, activation
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("tokens_since_fired", torch.zeros(n_latents, dtype=torch.long))

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Keep the ``k`` largest of each row, or the ``k·B`` largest of the batch (BatchTopK)."""
        if self.activation == "topk":
            values, latents = pre.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter(-1, latents, values)
        return torch.where(pre >= batch_topk_threshold(pre.detach(), self.k), pre, 0)

    def losses(self, tokens: torch.Tensor, dead_after: int, k_aux: int) -> Losses:
        """Losses on normalised ``tokens`` ``[B, d_in]``; both are fractions of the batch's variance.

        The auxiliary term asks the dead latents, those unfired for ``dead_after`` tokens, to explain what the living
        ones leave over (Gao et al. 2024, AuxK): the residual is detached and ``b_dec`` stays out of it.
        """
        # In float32 from here on: under autocast the products come out in bfloat16.
        pre = nn.functional.linear(tokens, self.W_enc, self.b_enc).relu().float()
        code = self.activate(pre)
        residual = tokens - (code @ self.W_dec + self.b_dec)
        variance = (tokens - tokens.mean(0)).pow(2).sum()
        fvu = residual.pow(2).sum() / variance
        active = code.detach() > 0
        fired = active.any(0)
        self.tokens_since_fired = torch.where(fired, 0, self.tokens_since_fired + len(tokens))
        smallest = torch.where(active, code.detach(), torch.inf).min()
        self.threshold.copy_(torch.where(self.threshold == 0, smallest, torch.lerp(self.threshold, smallest, 0.01)))
        dead = (self.tokens_since_fired > dead_after).nonzero().squeeze(-1)
        auxiliary = torch.zeros((), device=tokens.device)
        if len(dead):
            pre_dead = nn.functional.linear(tokens, self.W_enc[dead], self.b_enc[dead]).relu().float()
            values, places = pre_dead.topk(min(k_aux, len(dead)), -1)
            dead_code = torch.zeros(len(tokens), len(dead), device=tokens.device).scatter(-1, places, values)
            auxiliary = (residual.detach() - dead_code @ self.W_dec[dead]).pow(2).sum() / variance
        return Losses(fvu, auxiliary, active.sum() / len(tokens), active)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change its rows' length."""
        along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
        self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    @torch.no_grad()
    def fold(self, normalisation: Normalisation, **names: object) -> SparseAutoencoder:
        """The same function on raw tokens, as a SparseAutoencoder with decoder rows still at unit norm.

        Latents come out divided by the scale: ``f = f'/s``, ``b_dec = mean + b_dec'/s``, threshold likewise.
        """
        scale = normalisation.scale
        n_latents, d_in = self.W_enc.shape
        threshold = float(self.threshold) / scale if self.activation == "batch_topk" else None
        sae = SparseAutoencoder(d_in, n_latents, self.k, self.activation, threshold, **names)
        sae.W_enc.copy_(self.W_enc)
        sae.W_dec.copy_(self.W_dec)
        sae.b_enc.copy_((self.b_enc + self.W_enc @ self.b_dec) / scale)
        sae.b_dec.copy_(normalisation.mean + self.b_dec / scale)
        return sae.requires_grad_(False)


@torch.no_grad()
def batch_topk_threshold(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k·B``-th largest value of ``pre`` ``[B, n]``, exact, found among each row's largest first."""
    rows, n = pre.shape
    width = min(n, 4 * k)
    while True:
        largest = pre.topk(width, dim=1).values
        threshold = largest.flatten().kthvalue(rows * width - rows * k + 1).values
        if width == n or not bool((largest[:, -1] > threshold).any()):
            return threshold.clamp(min=torch.finfo(pre.dtype).tiny)
        width = min(n, width * 2)
