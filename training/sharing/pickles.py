"""Pickles of dictionaries, lists, strings, numbers and tensors, and of nothing else: such are SAeUron's tables."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from saeuron import SaeuronError

# What builds objects of a file's own choice, and what asks the program for some. Tables need none of it.
_REFUSED = (
    *(pickle.BUILD, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID),
)


def read_pickle(path: Path, visit: Callable[[torch.Tensor], object] = lambda tensor: tensor) -> dict:
    """The dictionary in a pickle, or in a file of ``torch.save``, with ``visit(tensor)`` in each tensor's place.

    A tensor is visited as soon as it is read and not kept besides, so that a table of many gigabytes needs memory for
    one concept. Raises SaeuronError naming the file where it is missing, broken or asks for code to be run; none is.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
                content = {key: visit(v) if torch.is_tensor(v) else v for key, v in dict(content).items()}
            else:
                file.seek(0)
                content = _Unpickler(file, visit).load()
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except SaeuronError:
        raise
    except Exception as error:  # a broken pickle fails in as many ways as there are bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SaeuronError(f"{path} is not a pickle of tensors, numbers and strings alone: {reason}") from error
    if not isinstance(content, dict):
        raise SaeuronError(f"{path} holds a {type(content).__name__} where a dictionary is expected")
    return content


class _Storage:
    """The contents of a tensor as the file has them, until the tensor is made."""

    def __init__(self, content: bytes) -> None:
        self.content: bytes | None = content

    def take(self) -> torch.Tensor:
        """The values, flat ``[n]``."""
        if not isinstance(self.content, bytes):
            raise pickle.UnpicklingError("two of its tensors share their memory")
        storage = torch.load(io.BytesIO(self.content), map_location="cpu", weights_only=True)
        self.content = None
        return torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)


class _Memo(dict):
    """What a pickle may come back to. Tensors' contents are left out: they would all stay in memory to the end."""

    def __setitem__(self, key: int, value: object) -> None:
        super().__setitem__(key, None if isinstance(value, bytes) else value)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, since the faster one in C keeps whatever it has read."""

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED}  # noqa: RUF012

    def __init__(self, file: io.BufferedReader, visit: Callable[[torch.Tensor], object]) -> None:
        super().__init__(file)
        self.memo, self.visit = _Memo(), visit

    def find_class(self, module: str, name: str) -> Callable:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.storage", "_load_from_bytes"): _Storage,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may do harm and is never given")
        return known[module, name]

    def tensor(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *_gradient: object) -> object:
        flat = storage.take()
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(flat)):
            raise pickle.UnpicklingError("one of its tensors is larger than its contents")
        return self.visit(flat.as_strided(size, stride, offset))
