"""overcomplete's TopKSAE with its linear encoder: ``config.json`` and ``model.pt``, the model's state dict.

The dictionary's rows are brought to unit norm and multiplied by ``exp(multiplier)``; there is no decoder bias.
"""

from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..files import read_json
from .canonical import build, hookpoint_of, number, tensors_of
from .pickled import read_pickle

TENSORS = {
    "encoder.final_block.0.weight": "W_enc",
    "encoder.final_block.0.bias": "b_enc",
    "dictionary._weights": "W_dec",
}


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE; a compiled model's prefix ``_orig_mod.`` and a wrapping ``model_state_dict`` are taken off."""
    path, weights = folder / "config.json", folder / "model.pt"
    config, stored = read_json(path), read_pickle(weights)
    if isinstance(stored.get("model_state_dict"), dict):
        stored = stored["model_state_dict"]
    stored = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in stored.items()}
    d_in, n_latents = number(path, config, "input_dim"), number(path, config, "nb_concepts")
    tensors = tensors_of(weights, stored, TENSORS, d_in, n_latents, ("dictionary.multiplier",))
    rows = tensors["W_dec"]
    length = torch.as_tensor(stored.get("dictionary.multiplier", 0.0), dtype=rows.dtype).exp()
    tensors["W_dec"] = rows / (rows.norm(dim=1, keepdim=True) + 1e-8) * length  # 1e-8 as the library adds it
    tensors["b_dec"] = torch.zeros(d_in, dtype=rows.dtype)
    return build(path, tensors, number(path, config, "top_k"), "topk", hookpoint=hookpoint_of(folder))
