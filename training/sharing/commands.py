"""The options of this room's commands; what they do is imported when they run."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..common.options import Command, Kept, Reads, Shared, options


@options
class Convert(Kept, Reads, Shared):
    """Turn an SAE of any known layout into one file to share, or SAeUron's pickles into tables and settings."""

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """SAE (folder or bundle); or a concept table (.pkl) or class_params.pth of SAeUron, with --sae."""
    output: Path
    """Bundle to write (.safetensors); for a pickle the table (.safetensors) or the settings (.json)."""
    sae: Path | None = None
    """SAE that a pickled INPUT belongs to."""
    table: Path | None = None
    """Concept table to put into the bundle: one of this project, or SAeUron's .pkl."""
    settings: Path | None = None
    """Tuned settings to put into the bundle: settings.json, or SAeUron's class_params.pth."""
    base_model: str | None = None
    """Model the SAE was trained on; default what its files say."""
    kind: str | None = None
    """Kind of a pickled table's concepts: object, style or a word of your own; default what its file name says."""
    timesteps: tuple[int, ...] = ()
    """Timesteps of a pickled table, first drawn first; default DDIM's of as many steps: 991 981 … 1 for 100."""

    def run(self) -> None:
        from .convert import run

        run(self)


@options
class Pull(Command):
    """Fetch an SAE from the Hugging Face Hub, or from its cache where the hub is out of reach."""

    repository: Annotated[Positional[str], arg(metavar="REPOSITORY")]
    """Name on the hub, such as bcywinski/SAeUron."""
    hookpoint: str | None = None
    """Which SAE, where there are several: its hookpoint, or another part of its folder's or file's name."""
    revision: str = "main"
    """Branch, tag or commit. The commit it named is told and kept beside the files."""
    output: Path = Path("out/pulled")
    """Folder for the SAE's own folder or file."""

    def run(self) -> None:
        from .hub import pull

        pull(self)


@options
class Push(Command):
    """Share a bundle on the Hugging Face Hub. You have to be logged in there: `hf auth login`."""

    bundle: Annotated[Positional[Path], arg(metavar="BUNDLE")]
    """Bundle to share (.safetensors), as convert writes it."""
    repository: str
    """Name on the hub, user/name. It is made where it does not exist."""
    revision: str = "main"
    """Branch to write to."""
    private: bool = False
    """Whether a repository that has to be made is visible to you alone."""

    def run(self) -> None:
        from .hub import push

        push(self)
