"""Settings as files and as lists to try."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from saeuron import SaeuronError, Setting
from saeuron.files import read_json, write_json


def read_settings(path: Path) -> dict[str, Setting]:
    """Concept → Setting; raises SaeuronError naming the file and the concept that is wrong."""
    concepts = read_json(path).get("concepts")
    if not isinstance(concepts, dict):
        raise SaeuronError(f"{path} is not a settings file: it has no `concepts`")
    found = {}
    for name, values in concepts.items():
        try:
            found[name] = Setting.parse(values)
        except (SaeuronError, TypeError) as error:
            raise SaeuronError(f"{path}, concept {name!r}: {error}") from None
    return found


def settings_of(targets: Sequence[str], path: Path | None, otherwise: Setting) -> dict[str, Setting]:
    """The setting of each target: the one in the file at ``path``, if it has one, else ``otherwise``.

    Without targets those of the file are meant. Raises SaeuronError where there is none at all.
    """
    tuned = read_settings(path) if path else {}
    settings = {name: tuned.get(name, otherwise) for name in targets or tuned}
    if not settings:
        raise SaeuronError("there is no target: give --targets or --settings")
    return settings


def write_settings(path: Path, settings: dict[str, Setting], **notes: object) -> None:
    write_json(path, {"concepts": {name: dataclasses.asdict(s) for name, s in settings.items()}} | notes)
