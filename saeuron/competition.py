"""The top-k competition of a few latents: who wins it is settled by a rough product, but for close calls.

A latent shows on a token where it is among the ``k`` largest of all, so that one latent seems to cost the whole
encoder. But whoever wins by far also wins by rounded numbers, and whoever loses by far loses among an eighth of the
latents already. How far is far enough follows from the rounding errors themselves, by the Cauchy-Schwarz inequality;
tokens on which it is closer than that are worked out in full precision. So the answer is exact.
"""

import torch
from torch import nn

FEW = 16
"""So few tokens are worked out in full at once: reading the weights is what they cost."""
EPS = torch.finfo(torch.bfloat16).eps
BLOCK = 2048
"""Latents whose weights are rounded at once, so many that a CPU's cache still holds them when they are multiplied."""


def compete(
    sae: nn.Module, tokens: torch.Tensor, latents: torch.Tensor, floor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pre-activations ``[T, m]`` of ``latents`` ``[m]``, and where they are among the ``k`` largest of their token.

    ``sae`` is a SparseAutoencoder. Who wins is told where an activation exceeds ``floor`` ``[m]``; elsewhere all may be
    given as lost.
    """
    if len(tokens) <= FEW or not _rounds_cheaply(sae.W_enc) or sae.n_latents < 16 * sae.k:
        return _in_full(sae, tokens, latents)
    own = sae.pre_activations(tokens, latents)
    at_stake = sae.strength(own) > floor
    with torch.no_grad():
        weakest, error = _roughly(sae, tokens.detach(), torch.where(at_stake, own.detach(), -torch.inf).amax(1))
        wins = at_stake & (own >= weakest + error)
        close = at_stake & ~wins & (own > weakest - error)
        rows = close.any(1).nonzero().squeeze(-1)
    if len(rows):
        exactly, settled = _in_full(sae, tokens[rows], latents)
        own, wins = own.index_copy(0, rows, exactly), wins.index_copy(0, rows, settled)
    return own, wins


def _in_full(sae: nn.Module, tokens: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pre = sae.pre_activations(tokens)
    own = pre[:, latents]
    return own, own >= pre.detach().topk(sae.k, dim=1, sorted=False).values.amin(1, keepdim=True)


def _rounds_cheaply(weight: torch.Tensor) -> bool:
    """Whether bfloat16 is worth it. A GPU would have to be waited for, to know which calls are close."""
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and native()


def _roughly(sae: nn.Module, tokens: torch.Tensor, best: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k``-th largest pre-activation of each token by rounded numbers, and by how much it may err, ``[T, 1]``.

    ``best`` ``[T]`` is the largest that is at stake. Where it is lost at once, the ``k``-th largest of an eighth of the
    latents is given, which is smaller still.
    """
    centred = tokens.float() - sae.b_dec
    rounded = centred.bfloat16()
    longest, off = _rounding(sae)
    # What the rounding of tokens, weights and biases may add up to, and what float32 sums of d_in terms may lose.
    loss = torch.finfo(torch.float32).eps * sae.d_in
    error = (centred - rounded.float()).norm(dim=1) * longest + centred.norm(dim=1) * (off + loss * longest)
    error += EPS * sae.b_enc.abs().max()
    eighth = -(-sae.n_latents // 8)
    first = torch.cat(list(_products(sae, rounded, 0, eighth)), 1)
    weakest = _kth_largest(first, sae.k)
    margin = error + EPS * weakest.abs()
    open_ = (best >= weakest - margin).nonzero().squeeze(-1)
    if len(open_):
        rest = _products(sae, rounded[open_], eighth, sae.n_latents)
        weakest[open_] = _kth_largest(torch.cat([first[open_], *rest], 1), sae.k)
    return weakest[:, None], (error + EPS * weakest.abs())[:, None]


def _products(sae: nn.Module, rounded: torch.Tensor, start: int, end: int):
    for at in range(start, end, BLOCK):
        part = slice(at, min(at + BLOCK, end))
        yield nn.functional.linear(rounded, sae.W_enc[part].bfloat16(), sae.b_enc[part].bfloat16())


def _kth_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k``-th largest of each row ``[T, n]``: the ``k`` largest lie in the ``k`` groups of largest maxima."""
    width = values.shape[1]
    size = next((size for size in (32, 16, 8, 4, 2) if width % size == 0 and width >= 8 * k * size), 1)
    if size > 1:
        groups = values.unflatten(1, (size, -1))
        chosen = groups.amax(1).topk(k, sorted=False).indices
        values = groups.gather(2, chosen[:, None].expand(-1, size, -1)).flatten(1)
    return values.topk(k, sorted=False).values.amin(1).float()


def _rounding(sae: nn.Module) -> tuple[float, float]:
    """The length of the encoder's longest row, and by how much the bfloat16 of a row is off at most."""
    if sae.rounding is None:
        longest = off = 0.0
        for rows in sae.W_enc.detach().split(BLOCK):
            longest = max(longest, float(rows.norm(dim=1).max()))
            off = max(off, float((rows - rows.bfloat16().float()).norm(dim=1).max()))
        sae.rounding = longest, off
    return sae.rounding
