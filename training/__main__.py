"""``python -m training <command>``: the table of commands, and how their errors are told.

A command's options are imported when it is called, and what it does when it runs: help costs no torch.
"""

import importlib
import os
import sys
from contextlib import nullcontext

COMMANDS = {
    "record": ("sae", "Record"),
    "train": ("sae", "Train"),
    "score": ("sae", "Score"),
    "learn": ("sae", "Learn"),
    "atlas": ("sae", "BuildAtlas"),
    "build": ("sae", "Build"),
    "sweep": ("evaluation", "Sweep"),
    "label": ("evaluation", "Label"),
    "generate": ("evaluation", "Generate"),
    "evaluate": ("evaluation", "Evaluate"),
    "attack": ("evaluation", "Attack"),
    "oracle": ("league", "Oracle"),
    "league": ("league", "League"),
    "unlearncanvas": ("evaluation", "UnlearnCanvas"),
    "nudity": ("evaluation", "Nudity"),
    "blocks": ("league", "Blocks"),
    "hookpoints": ("diffusion", "Hookpoints"),
    "convert": ("sharing", "Convert"),
    "pull": ("sharing", "Pull"),
    "push": ("sharing", "Push"),
    "demo": ("league", "Demo"),
}
"""Command → its room, and the class of its options in the room's ``commands.py``."""
SHARED = ("record", "train", "score", "evaluate", "league", "unlearncanvas", "nudity")
"""Commands that several processes may share."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 where the user can mend something, 130 when interrupted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported, or it speaks out
    try:
        from saeuron.errors import SaeuronError

        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        except SaeuronError as error:
            _tell(f"error: {error}", everyone=True)
            return 2
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in ("", "saeuron", "tinycanvas", (__package__ or "training").split(".")[0]):
                raise
            _tell(f'error: the bench needs {package}: run `pip install ".[training]"` in its folder', everyone=True)
            return 2
    except BrokenPipeError:  # whoever read this has seen enough
        sys.stdout = None
    except KeyboardInterrupt:
        _tell("interrupted; the same command continues where it can")
        return 130
    return 0


def options(name: str) -> type:
    """The dataclass of a command's options; imports its room's ``commands.py`` alone."""
    room, kind = COMMANDS[name]
    return getattr(importlib.import_module(f".{room}.commands", __package__), kind)


def _run(arguments: list[str]) -> None:
    from saeuron.errors import SaeuronError, nearest

    from .common.processes import processes

    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    if name not in COMMANDS:
        raise SaeuronError(f"command {name!r} is unknown; the nearest are {nearest(name, COMMANDS)}")
    if processes() > 1 and name not in SHARED:
        raise SaeuronError(f"{name} does not divide its work: start it as one process")
    import tyro

    command = options(name)
    from .common.options import Long
    from .common.processes import is_main

    given = tyro.cli(command, prog=f"{_program()} {name}", args=rest, default=_from_file(command, rest))
    from .common.resume import held  # with torch, which --help does without

    lasting = isinstance(given, Long) and not given.dry_run and is_main()
    with held(given.output) if lasting else nullcontext():
        given.run()


def _from_file(command: type, arguments: list[str]) -> object:
    """The options that the file of ``--config`` gives, which the command line wins over; None where there is none."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if "--config" not in words[:-1]:
        return None
    import dataclasses
    from pathlib import Path

    import tyro

    from .common.config import read_config

    given = read_config(Path(words[words.index("--config") + 1]), command)
    lacking = [
        field.name
        for field in dataclasses.fields(command)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return command(**{name: tyro.MISSING for name in lacking} | given)


def _overview() -> str:
    lines = [f"usage: {_program()} COMMAND [OPTIONS]", "", "commands:"]
    for name in COMMANDS:
        about = " ".join(options(name).__doc__.split())
        lines.append(f"  {name:<14} {about.split('. ')[0].removesuffix('.')}.")
    return "\n".join([*lines, "", f"{_program()} COMMAND --help tells of its options."])


def _program() -> str:
    return "saeuron" if os.path.basename(sys.argv[0]) == "saeuron" else "python -m training"


def _tell(message: str, everyone: bool = False) -> None:
    from .common.processes import is_main

    if everyone or is_main():
        print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
