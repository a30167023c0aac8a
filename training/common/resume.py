"""How work is continued: the one way of all commands.

What a command makes lies in a folder, in pieces that are written whole or not at all, beside the options they are made
with. Started again with the same options, a command makes the pieces that are missing. Started with others it is
refused, and what is finished stays as it is, unless the user says ``--overwrite``.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from saeuron.errors import SaeuronError, check_same
from saeuron.files import read_json, write_json
from saeuron.formats import JournalDescription, check

from .config import MADE_WITH, config_name, option_values
from .processes import is_main, main_first, of_main

ADVICE = "choose another --output, or --overwrite to begin anew"
FREE = {"output", "device", "log_every", "checkpoint_every"}
"""Options that change nothing of what is made."""
READ = {"sae", "table", "settings", "hookpoint", "site", "recording", "stream", "model", "lora", "prompts", "init"}
"""Options that name what is read. It may lie elsewhere the next time: ``made_with`` says whether it is the same."""


def claim(
    config: object,
    folder: Path,
    *,
    free: Collection[str] = (),
    pieces: Collection[str] = (),
    name: str | None = None,
    **made_with: object,
) -> None:
    """Take ``folder`` for what is made with ``config``: before anything is made, and after all that can be checked is.

    ``made_with`` says what the options named in `READ` have read: a fingerprint, a name, or several by name, of which
    those that were known before have to be as they were. ``free`` are further options that may change. ``pieces`` are
    patterns of the files that ``--overwrite`` removes. Raises SaeuronError naming the first option that differs.
    """
    path = Path(folder) / (name or config_name(config))
    with main_first():
        if is_main() and config.overwrite:
            remove(folder, [*pieces, path.name])
        found = [own for pattern in pieces for own in sorted(path.parent.glob(pattern))]
        if found and not path.exists():
            raise SaeuronError(f"{path.parent} holds {found[0].name} already, which was made otherwise: {ADVICE}")
        if path.exists():
            before, now = check(read_json(path), JournalDescription, path), option_values(config)
            read = READ if made_with else set()
            told = {key: value for key, value in now.items() if key not in {*FREE, *read, *free}}
            check_same(path.parent, before, told, ADVICE)
            check_same(path.parent, before.get(MADE_WITH, {}), made_with, ADVICE)
            made_with = _joined(before.get(MADE_WITH, {}), made_with)
        if is_main():
            write_json(path, option_values(config) | ({MADE_WITH: made_with} if made_with else {}))


@contextmanager
def held(output: Path) -> Iterator[None]:
    """In the block nobody else makes what lies at ``output``; raises SaeuronError that says who does.

    The lock lies beside it, in ``.NAME.lock``, and ends with the process, however that ends. Where nothing can be
    written there is none, since nobody can make anything there.
    """
    from filelock import FileLock, Timeout

    output = Path(output).absolute()
    made = [folder for folder in output.parents if not folder.exists()]
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        path.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}", "utf-8")
    except Timeout:
        who = path.read_text("utf-8") if path.exists() else "another process"
        raise SaeuronError(f"{output} is being made by {who}: wait for it, or choose another --output") from None
    except OSError:
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)
            lock.release()
        for folder in made:  # which nothing was put into
            with suppress(OSError):
                folder.rmdir()


def _joined(before: Mapping[str, object], now: Mapping[str, object]) -> dict:
    several = {key: before[key] | value for key, value in now.items() if isinstance(value, dict) and key in before}
    return {**before, **now, **several}


def remove(folder: Path, pieces: Collection[str]) -> None:
    """Remove the files and folders under ``folder`` that match ``pieces``."""
    for pattern in pieces:
        for path in sorted(Path(folder).glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def piece(path: Path, make: Callable[[], dict]) -> dict:
    """The finished piece at ``path``, or what ``make`` gives, then written there by the main process.

    All processes call this together; each gets the main one's.
    """
    found = of_main(read_json(path) if is_main() and path.exists() else None)
    if found is None:
        found = make()
        if is_main():
            write_json(path, found)
    return found
