"""``python -m training <command>``: the commands and their errors."""

import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported, or it speaks of torchvision

import tyro
from rich.console import Console
from rich.markup import escape

from saeuron import SaeuronError

from .common.processes import processes
from .common.progress import console
from .diffusion.hookpoints import Hookpoints
from .evaluation.attack import Attack
from .evaluation.evaluate import Evaluate
from .evaluation.generate import Generate
from .evaluation.nudity import Nudity
from .evaluation.sweep import Sweep
from .evaluation.unlearncanvas import UnlearnCanvas
from .league.blocks import Blocks
from .league.demo import Demo
from .league.league import League
from .league.oracle import Oracle
from .sae.record import Record
from .sae.score import Score
from .sae.train import Train
from .sharing.convert import Convert
from .sharing.hub import Pull, Push

COMMANDS = {
    "record": Record,
    "train": Train,
    "score": Score,
    "sweep": Sweep,
    "generate": Generate,
    "evaluate": Evaluate,
    "attack": Attack,
    "oracle": Oracle,
    "league": League,
    "unlearncanvas": UnlearnCanvas,
    "nudity": Nudity,
    "blocks": Blocks,
    "hookpoints": Hookpoints,
    "convert": Convert,
    "pull": Pull,
    "push": Push,
    "demo": Demo,
}
SHARED = ("record", "train", "score", "evaluate", "league", "unlearncanvas", "nudity")
"""Commands that several processes may share."""
errors = Console(stderr=True)  # every process's, where `console` is the main one's


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 where the user can mend something, 130 when interrupted."""
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m training", args=arguments)
        name = next(name for name, kind in COMMANDS.items() if isinstance(command, kind))
        if processes() > 1 and name not in SHARED:
            raise SaeuronError(f"{name} does not divide its work: start it as one process")
        command.run()
    except SaeuronError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it can")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
