"""Sparse products and their gradients: decoding and encoding that touch only the rows of active latents.

Everything is a weighted sum of rows (``embedding_bag``) or a dot product of two rows. Sums over a token's latents read
the pairs in order of tokens, sums over a latent's tokens in order of latents; nothing is added to one place twice, so
that results do not depend on who comes first.
"""

import torch
from torch import nn

from .selection import Active


def decode(values: torch.Tensor, active: Active, W_dec: torch.Tensor) -> torch.Tensor:
    """``f W_dec`` ``[B, d]`` of a code ``f`` given by its ``active`` pairs and their ``values`` ``[m]``."""
    return _Decode.apply(values, W_dec, active)


def encode(pre: torch.Tensor, active: Active, tokens: torch.Tensor, W_enc, b_enc) -> torch.Tensor:
    """``pre`` ``[m]``, the pre-activations of the ``active`` pairs as already known, with the encoder's gradient."""
    return _Encode.apply(W_enc, b_enc, pre, tokens, active)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, W_dec, active):
        ctx.save_for_backward(values, W_dec)
        ctx.active = active
        return _sums(W_dec, active.latents, active.row_starts, values)

    @staticmethod
    def backward(ctx, gradient):
        values, W_dec = ctx.saved_tensors
        active, order, gradient = ctx.active, ctx.active.by_latent, gradient.contiguous()
        of_values = of_weight = None
        if ctx.needs_input_grad[0]:
            # In order of latents a row of the weights is read once, and the smaller gradient many times.
            of_values = torch.empty_like(values)
            of_values[order] = _dots(W_dec, gradient, active)
        if ctx.needs_input_grad[1]:
            of_weight = _sums(gradient, active.rows_by_latent, active.latent_starts, values[order])
        return of_values, of_weight, None


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, W_enc, b_enc, pre, tokens, active):
        ctx.save_for_backward(tokens.contiguous())
        ctx.active = active
        return pre.clone()

    @staticmethod
    def backward(ctx, gradient):
        (tokens,) = ctx.saved_tensors
        active, gradient = ctx.active, gradient[ctx.active.by_latent]
        of_weight = _sums(tokens, active.rows_by_latent, active.latent_starts, gradient)
        of_bias = torch.segment_reduce(gradient, "sum", offsets=active.latent_starts, initial=0, unsafe=True)
        return of_weight, of_bias, None, None, None


def _sums(source: torch.Tensor, rows: torch.Tensor, starts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums of the ``rows`` of ``source`` times ``weights``, one from each of ``starts`` to the next."""
    return nn.functional.embedding_bag(
        rows, source, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def _dots(W: torch.Tensor, of_tokens: torch.Tensor, active: Active) -> torch.Tensor:
    """The dot product ``[m]`` of each pair's row of ``W`` and of ``of_tokens``, in order of latents."""
    if W.device.type == "cpu" and torch.backends.mkl.is_available():
        shape = (active.n_latents, active.n_rows)
        places = torch.sparse_csr_tensor(
            active.latent_starts,
            active.rows_by_latent,
            W.new_zeros(len(active.rows)),
            size=shape,
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(places, W, of_tokens.T, beta=0).values()
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        W, of_tokens, active.rows_by_latent, active.latent_starts[:-1], active.latents[active.by_latent], 0
    )
