"""Where SAE files are found: ``models/saes``, any ``saes`` of extra_model_paths.yaml, and TinyCanvas's own."""

from pathlib import Path

import folder_paths

from ...saeuron import SaeuronError
from ...saeuron.checkpoints import LAYOUTS
from ...saeuron.errors import nearest

FOLDER = "saes"
EMBEDDED = Path(__file__).parents[2] / "tinycanvas" / "saes"
FROM_FILE = "from SAE file"
"""What stands for the table that comes with the SAE, among the names of tables."""


def register() -> None:
    """Add the folders to those ComfyUI knows; what the user has configured stays."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    folder_paths.add_model_folder_path(FOLDER, str(EMBEDDED))
    paths, extensions = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {*extensions, ".safetensors", ".pth", ".pt"})


def names() -> list[str]:
    """The SAE files to offer: bundles, and of a folder in a published layout its file of weights."""
    listed = [name for name in folder_paths.get_filename_list(FOLDER) if not is_of_atlas(name)]
    return [
        name for name in listed if Path(name).name in LAYOUTS or (name.endswith(".safetensors") and not is_table(name))
    ]


def tables() -> list[str]:
    """The concept tables to offer: what `training score` writes, by its usual name."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if is_table(name)]


def path(name: str) -> Path:
    """The file of this name; raises SaeuronError with the nearest names where there is none."""
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise SaeuronError(f"{name[-60:]!r} is not in models/saes; the nearest are {nearest(name, names(), 2)}")
    return Path(found)


def usual_site(file: Path) -> str:
    """What the SAEs of a layout read where nothing says it."""
    return "residual" if file.name == "state_dict.pth" else "output"


def folder() -> Path:
    """The folder to write to: the first that is the user's own."""
    return next(Path(one) for one in folder_paths.get_folder_paths(FOLDER) if Path(one) != EMBEDDED)


def roots() -> list[str]:
    """The folders that users' files lie in, which no sentence has to spell out."""
    own = folder_paths.get_folder_paths(FOLDER)
    return [*own, *(str(Path(one).resolve()) for one in own), folder_paths.get_output_directory()]


def sources(name: str) -> list[Path]:
    """The files that are read for an SAE: the one chosen, or its whole folder where that is the weights of a layout."""
    file = path(name)
    return sorted(one for one in file.parent.iterdir() if one.is_file()) if file.name in LAYOUTS else [file]


def stamp(*paths: Path) -> tuple[tuple[str, int, int], ...]:
    """Path, time of change and size of each: the same as long as nobody has written there."""
    return tuple((str(one), (status := one.stat()).st_mtime_ns, status.st_size) for one in paths)


def is_table(name: str) -> bool:
    """Whether a file of this name is a concept table."""
    return Path(name).name.endswith("table.safetensors")


def is_of_atlas(name: str) -> bool:
    """Whether a file of this name is a part of an atlas."""
    return any(folder.endswith(".atlas") for folder in Path(name.replace("\\", "/")).parts[:-1])
