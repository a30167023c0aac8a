"""Pickles of dictionaries, lists, strings, numbers and tensors, and of nothing else: SAeUron's tables, torch's files.

They are read by a small machine that knows the few instructions which these need. What makes objects of a file's own
choice is not among them, keys are text and whole numbers, and no tensor is larger than what the file holds of it.
"""

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import SaeuronError

MOST = 1_000_000
"""Instructions of a pickle, and values in it. A table of a thousand concepts has thirty thousand."""
DEEPEST = 32
MAGIC = 0x1950A86A20F9469CFC6C
"""What a torch before 1.6 began its files with, and what each tensor inside a plain pickle begins with."""
KINDS = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
KINDS |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8}
KINDS |= {"Bool": torch.bool}
STORAGES = {("torch", f"{name}Storage"): dtype for name, dtype in KINDS.items()}
GIVEN = {
    *STORAGES,
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in KINDS.values()),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT", "FLOAT"}
TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}


class Unfit(Exception):
    """What a pickle says and no dictionary of tensors needs to say."""


def read_pickle(path: Path, visit: Callable[[torch.Tensor], object] = lambda tensor: tensor) -> dict:
    """The dictionary in a pickle, or in a file of ``torch.save``, with ``visit(tensor)`` in each tensor's place.

    A tensor is visited as soon as it is read and not kept besides, so that a table of many gigabytes needs memory for
    one concept. Raises SaeuronError naming the file where it is missing, broken or asks for code to be run; none is.
    """
    try:
        with open(path, "rb") as file:
            content = _read(file, Path(path).stat().st_size, visit)
    except FileNotFoundError:
        raise SaeuronError(f"{path} does not exist") from None
    except SaeuronError:
        raise
    except Exception as error:  # a broken pickle fails in as many ways as there are bytes
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise SaeuronError(f"{path} is not a pickle of tensors, numbers and strings alone: {reason}") from error
    if not isinstance(content, dict):
        raise SaeuronError(f"{path} holds a {type(content).__name__} where a dictionary is expected")
    return content


class _Global(tuple):
    """Module and name of what a pickle asks the program for, and may have."""


class _Storage:
    """The contents of a tensor, flat, as the file has them, until the tensor is made."""

    def __init__(self, kind: object, length: object, read: Callable[[], bytes | bytearray]) -> None:
        if type(kind) is not _Global or kind not in STORAGES or type(length) is not int or length < 0:
            raise Unfit("it names contents in an unknown way")
        self.dtype, self.length, self.read = STORAGES[kind], length, read
        self.bytes = length * self.dtype.itemsize

    def take(self) -> torch.Tensor:
        """The values, flat ``[length]``."""
        content = self.read()
        if len(content) != self.bytes:
            raise Unfit("one of its tensors is larger than its contents")
        return torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)


class _Clipped:
    """A file that never makes room for more than it holds, whatever it is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.tell()))

    def readline(self) -> bytes:
        return self.file.readline(4096)


def _read(file: BinaryIO, size: int, visit: Callable[[torch.Tensor], object]) -> object:
    left = 2 * size  # what tensors may take together: two may be views of the same contents

    def tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple) -> object:
        nonlocal left
        if not all(type(number) is int and 0 <= number < 2**40 for number in (offset, *shape, *stride)):
            raise Unfit("one of its tensors has no shape")
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        if len(shape) > 8 or (0 not in shape and last >= storage.length):
            raise Unfit("one of its tensors is larger than its contents")
        left -= max(storage.bytes, math.prod(shape) * storage.dtype.itemsize)
        if left < 0:
            raise Unfit("its tensors are larger than their contents")
        return visit(storage.take().as_strided(shape, stride, offset))

    if not zipfile.is_zipfile(file):
        file.seek(0)
        if file.read(2) == b"PK":
            raise Unfit("it is not whole")
        file.seek(0)
        value = _run(_Clipped(file, size), tensor)
        if value == MAGIC:
            raise Unfit("a torch before 1.6 wrote it: load it with a newer one and save it again")
        return value
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise Unfit("parts of it are compressed, as torch's never are")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise Unfit("its parts are larger than it is")
        (start,) = (name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl"))
        if f"{start}byteorder" in entries and archive.read(f"{start}byteorder") != b"little":
            raise Unfit("it was written by a big-endian machine")

        def part(name: str) -> bytearray:
            content = bytearray(entries[name].file_size)
            with archive.open(name) as entry:
                entry.readinto(content)
            return content

        def stored(sort: object, kind: object, key: object, _place: object, length: object) -> _Storage:
            return _Storage(kind, length, lambda: part(f"{start}data/{key}"))

        return _run(io.BytesIO(archive.read(f"{start}data.pkl")), tensor, stored)


def _embedded(content: bytes) -> _Storage:
    """A tensor's contents inside a plain pickle: a file of an older torch, of one storage."""
    file, taken = io.BytesIO(content), False
    if _run(file) != MAGIC:
        raise Unfit("one of its tensors is none of torch's")
    _run(file), _run(file)  # version and machine
    storage = _run(file, stored=lambda sort, kind, key, _place, length, *_: _Storage(kind, length, lambda: b""))
    _run(file)  # its name
    start = file.tell() + 8  # behind its length

    def once() -> bytearray:
        nonlocal taken
        if taken:
            raise Unfit("two of its tensors share their memory")
        taken = True
        return bytearray(memoryview(content)[start : start + storage.bytes])

    if type(storage) is not _Storage:
        raise Unfit("one of its tensors is none of torch's")
    storage.read = once
    return storage


