"""sdxl-unbox: ``config.json`` and ``state_dict.pth``, trained on a block's output minus its input.

Its encoder takes the ReLU after the top-k, which gives the same values as before it. ``mean.pt`` and ``std.pt`` beside
these files are statistics of the latents, not a normalisation of the input, and are not read.
"""

from pathlib import Path

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import read_json
from .canonical import build, hookpoint_of, number, tensors_of
from .pickled import read_pickle

TENSORS = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec.T", "pre_bias": "b_dec"}
# auxk and dead_steps_threshold in the config, and this count beside the weights, belong to training only.
TRAINING_ONLY = ("stats_last_nonzero",)


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE; its hookpoint is what the folder is named after, or the one that holds a folder ``final``."""
    path, weights = folder / "config.json", folder / "state_dict.pth"
    config, content = read_json(path), read_pickle(weights)
    if not isinstance(content.get("state_dict"), dict):
        raise SaeuronError(f"{weights} lacks state_dict")
    d_in, n_latents = number(path, config, "d_model"), number(path, config, "n_dirs_local")
    tensors = tensors_of(weights, content["state_dict"], TENSORS, d_in, n_latents, TRAINING_ONLY)
    return build(path, tensors, number(path, config, "k"), "topk", hookpoint=hookpoint_of(folder, "residual"))
