"""How a good file is spoilt: at random in its bytes, and on purpose in what its format says."""

import copy
import io
import json
import pickle
import random
import struct
import zipfile

HOSTILE = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 50_000_000, 10**30, 0.5, -1e300, float("nan"), float("inf"), "",
    "x" * 10_000, "../x", "/etc/hostname", "a\nb", "<img src=x onerror=alert(1)>", "[/x]", "$", "a,b:c", "\ud800", "\0",
    [], {}, [[]], {"a": {}}, [1, 2, 3], "many", "1", "false",
]  # fmt: skip
RAW = ["1e400", "9" * 5000, "[" * 100_000, '{"a":' * 50_000, "NaN", "-Infinity", '"\\ud800"', "[" * 90 + "]" * 90]
DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "BOOL", "F8_E4M3", "F8_E5M2", "X"]


def spoilt_bytes(content: bytes, rng: random.Random) -> bytes:
    """``content`` with a few bytes changed, cut out, repeated or put in."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1) if found else 0
        length = rng.choice([1, 1, 2, 8, 64])
        match rng.randrange(7):
            case 0 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + length] = rng.randbytes(length)
            case 2:
                del found[at:]
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                found[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**16, 2**31, 2**40, 2**63 - 1, 2**64 - 1]))
            case _:
                found[at:at] = rng.choice([b"\xff\xfe", b"{", b"]", b'"', b"\0" * 8, b"\xf0\x9f", b"-", b"e999"])
    return bytes(found)


def _places(value: object, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


def spoilt_value(value: object, rng: random.Random) -> object:
    """A JSON value in which one part is missing, renamed, of another kind or absurd; often more than one."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *path, last = rng.choice([place for place in _places(value) if place] or [(None,)])
        if last is None:
            return copy.deepcopy(rng.choice(HOSTILE))
        within = value
        for key in path:
            within = within[key]
        match rng.randrange(5):
            case 0:
                del within[last]
            case 1 if isinstance(within, dict):
                within[rng.choice([own for own in HOSTILE if isinstance(own, str)])] = within.pop(last)
            case 2 if isinstance(within[last], int | float) and not isinstance(within[last], bool):
                within[last] = rng.choice([-within[last], within[last] + 1, within[last] * 10**6, str(within[last])])
            case _:
                within[last] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def spoilt_json(content: bytes, rng: random.Random) -> bytes:
    text = json.dumps(spoilt_value(json.loads(content), rng))
    if rng.random() < 0.2:  # what no writer of JSON would write
        starts = [n for n, sign in enumerate(text) if sign in ":[,"] or [0]
        at = rng.choice(starts) + 1
        text = text[:at] + rng.choice(RAW) + rng.choice(["", text[at:]])
    return text.encode("utf-8", "surrogatepass")


def spoilt_tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or with numbers that are none."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    own = header[rng.choice(names)] if names else {}
    match rng.randrange(9):
        case 0 if "__metadata__" in header:
            said, key = header["__metadata__"], next(iter(header["__metadata__"]))
            said[key] = spoilt_json(said[key].encode(), rng).decode("utf-8", "replace")
        case 1 if own:
            own["shape"] = rng.choice([[], [0], [2**40], [50_000_000, 16], [0, 2**62], own["shape"][::-1], [-1], "x"])
        case 2 if own:
            own["dtype"] = rng.choice(DTYPES)
        case 3 if own:
            own["data_offsets"] = rng.choice([[0, 0], [0, len(data)], [8, 4], [0, 2**62], own["data_offsets"][::-1]])
        case 4 if own and own["data_offsets"][1] > own["data_offsets"][0]:
            start, end = own["data_offsets"]
            width = {"F64": 8, "F32": 4, "I64": 8, "I32": 4}.get(own["dtype"], 2)
            at = rng.randrange(start, end, width)
            numbers = {8: "<d", 4: "<f", 2: "<e"}[width]
            data[at : at + width] = struct.pack(numbers, rng.choice([float("nan"), float("inf"), -1.0, 6e4, 0.0]))
        case 5 if own and own["data_offsets"][1] > own["data_offsets"][0]:
            start, end = own["data_offsets"]
            data[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)
        case 6 if names:
            header[rng.choice(["surprise", "table.x", "contrasts.x", "../x"])] = header.pop(rng.choice(names))
        case 7 if names:  # another kind of numbers, and as many bytes as it needs
            own["shape"], own["dtype"] = [rng.choice([0, 1, 3]) for _ in own["shape"]], rng.choice(DTYPES[:12])
            return _empty(header, names)
        case _:
            header = spoilt_value(header, rng)
    encoded = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + bytes(data)


