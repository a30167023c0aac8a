"""The SAE's training: BatchTopK with AuxK on mean-centred, scaled tokens; both fold into the weights at the end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from saeuron import SparseAutoencoder

from ..common.processes import joined, share
from .codes import DenseCode, SparseCode
from .kernels import encode
from .selection import largest_of_batch, largest_of_tokens

DENSE_FROM = 1 / 4
"""The share of active latents from which on dense products are no slower than sparse ones."""


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
    """What one step measured, as 0-dim tensors, so that reading them is the caller's choice.

    ``code()`` is the dense code ``[B, n_latents]`` with its gradient, made when it is asked for.
    """

    fvu: torch.Tensor
    auxiliary: torch.Tensor
    l0: torch.Tensor
    code: Callable[[], torch.Tensor] = field(repr=False)


class TrainingAutoencoder(nn.Module):
    """The autoencoder in training coordinates: ``f = batch_topk(relu(W_enc x' + b_enc))``, ``x̂' = f W_dec + b_dec``.

    Unlike SparseAutoencoder, ``b_dec`` is not subtracted before encoding: on centred tokens it starts at zero, and one
    matrix product is saved. ``fold`` and ``unfold`` turn the two into each other exactly.

    ``sigmoid_topk`` (G-SAE) takes the k largest pre-activations of a token through a sigmoid, ``f = σ(topk(…))``. Its
    latents cannot grow beyond 1, so its decoder rows carry the size and are not kept at unit norm.
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
        self.sparse = k < DENSE_FROM * n_latents
        self._longest_silence = math.inf  # at most so long have all latents been silent, known without asking a GPU

    @property
    def is_gated(self) -> bool:
        return self.activation == "sigmoid_topk"

    def pre_activations(self, tokens: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        """``W_enc x' + b_enc`` ``[..., n_latents]``, or ``[..., m]`` for only those in ``latents`` ``[m]``."""
        weight, bias = (self.W_enc, self.b_enc) if latents is None else (self.W_enc[latents], self.b_enc[latents])
        return nn.functional.linear(tokens, weight, bias)

    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Keep the ``k`` largest of each row, or the ``k·B`` largest of the batch (BatchTopK)."""
        if self.activation != "batch_topk":
            values, latents = pre.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(pre).scatter(-1, latents, values.sigmoid() if self.is_gated else values)
        return torch.where(pre >= batch_topk_threshold(pre.detach(), self.k), pre, 0)

    def code(self, tokens: torch.Tensor) -> SparseCode | DenseCode:
        """The code of normalised ``tokens`` ``[B, d_in]`` in float32, with the encoder's gradient."""
        if not self.sparse:
            pre = self.pre_activations(tokens)
            return DenseCode(self.activate((pre if self.is_gated else pre.relu()).float()))
        largest = largest_of_batch if self.activation == "batch_topk" else largest_of_tokens
        pre, active = largest(tokens, self.W_enc, self.b_enc, self.k)
        pre = encode(pre, active, tokens, self.W_enc, self.b_enc)
        return SparseCode(pre.sigmoid() if self.is_gated else pre.relu(), active)

    @torch.no_grad()
    def fit_encoder(self, tokens: torch.Tensor) -> None:
        """Give a fresh encoder the size at which its reconstruction of normalised ``tokens`` ``[B, d_in]`` errs least.

        Rows of unit norm overlap, so that the sum of the active ones starts out too long, most so with BatchTopK, and
        hundreds of steps go by until it has shrunk. Which latents are active does not depend on the size.
        """
        if not self.is_gated:
            sums = self.code(tokens).decode(self.W_dec)
            self.W_enc.mul_((tokens * sums).sum() / sums.pow(2).sum().clamp(min=1e-12))

    def losses(self, tokens: torch.Tensor, dead_after: int, k_aux: int) -> Losses:
        """Losses on normalised ``tokens`` ``[B, d_in]``; both are fractions of the batch's variance.

        Of several processes each is given the same tokens and answers for its share of them: the losses of all add up
        to those of one process, and ``code`` is that of the share.

        The auxiliary term asks the dead latents, those unfired for ``dead_after`` tokens, to explain what the living
        ones leave over (Gao et al. 2024, AuxK): the residual is detached and ``b_dec`` stays out of it.
        """
        variance, count = (tokens - tokens.mean(0)).pow(2).sum(), len(tokens)
        tokens = share(tokens)
        code = self.code(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            residual = tokens - (code.decode(self.W_dec) + self.b_dec)
        fvu = residual.pow(2).sum() / variance
        values = code.entries()
        fired = joined(code.fired()[None]).any(0)
        self.tokens_since_fired = torch.where(fired, 0, self.tokens_since_fired + count)
        smallest = joined(_smallest_active(values)).min()
        average = torch.where(self.threshold == 0, smallest, torch.lerp(self.threshold, smallest, 0.01))
        self.threshold.copy_(torch.where(smallest.isfinite(), average, self.threshold))  # nothing fired: nothing told
        auxiliary = torch.zeros((), device=tokens.device)
        dead = self._dead(count, dead_after)
        if len(dead):
            values_of_dead, places = self.pre_activations(tokens, dead).float().topk(min(k_aux, len(dead)), -1)
            values_of_dead = values_of_dead.sigmoid() if self.is_gated else values_of_dead.relu()
            dead_code = torch.zeros(len(tokens), len(dead), device=tokens.device).scatter(-1, places, values_of_dead)
            auxiliary = (residual.detach() - dead_code @ self.W_dec[dead]).pow(2).sum() / variance
        return Losses(fvu, auxiliary, (values > 0).sum() / count, code.dense)

    def _dead(self, count: int, dead_after: int) -> torch.Tensor:
        """The latents ``[m]`` unfired for ``dead_after`` tokens, ``count`` of which are new.

        Only asked of the device once so many tokens have passed that there may be one.
        """
        self._longest_silence += count
        if self._longest_silence <= dead_after:
            return self.tokens_since_fired[:0]
        self._longest_silence = int(self.tokens_since_fired.max())
        if self._longest_silence <= dead_after:
            return self.tokens_since_fired[:0]
        return (self.tokens_since_fired > dead_after).nonzero().squeeze(-1)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._longest_silence = math.inf

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change its rows' length."""
        if not self.is_gated:
            for rows, gradient in zip(_pieces(self.W_dec), _pieces(self.W_dec.grad), strict=True):
                gradient.addcmul_((gradient * rows).sum(1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        if not self.is_gated:
            for rows in _pieces(self.W_dec):
                rows.div_(rows.norm(dim=1, keepdim=True).clamp_(min=1e-12))

    @torch.no_grad()
    def fold(self, normalisation: Normalisation, **names: object) -> SparseAutoencoder:
        """The same function on raw tokens, as a SparseAutoencoder with decoder rows still at unit norm.

        Latents come out divided by the scale: ``f = f'/s``, ``b_dec = mean + b_dec'/s``, threshold likewise. Those of
        ``sigmoid_topk`` cannot be scaled: there the encoder takes the scale, and the decoder gives it back.
        """
        scale = normalisation.scale
        n_latents, d_in = self.W_enc.shape
        threshold = float(self.threshold) / scale if self.activation == "batch_topk" else None
        sae = SparseAutoencoder(d_in, n_latents, self.k, self.activation, threshold, **names)
        gain = scale if self.is_gated else 1.0
        sae.W_enc.copy_(self.W_enc * gain)
        sae.W_dec.copy_(self.W_dec / gain)
        sae.b_enc.copy_((self.b_enc + self.W_enc @ self.b_dec) * gain / scale)
        sae.b_dec.copy_(normalisation.mean + self.b_dec / scale)
        return sae.requires_grad_(False)

    @classmethod
    @torch.no_grad()
    def unfold(cls, sae: SparseAutoencoder, normalisation: Normalisation) -> "TrainingAutoencoder":
        """The same function in training coordinates, on the CPU: what ``fold`` would turn into ``sae``.

        Decoder rows come to unit norm, their length going into the encoder. Where they were not at unit norm before,
        the latents of a token compete at other sizes than in ``sae``.
        """
        model = cls(sae.d_in, sae.n_latents, sae.k, sae.activation, torch.Generator().manual_seed(0))
        W_enc, b_enc, W_dec, b_dec = (w.float().cpu() for w in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
        scale = normalisation.scale
        gain = 1 / scale if model.is_gated else W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
        model.b_dec.copy_((b_dec - normalisation.mean.cpu()) * scale)
        model.W_enc.copy_(W_enc * gain)
        model.W_dec.copy_(W_dec / gain)
        bias = b_enc if model.is_gated else b_enc * gain[:, 0] * scale
        model.b_enc.copy_(bias - model.W_enc @ model.b_dec)
        model.threshold.fill_((sae.threshold or 0.0) * scale)
        return model


def _pieces(weight: torch.Tensor) -> Sequence[torch.Tensor]:
    """The rows of ``weight`` in pieces that stay in a CPU's cache while they are worked on, so memory is read once."""
    return weight.split(512) if weight.device.type == "cpu" else (weight,)


@torch.no_grad()
def batch_topk_threshold(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k·B``-th largest value of ``pre`` ``[B, n]`` over all processes, exact, found among the rows' largest."""
    n = pre.shape[1]
    width = min(n, 4 * k)
    while True:
        largest = joined(pre.topk(width, dim=1).values)
        rows = len(largest)
        threshold = largest.flatten().kthvalue(rows * width - rows * k + 1).values
        if width == n or not bool((largest[:, -1] > threshold).any()):
            return threshold.clamp(min=torch.finfo(pre.dtype).tiny)
        width = min(n, width * 2)


def _smallest_active(values: torch.Tensor) -> torch.Tensor:
    """The smallest of ``values`` above 0 as ``[1]``, infinity where there is none."""
    if values.numel() == 0:
        return values.new_full((1,), torch.inf)
    return torch.where(values > 0, values, torch.inf).min()[None]


@torch.no_grad()
def descend(model: TrainingAutoencoder, optimizer: torch.optim.Adam, longest: float = 1.0) -> None:
    """One step down the gradients, clipped to the norm ``longest``, that keeps the decoder's rows at unit norm.

    What would only change the rows' length is removed first. A fused Adam divides by the clipping as it reads the
    gradients, which saves a pass over them.
    """
    model.project_gradient()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.grad_scale = (norm / longest).clamp(min=1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.normalise_decoder()
