"""Settings of the targets of a command."""

from collections.abc import Sequence
from pathlib import Path

from saeuron import SaeuronError, Setting, read_settings


def settings_of(targets: Sequence[str], path: Path | None, otherwise: Setting) -> dict[str, Setting]:
    """The setting of each target: the one in the file at ``path``, if it has one, else ``otherwise``.

    Without targets those of the file are meant. Raises SaeuronError where there is none at all.
    """
    tuned = read_settings(path) if path else {}
    settings = {name: tuned.get(name, otherwise) for name in targets or tuned}
    if not settings:
        raise SaeuronError("there is no target: give --targets or --settings")
    return settings
