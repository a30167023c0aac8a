"""Where the atlas of an SAE lies, and what its user has written: beside the SAE, or in the user's own folder."""

import shutil
import threading
from pathlib import Path

import folder_paths
from PIL import Image

from ...saeuron import SaeuronError
from ...saeuron.atlas import labels
from ...saeuron.checkpoints import LAYOUTS
from . import files

SUFFIX = ".atlas"
LOCK = threading.Lock()
"""Held by whoever changes an atlas: a node while a workflow runs, and what the panel asks for."""


def own_folder(sae_name: str) -> Path:
    """Where what the user adds to the atlas of ``sae_name`` is written, whether or not it is there yet."""
    relative = Path(sae_name.replace("\\", "/"))
    stem = relative.parent / relative.parent.name if relative.name in LAYOUTS and relative.parent.name else relative
    return files.folder() / stem.with_name(_stem(stem) + SUFFIX)


def folder_of(sae_name: str) -> Path | None:
    """The folder of the atlas of ``sae_name``; None where there is none. The user's own wins over what came along."""
    file = files.path(sae_name)
    beside = file.with_name(file.stem + SUFFIX)
    found = (folder for folder in (own_folder(sae_name), beside) if (folder / "atlas.json").exists())
    return next(found, None)


def with_atlas() -> dict[str, bool]:
    """Every SAE by name, and whether it has an atlas."""
    return {name: folder_of(name) is not None for name in files.names()}


def folder_to_grow(sae_name: str) -> Path:
    """The user's own folder for ``sae_name``, begun as a copy of the atlas that came with the SAE where one did."""
    own, found = own_folder(sae_name), folder_of(sae_name)
    if found is not None and found != own:
        shutil.copytree(found, own, dirs_exist_ok=True)
    return own


def labels_of(sae_name: str) -> dict[str, dict]:
    """Latent → its label: those that came with the atlas, and over them the user's own."""
    found = folder_of(sae_name)
    return labels.join(labels.read(found) if found else {}, labels.read(own_folder(sae_name)))


def label(sae_name: str, latent: int, text: str) -> None:
    """Write the user's label of a latent; an empty one takes it away."""
    with LOCK:
        own = own_folder(sae_name)
        labels.write(own, labels.read(own) | {str(latent): {"text": text, "by": "you"}})


def latent_named(sae_name: str, name: str) -> int | None:
    """The latent that carries this label, if exactly one does."""
    found = [latent for latent, own in labels_of(sae_name).items() if own["text"].lower() == name.lower()]
    if len(found) > 1:
        raise SaeuronError(f"{name!r} is the label of the latents {', '.join(found[:5])}: give the number")
    return int(found[0]) if found else None


def pair_path(sae_name: str, latent: int, side: str) -> Path:
    """Where the picture of a latent turned ``up`` or ``down`` is kept."""
    return own_folder(sae_name) / "pairs" / f"{latent}-{side}.webp"


def pair_time(sae_name: str, latent: int) -> int:
    """When the pair of a latent was drawn, in milliseconds; 0 where it was not."""
    path = pair_path(sae_name, latent, "up")
    return int(path.stat().st_mtime * 1000) if path.exists() else 0


def shown_picture(shown: object) -> Image.Image:
    """A picture in ComfyUI's folder for previews, by the name that PreviewImage gave it; nothing outside is read."""
    name = shown.get("filename") if isinstance(shown, dict) else None
    root = Path(folder_paths.get_temp_directory()).resolve()
    path = (root / str(shown.get("subfolder") or "") / str(name)).resolve() if isinstance(name, str) else root
    if root not in path.parents or not path.is_file():
        raise SaeuronError("this picture is not among the previews of this session: draw the pair again")
    return Image.open(path, formats=["PNG"]).convert("RGB")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".safetensors")
