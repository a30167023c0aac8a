"""SAELens 6 and later: ``cfg.json`` and ``sae_weights.safetensors``."""

from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError, nearest
from ..files import read_json, read_tensors
from ..hookpoints import Hookpoint
from .canonical import HOOKPOINT, build, hookpoint_of, number, tensors_of, without_input_bias

TENSORS = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# SAELens exports BatchTopK and its Matryoshka kind as jumprelu; `standard` is a ReLU.
ARCHITECTURES = ("jumprelu", "standard", "topk")
# Each of these would change what encoding means, unless it has the value here. dtype and device change nothing.
PLAIN = {"normalize_activations": "none", "reshape_activations": "none"}


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE; ``apply_b_dec_to_input`` false and ``rescale_acts_by_decoder_norm`` are folded into the weights."""
    path, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    config, (stored, _) = read_json(path), read_tensors(weights)
    architecture = config.get("architecture")
    if architecture not in ARCHITECTURES:
        if architecture is None:
            raise SaeuronError(f"{path} lacks architecture: load it with SAELens 6 or later and save it again")
        raise SaeuronError(
            f"{path} has architecture {architecture!r}, which is not supported; "
            f"the nearest are {nearest(str(architecture), ARCHITECTURES)}"
        )
    for key, plain in PLAIN.items():
        if config.get(key, plain) != plain:
            raise SaeuronError(f"{path} sets {key} to {config[key]!r}, which is not supported: only {plain!r} is")
    d_in, n_latents = number(path, config, "d_in"), number(path, config, "d_sae")
    names = TENSORS | ({"threshold": "threshold"} if architecture == "jumprelu" else {})
    tensors = tensors_of(weights, stored, names, d_in, n_latents)
    if config.get("rescale_acts_by_decoder_norm"):
        tensors = _with_unit_decoder(tensors)
    if not config.get("apply_b_dec_to_input", True):
        tensors = without_input_bias(tensors)
    hookpoint = _hookpoint(config) or hookpoint_of(folder)
    if architecture == "topk":
        return build(path, tensors, number(path, config, "k"), "topk", hookpoint=hookpoint)
    threshold = tensors.get("threshold", torch.zeros_like(tensors["b_enc"]))
    return build(path, tensors, n_latents, "jumprelu", threshold=threshold, hookpoint=hookpoint)


def _with_unit_decoder(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same function with decoder rows at unit norm: latents come out multiplied by what the rows are divided by."""
    norms = tensors["W_dec"].norm(dim=1).clamp(min=torch.finfo(tensors["W_dec"].dtype).tiny)
    scaled = {"W_enc": tensors["W_enc"] * norms[:, None], "b_enc": tensors["b_enc"] * norms}
    return tensors | scaled | {"W_dec": tensors["W_dec"] / norms[:, None]}


def _hookpoint(config: dict) -> Hookpoint | None:
    metadata = config.get("metadata")
    name = metadata.get("hook_name") if isinstance(metadata, dict) else None
    return Hookpoint(name) if isinstance(name, str) and HOOKPOINT.fullmatch(name) else None
