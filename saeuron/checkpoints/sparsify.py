"""EleutherAI's sparsify: SAeUron's layout with three more keys, each of which may change what encoding means."""

from pathlib import Path

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import read_json
from . import saeuron

KEYS = ("activation", "skip_connection", "transcode")


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE. Transcoders, skip connections (``W_skip``) and ``groupmax`` are refused, each by its key."""
    path = folder / "cfg.json"
    config = read_json(path)
    for key in ("skip_connection", "transcode"):
        if config.get(key):
            raise SaeuronError(f"{path} sets {key}, which is not supported: only autoencoders are")
    if config.get("activation", "topk") != "topk":
        raise SaeuronError(f"{path} sets activation {config['activation']!r}, which is not supported: only topk is")
    return saeuron.load(folder)
