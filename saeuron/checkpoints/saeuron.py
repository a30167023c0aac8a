"""SAeUron's layout, a folder of ``cfg.json`` and ``sae.safetensors``, which is also what this project writes.

Ours adds keys to ``cfg.json`` (hookpoint, site, threshold, fingerprint …) and leaves the tensors as SAeUron's own code
reads them; an activation that SAeUron does not have is named there too, and ``jumprelu`` adds the tensor ``threshold``.
A folder that came without those keys is written back without them, byte for byte. SAEmnesia's are the same, some with
``d_model`` and ``n_dirs_local`` for ``d_in`` and ``num_latents``.
"""

import json
from pathlib import Path

from ..autoencoder import SparseAutoencoder
from ..errors import SaeuronError
from ..files import read_json, read_tensors, write_tensors, write_text
from ..formats import SaeDescription, check
from ..hookpoints import Hookpoint
from .canonical import build, hookpoint_of, number, tensors_of

FORMAT, VERSION = "saeuron-sae", 1
TENSORS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
# multi_topk changes training only; these would change what encode has to do.
UNSUPPORTED = ("sample_topk", "input_unit_norm")


def load(folder: Path) -> SparseAutoencoder:
    """Load an SAE; where its config does not say where it reads, a folder named after a hookpoint does.

    Raises SaeuronError naming the file and field: missing file, missing or misshapen tensor, unsupported option.
    """
    path, weights = folder / "cfg.json", folder / "sae.safetensors"
    config = check(read_json(path), SaeDescription, path)
    for key in UNSUPPORTED:
        if config.get(key):
            raise SaeuronError(f"{path} sets {key}, which is not supported")
    activation = config.get("activation", "topk")
    if activation == "topk" and config.get("batch_topk"):
        activation = "batch_topk"
    d_in = number(path, config, "d_model", "d_in")
    sizes = config | {"expanded": d_in * config.get("expansion_factor", 0)}
    n_latents = number(path, sizes, "num_latents", "n_dirs_local", "expanded")
    names = TENSORS | ({"threshold": "threshold"} if activation == "jumprelu" else {})
    tensors = tensors_of(weights, read_tensors(weights)[0], names, d_in, n_latents)
    threshold = tensors["threshold"] if activation == "jumprelu" else config.get("threshold")
    options = {"threshold": threshold, "hookpoint": _hookpoint(config, folder)}
    sae = build(path, tensors, config["k"], activation, base_model=config.get("base_model", ""), **options)
    stated = config.get("fingerprint")
    if stated and stated != sae.fingerprint:
        raise SaeuronError(f"{weights} is not the file cfg.json was written for; fetch both again")
    sae.config = config
    return sae


def _hookpoint(config: dict, folder: Path) -> Hookpoint | None:
    site = config.get("site", "output")
    return Hookpoint(config["hookpoint"], site) if config.get("hookpoint") else hookpoint_of(folder, site)


def save_sae(sae: SparseAutoencoder, folder: str | Path, **notes: object) -> None:
    """Write ``sae`` to ``folder``; ``notes`` are further JSON values for ``cfg.json``, such as how it was trained."""
    folder = Path(folder)
    foreign = sae.config and "format" not in sae.config
    read_elsewhere = sae.hookpoint and sae.hookpoint != _hookpoint(sae.config, folder)
    told_more = notes or read_elsewhere or sae.threshold is not None or sae.base_model
    config = sae.config if foreign and not told_more else sae.config | _describe(sae) | notes
    names = TENSORS | ({"threshold": "threshold"} if sae.activation == "jumprelu" else {})
    write_tensors(folder / "sae.safetensors", {stored: getattr(sae, own) for stored, own in names.items()})
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
        "threshold": None if sae.activation == "jumprelu" else sae.threshold,
        "fingerprint": sae.fingerprint,
        "base_model": sae.base_model,
    }
    if sae.activation not in ("topk", "batch_topk"):
        described["activation"] = sae.activation
    if sae.hookpoint:
        described |= {"hookpoint": sae.hookpoint.name, "site": sae.hookpoint.site}
    return described
