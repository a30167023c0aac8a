"""Where the atlas of an SAE lies, and what its user has written: beside the SAE, or in the user's own folder."""

import shutil
import threading
from pathlib import Path

import folder_paths
from PIL import Image

from ...saeuron import SaeuronError
from ...saeuron.atlas import labels
from ...saeuron.atlas.folder import read_about
from ...saeuron.checkpoints import LAYOUTS
from . import files, headers

SUFFIX = ".atlas"
LARGEST = 8192
"""Pixels of a side of a picture that is made smaller."""
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


def checked_folder(sae_name: str) -> Path:
    """`folder_of`; raises SaeuronError where there is none, and where it is the atlas of another SAE."""
    folder = folder_of(sae_name)
    if folder is None:
        raise SaeuronError(f"{sae_name} has no atlas yet: build one with `training atlas` or Atlas Recorder")
    if read_about(folder)["fingerprint"] != headers.sae_of(sae_name).fingerprint:
        raise SaeuronError(f"{folder} is the atlas of another SAE than {sae_name}: build one for it")
    return folder


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
    try:
        path = (root / str(shown.get("subfolder") or "") / name).resolve() if isinstance(name, str) else root
        found = root in path.parents and path.is_file()
    except (OSError, ValueError):  # names that no file can have
        found = False
    if not found:
        raise SaeuronError("this picture is not among the previews of this session: draw the pair again")
    try:
        image = Image.open(path, formats=["PNG"])
        if max(image.size) <= LARGEST:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises at what is none, or is broken off
        raise SaeuronError("this picture cannot be read: draw the pair again") from error
    raise SaeuronError(f"this picture is {image.width} × {image.height} pixels, and {LARGEST} a side are the most")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".safetensors")
