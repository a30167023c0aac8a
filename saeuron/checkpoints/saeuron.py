"""SAeUron's layout, a folder of ``cfg.json`` and ``sae.safetensors``, which is also what this project writes.

Ours adds keys to ``cfg.json`` (hookpoint, site, threshold, fingerprint …) and leaves the tensors as SAeUron's own code
reads them. A folder that came without those keys is written back without them, byte for byte.
"""

import json
from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import read_json, read_tensors, write_tensors, write_text
from ..hookpoints import Hookpoint

FORMAT, VERSION = "saeuron-sae", 1
TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# multi_topk changes training only; these would change what encode has to do.
UNSUPPORTED = ("sample_topk", "input_unit_norm", "transcode", "skip_connection")


def load_sae(folder: str | Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Load an SAE; ``dtype`` converts it, None keeps the file's.

    Raises SaeuronError naming the file and field: missing file, missing or misshapen tensor, unsupported option.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SaeuronError(f"{folder} is not a folder with cfg.json and sae.safetensors")
    config = read_json(folder / "cfg.json")
    if config.get("format", FORMAT) != FORMAT:
        raise SaeuronError(f"{folder / 'cfg.json'} describes a {config['format']}, not an SAE")
    if config.get("version", VERSION) != VERSION:
        raise SaeuronError(f"{folder / 'cfg.json'} has version {config['version']} and this program reads {VERSION}")
    for key in UNSUPPORTED:
        if config.get(key):
            raise SaeuronError(f"{folder / 'cfg.json'} sets {key}, which is not supported")
    if config.get("activation", "topk") != "topk":  # sparsify's key; SAeUron has none
        raise SaeuronError(f"{folder / 'cfg.json'} sets activation {config['activation']!r}, which is not supported")
    tensors, _ = read_tensors(folder / "sae.safetensors")
    missing = sorted(set(TENSORS) - set(tensors))
    if missing:
        raise SaeuronError(f"{folder / 'sae.safetensors'} lacks {', '.join(missing)}")
    try:
        d_in, k = int(config["d_in"]), int(config["k"])
        n_latents = int(config.get("num_latents") or d_in * int(config["expansion_factor"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SaeuronError(f"{folder / 'cfg.json'} has no usable value for {error}") from None

    try:
        sae = SparseAutoencoder(
            d_in,
            n_latents,
            k,
            activation="batch_topk" if config.get("batch_topk") else "topk",
            threshold=config.get("threshold"),
            hookpoint=Hookpoint(config["hookpoint"], config.get("site", "output")) if config.get("hookpoint") else None,
            base_model=config.get("base_model", ""),
        )
    except SaeuronError as error:
        raise SaeuronError(f"{folder / 'cfg.json'} does not fit: {error}") from None
    for stored, own in TENSORS.items():
        tensor, expected = tensors[stored], getattr(sae, own).shape
        if tensor.shape != expected:
            raise SaeuronError(
                f"{folder / 'sae.safetensors'} has {stored} of shape {list(tensor.shape)} "
                f"where cfg.json says {list(expected)}"
            )
        setattr(sae, own, torch.nn.Parameter(tensor, requires_grad=False))
    stated = config.get("fingerprint")
    if stated and stated != sae.fingerprint:
        raise SaeuronError(f"{folder / 'sae.safetensors'} is not the file cfg.json was written for; fetch both again")
    sae.config = config
    _ = sae.fingerprint  # taken of the file's own bytes, before any conversion
    return sae.to(dtype) if dtype else sae


def save_sae(sae: SparseAutoencoder, folder: str | Path, **notes: object) -> None:
    """Write ``sae`` to ``folder``; ``notes`` are further JSON values for ``cfg.json``, such as how it was trained."""
    folder = Path(folder)
    foreign = sae.config and "format" not in sae.config
    told_more = notes or sae.hookpoint or sae.threshold is not None or sae.base_model
    config = sae.config if foreign and not told_more else sae.config | _describe(sae) | notes
    write_tensors(folder / "sae.safetensors", {stored: getattr(sae, own) for stored, own in TENSORS.items()})
    write_text(folder / "cfg.json", json.dumps(config))


def _describe(sae: SparseAutoencoder) -> dict:
    sae._fingerprint = None
    described = {
        "expansion_factor": sae.n_latents // sae.d_in,
        "normalize_decoder": sae.config.get("normalize_decoder", True),
        "num_latents": sae.n_latents,
        "k": sae.k,
        "batch_topk": sae.activation == "batch_topk",
        "sample_topk": False,
        "input_unit_norm": False,
        "multi_topk": sae.config.get("multi_topk", False),
        "d_in": sae.d_in,
        "format": FORMAT,
        "version": VERSION,
        "threshold": sae.threshold,
        "fingerprint": sae.fingerprint,
        "base_model": sae.base_model,
    }
    if sae.hookpoint:
        described |= {"hookpoint": sae.hookpoint.name, "site": sae.hookpoint.site}
    return described
