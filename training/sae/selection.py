"""Which latents are active: the encoder's product and the competition in it, piece by piece, and never a dense code.

A row of pre-activations is long and few of its values matter. So values compete in groups first: the ``count`` largest
of many lie in the ``count`` groups whose largest value is largest, and only those are looked through.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from ..common.processes import joined, processes

PIECE = 2**24
"""Bytes of pre-activations worked out at once on a CPU: few enough to be still in the cache when they compete."""


@dataclass(frozen=True)
class Active:
    """Pairs of a token and a latent that is active on it: ``rows`` and ``latents``, both ``[m]``, in order of rows."""

    rows: torch.Tensor
    latents: torch.Tensor
    n_rows: int
    n_latents: int

    @cached_property
    def row_starts(self) -> torch.Tensor:
        """Where each token's pairs start, and the last one's end ``[n_rows + 1]``."""
        return _starts(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> torch.Tensor:
        """The places ``[m]`` of the pairs in order of their latents."""
        narrow = self.latents.short() if self.n_latents < 2**15 else self.latents  # sorts in half the passes
        return narrow.sort(stable=True).indices

    @cached_property
    def latent_starts(self) -> torch.Tensor:
        """Where each latent's pairs start in ``by_latent``, and the last one's end ``[n_latents + 1]``."""
        return _starts(self.latents[self.by_latent], self.n_latents)

    @cached_property
    def rows_by_latent(self) -> torch.Tensor:
        return self.rows[self.by_latent]


def _starts(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Unlike bincount, searchsorted never asks a GPU for the largest number."""
    return torch.searchsorted(numbers, torch.arange(count + 1, device=numbers.device))


@torch.no_grad()
def largest_of_tokens(tokens, weight, bias, k: int) -> tuple[torch.Tensor, Active]:
    """The ``k`` largest pre-activations of each token ``[B·k]`` in float32, and whose they are."""
    values, latents = [], []
    for _, pre in _pre_activations(tokens, weight, bias):
        size = _group_size(pre.shape[1], k)
        if size == 1:
            top = pre.topk(k, sorted=False)
            values.append(top.values), latents.append(top.indices)
            continue
        groups = pre.unflatten(1, (size, -1)).amax(1).topk(k, sorted=False).indices
        members = _members(groups, size, pre.shape[1]).transpose(0, 1).flatten(1)
        top = pre.gather(1, members).topk(k, sorted=False)
        values.append(top.values), latents.append(members.gather(1, top.indices))
    rows = torch.arange(len(tokens), device=tokens.device).repeat_interleave(k)
    return torch.cat(values).float().flatten(), Active(rows, torch.cat(latents).flatten(), len(tokens), len(weight))


@torch.no_grad()
def largest_of_batch(tokens, weight, bias, k: int) -> tuple[torch.Tensor, Active]:
    """Of the ``k·B`` largest pre-activations of all processes' tokens those above 0 that are of these tokens.

    On a CPU just those. A GPU is not waited for, so their number cannot be known: there are as many pairs as there
    could be, and those that are not among the largest have the value 0.
    """
    wanted, share = k * len(tokens) * processes(), 1.5
    on_cpu = tokens.device.type == "cpu"
    while True:
        values, places, floor = [], [], []
        for start, pre in _pre_activations(tokens, weight, bias):
            most = min(wanted, pre.numel())
            count = min(most, math.ceil(share * k * len(pre))) if on_cpu else most
            candidates = _candidates_on_cpu(pre, count) if on_cpu else _candidates(pre, count)
            values.append(candidates[0].float()), places.append(candidates[1] + start * len(weight))
            if count < most:
                floor.append(candidates[2].float())
        values, places = torch.cat(values), torch.cat(places)
        threshold = _nth_largest_of_all(values, wanted)
        # A piece whose candidates end above the threshold may have had more to offer. Hardly ever so.
        if not floor or not (joined(torch.stack(floor)) > threshold).any():
            break
        share *= 2
    kept = values >= threshold
    if on_cpu:
        values, places = values[kept], places[kept]
    else:
        values = torch.where(kept, values, 0)
    places, order = places.sort()
    return values[order], Active(places // len(weight), places % len(weight), len(tokens), len(weight))


def _candidates_on_cpu(pre: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At least the ``count`` largest values of ``pre`` ``[c, n]`` that are above 0, their places in it and a floor.

    The floor is met by every value given and by no other. Comparing is faster here than sorting.
    """
    size = _group_size(pre.shape[1], count / len(pre))
    largest = pre.unflatten(1, (size, -1)).amax(1)
    floor = _nth_largest(largest.flatten(), count).clamp(min=torch.finfo(pre.dtype).tiny)
    rows, groups = (largest >= floor).nonzero().unbind(1)
    places = _members(groups, size, pre.shape[1]) + rows * pre.shape[1]
    values = pre.flatten()[places]
    kept = values >= floor
    return values[kept], places[kept], floor


def _candidates(pre: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` largest values of ``pre`` ``[c, n]`` and their places in it, without waiting for a GPU."""
    size = _group_size(pre.shape[1], count / len(pre))
    groups = pre.unflatten(1, (size, -1)).amax(1).flatten().topk(count, sorted=False).indices
    rows, groups = groups // (pre.shape[1] // size), groups % (pre.shape[1] // size)
    places = (_members(groups, size, pre.shape[1]) + rows * pre.shape[1]).flatten()
    values, order = pre.flatten()[places].topk(count, sorted=False)
    return values, places[order]


def _nth_largest_of_all(values: torch.Tensor, n: int) -> torch.Tensor:
    """The ``n``-th largest of the ``values`` of all processes, and at least the smallest number above 0."""
    if processes() > 1:  # each can offer as many as are wanted
        mine = values[values >= _nth_largest(values, n)][:n] if len(values) > n else values
        values = joined(torch.cat([mine, mine.new_zeros(n - len(mine))]))
    least = torch.full((), torch.finfo(values.dtype).tiny, device=values.device)
    return least if len(values) < n else _nth_largest(values, n).maximum(least)


def _nth_largest(values: torch.Tensor, n: int) -> torch.Tensor:
    place = len(values) - n
    if values.device.type != "cpu":
        return values.kthvalue(place + 1).values
    # Several times as fast as torch's; numpy knows no bfloat16.
    return torch.tensor(np.partition(values.float().numpy(), place)[place])


def _group_size(width: int, count: float) -> int:
    """How many of ``width`` values compete as one where ``count`` of them are wanted, so that groups are many more."""
    return next(size for size in (32, 16, 8, 4, 2, 1) if size == 1 or (width % size == 0 and width >= 8 * count * size))


def _members(groups: torch.Tensor, size: int, width: int) -> torch.Tensor:
    """The members ``[size, …]`` of ``groups`` ``[…]``: every ``width / size``-th of a row."""
    steps = torch.arange(size, device=groups.device) * (width // size)
    return steps.view(-1, *[1] * groups.ndim) + groups


def _pre_activations(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor):
    """``(first row, pre-activations)`` piece by piece; a GPU takes all rows at once. Under autocast in its dtype."""
    device = tokens.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
    rows = len(tokens) if device != "cpu" else max(PIECE // (len(weight) * dtype.itemsize), 64)
    tokens, weight, bias = tokens.to(dtype), weight.to(dtype), bias.to(dtype)
    for start in range(0, len(tokens), rows):
        yield start, nn.functional.linear(tokens[start : start + rows], weight, bias)
