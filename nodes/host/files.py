"""Where SAE files are found: ``models/saes``, any ``saes`` of extra_model_paths.yaml, and TinyCanvas's own."""

from pathlib import Path

import folder_paths

FOLDER = "saes"
EMBEDDED = Path(__file__).parents[2] / "tinycanvas" / "saes"


def register() -> None:
    """Add the folders to those ComfyUI knows; what the user has configured stays."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(EMBEDDED))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, ".safetensors"})


def names() -> list[str]:
    """The SAE files to offer; of a folder in SAeUron's layout it is the ``sae.safetensors`` inside."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name not in tables()]


def tables() -> list[str]:
    """The concept tables to offer: what `training score` writes, by its usual name."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if Path(name).name.endswith("table.safetensors")]


def path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def resolve(name: str) -> Path:
    """The SAE file of this name, or its folder where a ``cfg.json`` lies beside it."""
    file = path(name)
    return file.parent if (file.parent / "cfg.json").exists() else file
