"""Checkpoints made by the libraries that write them, whose own encode and decode are the measure of ours.

They run in an environment of their own, by `make test-peers`. Everywhere else they are skipped, which the summary tells
for each library: a run that skips them says nothing of these formats.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saeuron import load_sae

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # or its decoder wants a GPU; read when sparsify is imported

# What the issue asks of float32: the same terms in another order, and biases folded in where a format needs it.
RELATIVE = 1e-5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomise() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Random values for every parameter, biases too: what a fresh model leaves at zero would test nothing."""

    def fill(module: torch.nn.Module) -> torch.nn.Module:
        for parameter in module.parameters():
            parameter.data.normal_()
        return module.requires_grad_(False)

    return fill


@pytest.fixture
def compare() -> Callable[..., None]:
    """Hold the SAE in a folder against the library's own dense ``encode`` and its ``decode`` of those latents."""

    def check(folder: Path, encode: Callable, decode: Callable, d_in: int) -> None:
        sae, tokens = load_sae(folder), torch.randn(300, d_in)
        with torch.no_grad():
            code = encode(tokens)
            for got, expected in ((sae.encode(tokens), code), (sae.decode(code), decode(code))):
                assert got.shape == expected.shape and expected.abs().max() > 0
                assert float((got - expected).abs().max() / expected.abs().max()) <= RELATIVE
        assert 0 < float((code != 0).float().mean()) < 1, "a code without zeros or of zeros alone tests no activation"

    return check
