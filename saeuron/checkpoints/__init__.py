"""SAE checkpoints: one file a format, and the door that finds which it is."""

from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..concepts import ConceptTable
from ..errors import SaeuronError
from ..files import read_json
from . import dictionary_learning, overcomplete, saelens, saeuron, sdxl_unbox, sparsify
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
}


def load_sae(path: str | Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Load an SAE from a folder of any layout in LAYOUTS, a file in one, or a bundle; ``dtype`` converts its weights.

    Raises SaeuronError naming the file and field: missing file, missing or misshapen tensor, unsupported option.
    """
    folder = _folder(Path(path))
    return _converted(read_bundle(path).sae if folder is None else _load_folder(folder), dtype)


def load_bundle(path: str | Path, dtype: torch.dtype | None = None) -> Bundle:
    """Load whatever ``load_sae`` loads, with what goes with it.

    Of a folder that is ``table.safetensors`` and ``settings.json``, where they lie beside the weights. Raises
    SaeuronError as ``load_sae`` does, and where the table is another SAE's.
    """
    folder = _folder(Path(path))
    if folder is None:
        bundle = read_bundle(path)
        bundle.sae = _converted(bundle.sae, dtype)
        return bundle
    sae = _converted(_load_folder(folder), dtype)
    table = folder / "table.safetensors"
    return Bundle(sae, _table(table, sae.fingerprint) if table.exists() else None, _settings(folder / "settings.json"))


def _folder(path: Path) -> Path | None:
    """The folder that ``path`` is or lies in as one of a layout's files; None where it may be a bundle."""
    if path.is_dir():
        return path
    if not path.exists():
        raise SaeuronError(f"{path} is not a folder with cfg.json and sae.safetensors")
    if path.name in LAYOUTS or path.name in {config for config, _, _ in LAYOUTS.values()}:
        return path.parent
    if path.suffix != ".safetensors":
        raise SaeuronError(f"{path} is not an SAE file this program reads: give a bundle (.safetensors) or a folder")
    return None


def _load_folder(folder: Path) -> SparseAutoencoder:
    for weights, (_, _, load) in LAYOUTS.items():
        if (folder / weights).exists():
            return load(folder)
    if (folder / "cfg.json").exists():
        return _saeuron_or_sparsify(folder)
    inside = sorted(
        {found.parent for name in LAYOUTS for found in (*folder.glob(f"*/{name}"), *folder.glob(f"*/*/{name}"))}
    )
    if inside:
        raise SaeuronError(f"{folder} is not the folder of an SAE; it holds {', '.join(map(str, inside[:5]))}")
    known = "; ".join(f"{config} and {weights} ({who})" for weights, (config, who, _) in LAYOUTS.items())
    raise SaeuronError(f"{folder} is not the folder of an SAE: that would hold {known}")


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


def _settings(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    concepts = read_json(path).get("concepts")
    if not isinstance(concepts, dict) or not all(isinstance(values, dict) for values in concepts.values()):
        raise SaeuronError(f"{path} is not a settings file: it has no `concepts`, each with its settings")
    return concepts
