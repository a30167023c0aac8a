"""One progress bar for all commands, which of several processes the main one shows."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

from .processes import is_main

console = Console(stderr=True, quiet=not is_main())
T = TypeVar("T")


def track(items: Sequence[T], description: str) -> Iterable[T]:
    return rich_track(items, description, console=console, disable=not (console.is_terminal and is_main()))