def _empty(header: dict, names: list[str]) -> bytes:
    """A file of these shapes, all zeros."""
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
    place = 0
    for name in names:
        count = 1
        for length in header[name]["shape"]:
            count *= length
        size = count * sizes.get(header[name]["dtype"], 1)
        header[name]["data_offsets"] = [place, place + size]
        place += size
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(place)


class _Harm:
    def __reduce__(self):
        import os

        return os.mkdir, ("harm",)


def hostile_pickle(rng: random.Random) -> bytes:
    """A pickle that nobody writes by accident."""
    storage = b"\x80\x02}q\x00X\x01\x00\x00\x00acollections\nOrderedDict\n)R"
    deep = rng.choice([20, 200, 5000])
    return rng.choice(
        [
            pickle.dumps({"a": _Harm()}, rng.randint(0, 5)),
            b"\x80\x04}()q\0" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(40)) + b"K\x01u.",
            b"\x80\x04}(X\x01\0\0\0a)q\0" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(40)) + b"u.",
            b"\x80\x04}(" + b")" + b"\x85" * deep + b"K\x01u.",
            b"\x80\x04}(X\x01\x00\x00\x00a" + b")" + b"\x85" * deep + b"u.",
            b"\x80\x04}(X\x01\x00\x00\x00a" + b"]" * min(deep, 20_000) + b"a" * (min(deep, 20_000) - 1) + b"u.",
            b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
            b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
            b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b".",
            b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
            b"\x80\x04}q\x00(X\x01\x00\x00\x00ah\x00u.",
            b"\x80\x04]q\x00" + b"(h\x00h\x00e" * 40 + b".",
            b"}" * rng.choice([10, 5000]) + b".",
            b"cos\nsystem\n(S'mkdir harm'\ntR.",
            b"(dp0\nI" + b"9" * 5000 + b"\nI1\ns.",
            b"\x80\x02}(K\x01K\x01X\x01\x00\x00\x001K\x02u.",
            b"\x80\x02}(G\x7f\xf8\0\0\0\0\0\0K\x01u.",
            storage + b"(ctorch._utils\n_rebuild_tensor_v2\n(K\x01tRu.",
        ]
    )


def spoilt_torch(content: bytes, rng: random.Random) -> bytes:
    """A file of ``torch.save`` with another pickle inside, packed again as it should be, or not."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    inner = next(name for name in parts if name.endswith("data.pkl"))
    match rng.randrange(6):
        case 0:
            parts[inner] = hostile_pickle(rng)
        case 1:
            name = rng.choice(list(parts))
            parts[name] = rng.choice([b"", parts[name] * 2, parts[name][:-1], bytes(20_000)])
        case 2:
            parts[inner] = _other_numbers(parts[inner], rng)
        case 3:
            name = rng.choice(list(parts))
            parts[rng.choice(["../x", "/tmp/x", "data.pkl", name + "x"])] = parts.pop(name)
        case _:
            parts[inner] = spoilt_bytes(parts[inner], rng)
    packed, sort = io.BytesIO(), rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])
    if sort == zipfile.ZIP_DEFLATED:
        parts = {name: part if name.endswith(".pkl") else bytes(40_000) for name, part in parts.items()}
    with zipfile.ZipFile(packed, "w", sort) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return packed.getvalue()


def _other_numbers(content: bytes, rng: random.Random) -> bytes:
    """Another size, stride or offset: one of the small numbers in a pickle is another, or a huge one."""
    places = [n for n in range(len(content) - 1) if content[n] in b"KM"]
    at = rng.choice(places)
    number = rng.choice(
        [b"K\x00", b"K\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"]
    )
    return content[:at] + number + content[at + (2 if content[at] == ord("K") else 3) :]


def spoilt(name: str, content: bytes, rng: random.Random) -> bytes:
    """The file ``name`` of this ``content``, spoilt in a way that its format may fall for."""
    ending = name.rpartition(".")[2]
    if rng.random() < 0.3:
        return spoilt_bytes(content, rng)
    if ending == "json":
        return spoilt_json(content, rng)
    if ending == "jsonl":
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = spoilt_json(lines[at], rng)
        return b"\n".join(lines)
    if ending == "safetensors":
        return spoilt_tensors(content, rng)
    if ending in ("pth", "pt"):
        return spoilt_torch(content, rng)
    if ending == "pkl":
        return hostile_pickle(rng) if rng.random() < 0.3 else _other_numbers(content, rng)
    return spoilt_bytes(content, rng)
