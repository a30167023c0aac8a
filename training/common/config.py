"""A command's options as a file: saved beside every output, and read again with ``--config``."""

import dataclasses
import json
import reprlib
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from saeuron.errors import SaeuronError, nearest

ONCE = {"config", "json", "overwrite", "dry_run"}
"""Options that say how one call goes, and nothing of what it makes: they are not saved."""
MOST = 1_000_000
"""Characters of a YAML file, which is read slowly."""
MADE_WITH = "made_with"
"""Where a saved file holds what was read for it: fingerprints and names, which no option says."""


def option_values(config: object) -> dict:
    """Every option that says what is made, as a JSON file gives it back."""
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in ONCE}
    return json.loads(json.dumps(found, default=str))


def config_name(config: object) -> str:
    """The name of the file that the options of a command are saved in."""
    return f"{type(config).__name__.lower()}.config.json"


def save_config(config: object, folder: Path) -> None:
    """Write ``config`` to ``folder``, named after its command."""
    from saeuron.files import write_json

    write_json(Path(folder) / config_name(config), option_values(config))


def read_config(path: Path, command: type) -> dict[str, object]:
    """The options of ``command`` that a file gives, JSON or YAML, in their own types.

    Raises SaeuronError naming the file, and the key that ``command`` does not have or whose value it cannot have.
    """
    hints = get_type_hints(command, include_extras=True)
    known = [field.name for field in dataclasses.fields(command) if field.name not in ONCE]
    found = {}
    for key, value in _read(path).items():
        name = str(key).replace("-", "_")
        if name == MADE_WITH:
            continue
        if name not in known:
            raise SaeuronError(f"{path}: {key!r} is no option of this command; the nearest are {nearest(name, known)}")
        try:
            found[name] = _typed(value, hints[name])
        except (TypeError, ValueError, OverflowError):
            raise SaeuronError(f"{path}: {key} is {reprlib.repr(value)} and has to be {_plain(hints[name])}") from None
    return found


def _read(path: Path) -> dict:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"--config {path} could not be read: {getattr(error, 'strerror', None) or error}") from None
    from saeuron.files import parse_json

    try:
        if path.suffix == ".json":
            content = parse_json(text, path)
        else:
            import yaml

            if len(text) > MOST:
                raise ValueError(f"it is longer than {MOST} characters")

            content = yaml.safe_load(text)
    except SaeuronError:
        raise
    except ImportError as error:
        raise SaeuronError(f"--config {path} needs a package to be read: pip install pyyaml, or give JSON") from error
    except Exception as error:  # what a YAML parser raises is its own
        raise SaeuronError(f"--config {path} is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SaeuronError(f"--config {path} has to hold options by name")
    return content


def _typed(value: object, hint: Any) -> object:
    """``value`` as a JSON or YAML file has it, in the type that ``hint`` says; raises TypeError or ValueError."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _typed(value, inside[0])
    if kind in (Union, types.UnionType):
        return None if value is None else _typed(value, next(one for one in inside if one is not type(None)))
    if kind is tuple:
        return tuple(_typed(one, inside[0]) for one in (value if isinstance(value, list) else [value]))
    if isinstance(value, dict | list) or value is None or (hint is not bool and isinstance(value, bool)):
        raise TypeError
    if hint is bool and not isinstance(value, bool):
        raise TypeError
    if hint is int and float(value) != int(value):
        raise ValueError
    return hint(value)


def _plain(hint: Any) -> str:
    """What a value has to be, in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _plain(inside[0])
    if kind in (Union, types.UnionType):
        return f"{_plain(next(one for one in inside if one is not type(None)))} or nothing"
    if kind is tuple:
        return f"a list, each {_plain(inside[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}.get(hint, "text")