def _run(file: object, tensor: Callable | None = None, stored: Callable[..., _Storage] | None = None) -> object:
    """The value of the pickle that begins here in ``file``; ``stored`` gives what its persistent names stand for."""
    stack: list = []
    outer: list[list] = []  # what waits below each mark
    memo: dict[int, object] = {}
    for count, (code, given, _) in enumerate(pickletools.genops(file)):
        name = code.name
        if count > MOST:
            raise Unfit("it is too long")
        if name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            items, stack = stack, outer.pop()
        if name in NUMBERS:
            if isinstance(given, int) and abs(given) >= 2**80:
                raise Unfit("it holds too large a number")
            stack.append(given)
        elif name in TEXTS:
            stack.append(given)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST"):
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "DICT":
            stack.append(_set({}, items))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "SETITEMS":
            _set(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else items
            if type(stack[-1]) is not list:
                raise Unfit("it appends to what is no list")
            stack[-1].extend(items)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            # Tensors' contents are left out: they would all stay in memory to the end.
            memo[len(memo) if name == "MEMOIZE" else given] = None if type(stack[-1]) is bytes else stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            asked = [stack.pop(), stack.pop()][::-1] if name == "STACK_GLOBAL" else given.split(" ")
            stack.append(_given(asked))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments, tensor))
        elif name == "BINPERSID" and stored is not None and type(stack[-1]) is tuple:
            stack.append(stored(*stack.pop()))
        elif name == "BUILD" and type(stack[-2]) is dict:
            stack.pop()  # a state dictionary's notes on itself
        elif name == "STOP":
            (value,) = stack
            _check_size(value)
            return value
        elif name not in ("PROTO", "FRAME"):
            raise Unfit(f"it has the instruction {name}, which tensors do not need")
    raise Unfit("it ends too early")


def _set(target: object, items: list) -> dict:
    if type(target) is not dict or len(items) % 2 or any(type(key) not in (str, int) for key in items[::2]):
        raise Unfit("it has a key that is neither text nor a whole number")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _given(asked: list) -> _Global:
    found = _Global(asked)
    if not all(type(part) is str for part in asked) or found not in GIVEN:
        name = ".".join(part[:60] if type(part) is str else "?" for part in asked)
        raise Unfit(f"it asks for {name}, which may do harm and is never given")
    return found


def _call(function: object, arguments: object, tensor: Callable | None) -> object:
    name = function[1] if type(function) is _Global else None
    match name, arguments:
        case "OrderedDict", ():
            return {}
        case "Size", (tuple(size),):
            return size
        case "device", (str(), *_):
            return "cpu"
        case "_rebuild_parameter", (value, *_):
            return value
        case "_load_from_bytes", (bytes(content),):
            return _embedded(content)
        case "_rebuild_tensor_v2", (_Storage() as storage, offset, tuple(shape), tuple(stride), *_) if tensor:
            return tensor(storage, offset, shape, stride)
    raise Unfit(f"it calls {name or 'what is no function'} in an unknown way")


def _check_size(value: object) -> None:
    """Raise Unfit where ``value`` is nested deeply, holds itself, or is large by repeating its parts."""
    layer, count = [value], 1
    for _ in range(DEEPEST):
        inside = [one.values() if type(one) is dict else one for one in layer if type(one) in (dict, list, tuple)]
        count += sum(map(len, inside))
        if count > MOST or not inside:
            break
        layer = [part for own in inside for part in own]
    if inside:
        raise Unfit("it is nested too deeply, or too large")
