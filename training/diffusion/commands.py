"""The options of this room's commands; what they do is imported when they run."""

from typing import Annotated

from tyro.conf import Positional, arg

from ..common.options import Command, options


@options
class Hookpoints(Command):
    """List every transformer block of a model: its name, its width and how many tokens it has."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """`tinycanvas`, a diffusers folder, or a single-file checkpoint."""
    height: int | None = None
    """Height in pixels; default the model's own."""
    width: int | None = None
    """Width in pixels; default the model's own."""

    def run(self) -> None:
        from .hookpoints import run

        run(self)
