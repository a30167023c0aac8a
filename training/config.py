"""The resolved configuration, saved beside every output."""

import dataclasses
from pathlib import Path

from saeuron.files import write_json


def save_config(config: object, folder: Path) -> None:
    """Write the dataclass ``config`` to ``folder``, named after its command."""
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()
    }
    write_json(Path(folder) / f"{type(config).__name__.lower()}.config.json", values)
