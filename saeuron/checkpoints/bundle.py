"""The bundle: one ``.safetensors`` file to share, with an SAE and all that it takes to use it.

The tensors are the SAE's and those of a CompactTable. The metadata entry ``saeuron`` is a JSON object that says what
the file is (``format``, ``version``), where the SAE reads, how it encodes, its fingerprint, tuned settings, the licence
and the model card.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..autoencoder import SparseAutoencoder
from ..compact_table import CompactTable
from ..concept_table import ConceptTable
from ..errors import SaeuronError
from ..files import parse_json, read_tensors, write_tensors
from ..formats import BundleDescription, check
from ..hookpoints import Hookpoint
from ..removal import Setting, parse_settings
from .canonical import build, tensors_of

FORMAT, VERSION = "saeuron-bundle", 1
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(eq=False)
class Bundle:
    """An SAE and what goes with it: a concept table, how each concept is removed, a card.

    ``card`` is the model card's Markdown, ``licence`` its SPDX name; both are empty where nobody said.
    """

    sae: SparseAutoencoder
    table: ConceptTable | None = None
    settings: dict[str, Setting] = field(default_factory=dict)
    card: str = ""
    licence: str = ""


def save_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write ``bundle`` to ``path``, a ``.safetensors`` file; a whole table is cut down to a CompactTable.

    Raises SaeuronError where the table is another SAE's, or a setting names a concept or latents the table lacks.
    """
    path, sae, table = Path(path), bundle.sae, bundle.table
    if path.suffix != ".safetensors":
        raise SaeuronError(f"{path} has to end in .safetensors to be found again")
    sae._fingerprint = None  # of the weights as they are now
    if table is not None:
        table.check_belongs(sae.fingerprint)
    if table is not None and not isinstance(table, CompactTable):
        contrasts = table.contrasts(sae) if table.has_contrasts else None
        table = CompactTable.of(table, sae.config.get("assignment"), contrasts)
    for concept, setting in bundle.settings.items():
        if table is not None:
            setting.selection(sae, table, concept)
    tensors = {name: getattr(sae, name) for name in TENSORS}
    if sae.activation == "jumprelu":
        tensors["threshold"] = sae.threshold
    packed, about = table.pack() if table is not None else ({}, None)
    description = {"format": FORMAT, "version": VERSION, **_describe(sae), "table": about}
    description["settings"] = {concept: setting.values() for concept, setting in bundle.settings.items()}
    description |= {"licence": bundle.licence, "card": bundle.card}
    write_tensors(path, tensors | packed, {"saeuron": json.dumps(description, ensure_ascii=False)})


def _describe(sae: SparseAutoencoder) -> dict:
    return {
        "hookpoint": sae.hookpoint.name if sae.hookpoint else None,
        "site": sae.hookpoint.site if sae.hookpoint else None,
        "base_model": sae.base_model,
        "d_in": sae.d_in,
        "n_latents": sae.n_latents,
        "k": sae.k,
        "activation": sae.activation,
        "threshold": None if sae.activation == "jumprelu" else sae.threshold,
        "fingerprint": sae.fingerprint,
        "config": sae.config,
    }


def read_bundle(path: str | Path) -> Bundle:
    """Load a bundle; SaeuronError names the file and the field where it is missing, broken or something else."""
    path = Path(path)
    tensors, metadata = read_tensors(path, endless=("contrasts.distances",))
    if "saeuron" not in metadata:
        raise SaeuronError(f"{path} is not a bundle: if it holds the weights of an SAE, give its folder instead")
    try:
        about = check(parse_json(metadata["saeuron"], "its description"), BundleDescription, "its description")
        sae = _sae(path, tensors, about)
        if about["fingerprint"] != sae.fingerprint:
            raise SaeuronError(f"its tensors have the fingerprint {sae.fingerprint}, not {about['fingerprint']}")
        table = about["table"]
        if table is not None:
            table = CompactTable.unpack(tensors, table, sae)
        return Bundle(sae, table, parse_settings(about["settings"], path), about["card"], about["licence"])
    except KeyError as error:
        raise SaeuronError(f"{path} is not a bundle: it lacks {error}") from None
    except SaeuronError as error:
        raise SaeuronError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _sae(path: Path, tensors: dict[str, torch.Tensor], about: dict) -> SparseAutoencoder:
    per_latent = about["activation"] == "jumprelu"
    names = {name: name for name in (*TENSORS, *(("threshold",) if per_latent else ()))}
    stored = {name: tensor for name, tensor in tensors.items() if not name.startswith(("table.", "contrasts."))}
    own = tensors_of(path, stored, names, about["d_in"], about["n_latents"])
    hookpoint = Hookpoint(about["hookpoint"], about["site"]) if about["hookpoint"] else None
    threshold = own["threshold"] if per_latent else about["threshold"]
    options = {"threshold": threshold, "hookpoint": hookpoint, "base_model": about["base_model"]}
    sae = build(path, own, about["k"], about["activation"], **options)
    sae.config = dict(about["config"])
    return sae
