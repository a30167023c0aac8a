"""What a command gives: its results on stdout, as a table that does not wrap or as JSON. Messages go to stderr."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from saeuron.files import write_json, write_text

from .options import Command
from .processes import is_main


def tell(options: Command, result: object, text: str) -> None:
    """Print ``text``, or ``result`` where the user asked for JSON; of several processes the main one does."""
    if is_main():
        print(json.dumps(result, ensure_ascii=False, default=str) if options.json else text.rstrip("\n"), flush=True)


def report(options: Command, name: str, result: dict, text: str) -> None:
    """Write ``name``.json and ``name``.md to the command's output, and print them; the main process does."""
    if is_main():
        write_json(options.output / f"{name}.json", result)
        write_text(options.output / f"{name}.md", text)
    tell(options, result, text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns as wide as what stands in them."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |".rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


@dataclass(frozen=True)
class Plan:
    """What a command would do: ``work`` counted by name, ``bytes`` on disk, ``seconds`` where they can be told.

    ``seconds`` go by one small step that was really made, and by one process.
    """

    work: dict[str, int]
    bytes: int
    seconds: float | None

    def tell(self, options: Command) -> None:
        """Print it; nothing is written."""
        tell(options, asdict(self), f"{self}\nnothing was written")

    def __str__(self) -> str:
        lines = [f"{count:,} {what}" for what, count in self.work.items()]
        lines.append(f"about {_size(self.bytes)} on disk")
        lines.append("time unknown" if self.seconds is None else f"about {_duration(self.seconds)} of work")
        return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{max(count, 1e5) / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    for length, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} seconds"
