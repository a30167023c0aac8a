"""One progress bar for all commands, which of several processes the main one shows."""

import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track as rich_track

from .processes import is_main

console = Console(stderr=True, quiet=not is_main(), markup=False, highlight=False)
"""Names of concepts and files are printed as they are: brackets in them are no markup."""
T = TypeVar("T")


def track(items: Sequence[T], description: str) -> Iterable[T]:
    """``items`` one after another, with a bar on a terminal and elsewhere a line at every tenth of them."""
    if console.is_terminal or not is_main():
        return rich_track(items, escape(description), console=console, disable=not is_main())
    return _told(items, description)


def _told(items: Sequence[T], description: str) -> Iterable[T]:
    began, total = time.monotonic(), len(items)
    for number, item in enumerate(items, 1):
        yield item
        if number * 10 // total > (number - 1) * 10 // total:
            seconds = time.monotonic() - began
            left = f", {seconds / number * (total - number):.0f} s left" if number < total else f" in {seconds:.0f} s"
            console.print(f"{description}: {number} of {total}{left}", soft_wrap=True, highlight=False)
