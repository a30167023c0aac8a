"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import contextlib
import glob
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import SaeuronError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary path beside ``path``, sync it and rename it into place.

    The temporary name is nobody else's. A new file gets the permissions of any new file, a replaced one keeps its own.
    Raises SaeuronError where the disk refuses; whatever stood at ``path`` before is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        open(temporary, "xb").close()  # never through a link that somebody has put there
        mode = (path if path.exists() else temporary).stat().st_mode
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(stat.S_IMODE(mode))  # safetensors writes for its own user alone
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SaeuronError(
            f"{path} could not be written: {reason}; free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Delete what writers of ``path`` left behind that were killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*.tmp"):
        number = left.name.split(".")[-3]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON object; raises SaeuronError that names the file where it is missing, broken or not an object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SaeuronError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise SaeuronError(f"{path} holds a JSON {type(content).__name__} where an object is expected")
    return content


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises SaeuronError that names the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except (OSError, SafetensorError) as error:
        raise SaeuronError(f"{path} is not a readable safetensors file: {error}") from None
