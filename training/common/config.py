"""The resolved configuration, saved beside every output; and whether an output was made with the same one."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

from saeuron import SaeuronError
from saeuron.files import read_json, write_json


def save_config(config: object, folder: Path) -> None:
    """Write the dataclass ``config`` to ``folder``, named after its command."""
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()
    }
    write_json(Path(folder) / f"{type(config).__name__.lower()}.config.json", values)


def recipe(config: object, free: Collection[str], **more: object) -> dict:
    """What has to be the same in runs that continue each other, as it comes back from a JSON file.

    That is the dataclass ``config`` without the fields in ``free``, and ``more``.
    """
    values = {key: value for key, value in dataclasses.asdict(config).items() if key not in free} | more
    return json.loads(json.dumps(values, default=str))


def made(path: Path, recipe: dict) -> dict | None:
    """The result in ``path``, None where there is none; raises SaeuronError where its ``recipe`` was another."""
    if not path.exists():
        return None
    result = read_json(path)
    before = result.get("recipe", {})
    other = [key for key, value in recipe.items() if before.get(key) != value]
    if other:
        key = other[0]
        raise SaeuronError(
            f"{path} was made with {key} {before.get(key)} and now it is {recipe[key]}: choose another --output"
        )
    return result
