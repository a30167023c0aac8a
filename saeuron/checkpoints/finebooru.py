"""finebooru: ``config.json`` and ``model.safetensors``, SAEs of FLUX's blocks that read their raw output.

Repositories are named after their hookpoint and, of a block of two streams, after the one that was read: diffusers
returns text and picture, so ``transformer_blocks.18-1`` is the picture's stream of block 18.
"""

from pathlib import Path

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import read_json, read_tensors
from .canonical import build, hookpoint_of, number, tensors_of

TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T", "bias": "b_dec"}


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE; SaeuronError where its name says that it read text."""
    path, weights = folder / "config.json", folder / "model.safetensors"
    config, stored = read_json(path), read_tensors(weights)[0]
    if "features" not in config or "pages" not in config:
        raise SaeuronError(f"{path} has no features and pages, so {weights} is no SAE that this program reads")
    d_in, n_latents = sorted((number(path, config, "features"), number(path, config, "pages")))
    tensors = tensors_of(weights, stored, TENSORS, d_in, n_latents)
    return build(path, tensors, number(path, config, "k"), "topk", hookpoint=hookpoint_of(folder))
