"""A small random SAE, tokens for it, and what the tests of `saeuron` share."""

import errno
from collections.abc import Callable

import pytest
import torch

import saeuron.files
from saeuron import SparseAutoencoder
from tests.saeuron.pictures import draw_images


@pytest.fixture
def make_sae() -> Callable[..., SparseAutoencoder]:
    """An SAE of 16 → 64 with random weights, a bias everywhere and decoder rows of unit norm."""

    def make(d_in=16, n_latents=64, k=4, activation="topk", seed=0, **options) -> SparseAutoencoder:
        generator = torch.Generator().manual_seed(seed)
        sae = SparseAutoencoder(d_in, n_latents, k, activation, **options).requires_grad_(False)
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(n_latents, d_in, generator=generator), dim=1))
        sae.W_enc.copy_(sae.W_dec + 0.1 * torch.randn(n_latents, d_in, generator=generator))
        sae.b_enc.copy_(0.1 * torch.randn(n_latents, generator=generator))
        sae.b_dec.copy_(torch.randn(d_in, generator=generator))
        return sae

    return make


@pytest.fixture
def make_tokens() -> Callable[..., torch.Tensor]:
    def make(*shape: int, seed=1) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def images(make_tokens) -> tuple[list, dict[int, torch.Tensor]]:
    """Labels and latents of 30 images: ``latents[timestep][image]``; every object is seen in every style."""
    return draw_images(make_tokens)


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """From here on every sync fails the way a full disk does, after the bytes were written."""

    def fail(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saeuron.files.os, "fsync", fail)
