"""dictionary_learning: ``config.json`` (what matters is under ``trainer``) and ``ae.pt``."""

from pathlib import Path

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError, nearest
from ..files import read_json
from ..hookpoints import Hookpoint
from .canonical import HOOKPOINT, build, hookpoint_of, number, scalar, tensors_of, without_input_bias
from .pickled import read_pickle

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T", "b_dec": "b_dec"}
PLAIN = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# dict_class → names of the tensors, activation, and further tensors that are read here or belong to training only.
CLASSES = {
    "AutoEncoderTopK": (LINEAR, "topk", ("k", "threshold")),
    "BatchTopKSAE": (LINEAR, "batch_topk", ("k", "threshold")),
    "MatryoshkaBatchTopKSAE": (PLAIN, "batch_topk", ("k", "threshold", "group_sizes")),
    "JumpReluAutoEncoder": (PLAIN | {"threshold": "threshold"}, "jumprelu", ()),
}


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE, also from a training backup, whose ``ae`` is in normalised units where it gives a ``norm_factor``.

    A BatchTopK threshold below 0 is one that training never set; such an SAE runs as top-k.
    """
    path, weights = folder / "config.json", folder / "ae.pt"
    config, stored = read_json(path).get("trainer"), read_pickle(weights)
    if not isinstance(config, dict):
        raise SaeuronError(f"{path} lacks trainer")
    dict_class = config.get("dict_class")
    if not isinstance(dict_class, str) or dict_class not in CLASSES:
        raise SaeuronError(
            f"{path} has dict_class {dict_class!r}, which is not supported; "
            f"the nearest are {nearest(str(dict_class), CLASSES)}"
        )
    scale = 1.0
    if isinstance(stored.get("ae"), dict):
        scale = scalar(weights, stored, "norm_factor", 1.0)
        stored = stored["ae"]
    names, activation, others = CLASSES[dict_class]
    d_in, n_latents = number(path, config, "activation_dim"), number(path, config, "dict_size")
    tensors = tensors_of(weights, stored, names, d_in, n_latents, others)
    for name in {"b_enc", "b_dec", "threshold"} & tensors.keys():
        tensors[name] = tensors[name] * scale
    hookpoint = _hookpoint(config) or hookpoint_of(folder)
    if activation == "jumprelu":
        tensors = without_input_bias(tensors)
        return build(path, tensors, n_latents, activation, threshold=tensors["threshold"], hookpoint=hookpoint)
    k = int(scalar(weights, stored, "k", 0)) or number(path, config, "k")
    threshold = scalar(weights, stored, "threshold", -1.0)
    threshold = threshold * scale if activation == "batch_topk" and threshold >= 0 else None
    return build(path, tensors, k, activation, threshold=threshold, hookpoint=hookpoint)


def _hookpoint(config: dict) -> Hookpoint | None:
    name = config.get("submodule_name")
    return Hookpoint(name) if isinstance(name, str) and HOOKPOINT.fullmatch(name) else None
