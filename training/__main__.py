"""``python -m training <command>``: the commands and their errors."""

import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported, or it speaks of torchvision

import tyro
from rich.markup import escape

from saeuron import SaeuronError

from .blocks import Blocks
from .demo import Demo
from .evaluate import Evaluate
from .generate import Generate
from .progress import console
from .record import Record
from .score import Score
from .search import Search
from .train import Train

COMMANDS = {
    "record": Record,
    "train": Train,
    "score": Score,
    "search": Search,
    "generate": Generate,
    "evaluate": Evaluate,
    "blocks": Blocks,
    "demo": Demo,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 where the user can mend something, 130 when interrupted."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m training", args=arguments).run()
    except SaeuronError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it can")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
