"""Settings as files and as lists to try."""

import dataclasses
import itertools
from pathlib import Path

from saeuron import SaeuronError, Setting
from saeuron.files import read_json, write_json


def grid(
    latents: list[int], strengths: list[float], per_timestep: list[bool], presence: float | None = None
) -> list[Setting]:
    return [Setting(*values, presence=presence) for values in itertools.product(latents, strengths, per_timestep)]


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


def write_settings(path: Path, settings: dict[str, Setting], **notes: object) -> None:
    write_json(path, {"concepts": {name: dataclasses.asdict(s) for name, s in settings.items()}} | notes)
