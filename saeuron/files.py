"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

import contextlib
import glob
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import SaeuronError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEEPEST = 64
"""How deep a JSON file may be nested. Ours are five deep."""


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
        # torch puts an error of its own over the disk's.
        reason = next((own.strerror for own in (error, error.__context__) if isinstance(own, OSError)), None)
        raise SaeuronError(
            f"{path} could not be written: {reason or error}; free some space or choose another folder"
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
        return parse_json(Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SaeuronError(f"{path} is not readable JSON: {error}") from None


def parse_json(text: str, path: object) -> dict:
    """The JSON object in ``text``, all its numbers finite; raises SaeuronError naming ``path``, where it was read."""
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite, parse_int=_whole)
        _check_depth(content, DEEPEST)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair could not be printed or written again
    except RecursionError:
        raise SaeuronError(f"{path} is nested too deeply to be read as JSON") from None
    except ValueError as error:
        raise SaeuronError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise SaeuronError(f"{path} holds a JSON {type(content).__name__} where an object is expected")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:  # of which 64 bits need no more
        raise ValueError(f"{text[:20]}… is too large a number")
    return int(text)


def _check_depth(content: object, left: int) -> None:
    if left == 0:
        raise RecursionError
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _check_depth(part, left - 1)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_tensors(path: Path, endless: Collection[str] = ()) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises SaeuronError that names the file.

    One that holds a NaN or an infinity is refused too, in any tensor but those called ``endless``.
    """
    tensors, metadata = {}, {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except Exception as error:  # torch has its own for shapes and kinds of numbers that it does not know
        raise SaeuronError(f"{path} is not a readable safetensors file: {error}") from None
    check_finite({name: tensor for name, tensor in tensors.items() if name not in endless}, path)
    return tensors, metadata


def check_finite(tensors: Mapping[object, object], path: object) -> None:
    """Raise SaeuronError naming ``path`` and the first of its ``tensors`` that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            if tensor.dtype not in FLOATS:
                raise SaeuronError(f"{path} holds {name} as {tensor.dtype}, which is not supported")
            # It allocates nothing, and gives NaN where there is one.
            if tensor.numel() and not all(math.isfinite(one) for one in tensor.aminmax()):
                raise SaeuronError(f"{path} holds numbers in {name} that are not finite")
