"""SAE checkpoints: one module per format; `load_sae` and `load_bundle` detect which."""

import re
from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..concept_table import ConceptTable
from ..errors import SaeuronError
from ..files import read_json
from ..hookpoints import SITES, Hookpoint
from ..removal import read_settings
from . import dictionary_learning, finebooru, overcomplete, saelens, saeuron, sdxl_unbox, sparsify
from .bundle import Bundle, read_bundle, save_bundle
from .saeuron import save_sae

__all__ = ["LAYOUTS", "Bundle", "load_bundle", "load_sae", "save_bundle", "save_sae"]


def _saeuron_or_sparsify(folder: Path) -> SparseAutoencoder:
    config = read_json(folder / "cfg.json")
    ours = "format" in config or not any(key in config for key in sparsify.KEYS)
    return (saeuron if ours else sparsify).load(folder)


# The file of weights, by which a folder is known → its config, who writes such folders, and what reads them.
LAYOUTS = {
    "sae.safetensors": ("cfg.json", "SAeUron, SAEmnesia, sparsify", _saeuron_or_sparsify),
    "sae_weights.safetensors": ("cfg.json", "SAELens", saelens.load),
    "state_dict.pth": ("config.json", "sdxl-unbox", sdxl_unbox.load),
    "ae.pt": ("config.json", "dictionary_learning", dictionary_learning.load),
    "model.pt": ("config.json", "overcomplete", overcomplete.load),
    "model.safetensors": ("config.json", "finebooru", finebooru.load),
}


def load_sae(path: str | Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Load an SAE from a folder of any layout in LAYOUTS, a file in one, or a bundle; ``dtype`` converts its weights.

    Raises SaeuronError naming the file and field: missing file, missing or misshapen tensor, unsupported option.
    """
    weights = _weights(Path(path))
    return _converted(read_bundle(path).sae if weights is None else _load_layout(weights), dtype)


def load_bundle(
    path: str | Path,
    dtype: torch.dtype | None = None,
    hookpoint: str | None = None,
    site: str | None = None,
    table: str | Path | None = None,
    settings: str | Path | None = None,
) -> Bundle:
    """Load whatever ``load_sae`` loads, with what goes with it.

    Of a folder that is ``table.safetensors`` and ``settings.json``, where they lie beside the weights. ``hookpoint``,
    ``site``, ``table`` and ``settings`` win over what the files say. Raises SaeuronError as ``load_sae`` does, and
    where the table is another SAE's.
    """
    weights = _weights(Path(path))
    if weights is None:
        bundle = read_bundle(path)
        bundle.sae = _converted(bundle.sae, dtype)
    else:
        bundle = Bundle(_converted(_load_layout(weights), dtype))
        beside = weights.parent / "table.safetensors", weights.parent / "settings.json"
        table, settings = (
            given or (own if own.exists() else None) for given, own in zip((table, settings), beside, strict=True)
        )
    if table is not None:
        bundle.table = _table(Path(table), bundle.sae.fingerprint)
    if settings is not None:
        bundle.settings = read_settings(settings)
    bundle.sae.hookpoint = _hookpoint(bundle.sae.hookpoint, hookpoint, site)
    return bundle


def _hookpoint(own: Hookpoint | None, name: str | None, site: str | None) -> Hookpoint | None:
    if own is None and name is None:
        return None
    return Hookpoint(name or own.name, site or (own.site if own else SITES[0]))


def _weights(path: Path) -> Path | None:
    """The file of weights that ``path`` is, or that the folder holds which it is or whose config it is.

    None where it may be a bundle. What is chosen is what is read: a file of weights stands for itself alone.
    """
    if path.is_dir():
        return _weights_in(path)
    if not path.exists():
        raise SaeuronError(f"{path} is not a folder with cfg.json and sae.safetensors")
    if path.name in LAYOUTS and (path.name != "model.safetensors" or (path.parent / "config.json").exists()):
        return path
    if re.fullmatch(r"sae_block_\d+\.pt", path.name):
        raise SaeuronError(
            f"{path} was trained on activations normalised batch by batch, and the scale is not in the file: "
            "it cannot be used"
        )
    if path.name in {config for config, _, _ in LAYOUTS.values()}:
        return _weights_in(path.parent)
    if path.suffix != ".safetensors":
        raise SaeuronError(f"{path} is not an SAE file this program reads: give a bundle (.safetensors) or a folder")
    return None


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in LAYOUTS if (folder / name).exists()]
    if found:
        return found[0]
    if (folder / "_CHECKPOINT_METADATA").exists():
        raise SaeuronError(
            f"{folder} is an Orbax checkpoint of JAX: convert it to safetensors with JAX installed first"
        )
    if (folder / "cfg.json").exists():
        return folder / "sae.safetensors"  # whose absence is then told by name
    inside = sorted(
        {found.parent for name in LAYOUTS for found in (*folder.glob(f"*/{name}"), *folder.glob(f"*/*/{name}"))}
    )
    if inside:
        raise SaeuronError(f"{folder} is not the folder of an SAE; it holds {', '.join(map(str, inside[:5]))}")
    known = "; ".join(f"{config} and {weights} ({who})" for weights, (config, who, _) in LAYOUTS.items())
    raise SaeuronError(f"{folder} is not the folder of an SAE: that would hold {known}")


def _load_layout(weights: Path) -> SparseAutoencoder:
    return LAYOUTS[weights.name][2](weights.parent)


def _converted(sae: SparseAutoencoder, dtype: torch.dtype | None) -> SparseAutoencoder:
    _ = sae.fingerprint  # taken of the file's own bytes, before any conversion
    return sae.to(dtype) if dtype else sae


def _table(path: Path, fingerprint: str) -> ConceptTable:
    table = ConceptTable.load(path)
    try:
        table.check_belongs(fingerprint)
    except SaeuronError as error:
        raise SaeuronError(f"{path}: {error}") from None
    return table
