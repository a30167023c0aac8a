"""The import rule of the design, checked on the source text: who may import whom, and in which way."""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]

# Folder → the other folders of the project that it may import. "" is the root, ComfyUI's door. Tests import anything.
MAY_IMPORT = {
    "": {"nodes"},
    "nodes": {"saeuron", "tinycanvas"},
    "training": {"saeuron", "tinycanvas"},
    "benchmarks": {"saeuron", "tinycanvas", "training"},
    "saeuron": set(),
    "tinycanvas": set(),
}
PROJECT = MAY_IMPORT.keys() | {"tests"}

# Inside the bench, room → the rooms it may import. What stands in no room (the table of commands) may import all.
ROOMS = {
    "common": set(),
    "diffusion": {"common"},
    "sae": {"common", "diffusion"},
    "evaluation": {"common", "diffusion", "sae"},
    "league": {"common", "diffusion", "sae", "evaluation"},
    "sharing": {"common"},
}
LONGEST = 300
"""Lines that a file may have: more do not fit into one head."""

# ComfyUI loads these under a name of its own choice, and has a module `nodes` itself. The others run from the root.
RELATIVE = {"", "nodes", "saeuron", "tinycanvas"}

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths"}
NO_HOSTS = {"saeuron": COMFYUI | {"diffusers"}, "tinycanvas": COMFYUI}


def imported(source: str, folders: list[str]) -> Iterator[tuple[int, bool, str]]:
    """Each import of a file in ``folders``: its line, whether it is relative, and the top-level name it reaches."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, False, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            up = max(node.level - 1, 0)
            base = folders[: len(folders) - up] if node.level else []
            module = node.module.split(".") if node.module else []
            if up > len(folders):
                names = ["something outside the project"]
            else:
                names = [*base, *module][:1] or [alias.name for alias in node.names]
            for name in names:
                yield node.lineno, node.level > 0, name


def modules(source: str, path: str, inner: bool = True) -> Iterator[tuple[int, str]]:
    """Each import in ``source``, if it stood at ``path``, of another module of the project: its line and full name.

    ``inner`` counts those inside functions too.
    """
    package = [*PurePosixPath(path).parts[:-1]]
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = {id(part) for function in ast.walk(tree) if isinstance(function, kinds) for part in ast.walk(function)}
    for node in ast.walk(tree):
        if not inner and id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in PROJECT)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            if full and full[0] in PROJECT:
                yield from ((node.lineno, ".".join([*full, alias.name])) for alias in node.names)


def wrong_rooms(source: str, path: str) -> list[str]:
    """Imports in ``source``, if it stood at ``path`` in the bench, of rooms that its own room may not import."""
    room = PurePosixPath(path).parts[1]
    found = []
    for line, name in modules(source, path):
        other = name.split(".")[1] if name.startswith("training.") else room
        if room in ROOMS and other in ROOMS and other != room and other not in ROOMS[room]:
            found.append(f"{path}:{line}: {room} must not import {other}")
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Chains of modules that import each other; ``imports`` is module → those it imports, wherever in its text."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, chain: list[str]) -> None:
        if name in chain:
            found.append([*chain[chain.index(name) :], name])
        elif name not in done:
            for other in sorted(imports.get(name, ())):
                walk(other, [*chain, name])
            done.add(name)

    for name in sorted(imports):
        walk(name, [])
    return found


def violations(source: str, path: str) -> list[str]:
    """What breaks the import rule in ``source``, if it stood at ``path`` (relative to the root)."""
    folders = list(PurePosixPath(path).parts[:-1])
    home = folders[0] if folders else ""
    found = []
    for line, relative, name in imported(source, folders):
        ours = relative or name in PROJECT
        if name in NO_HOSTS.get(home, ()) or (ours and name != home and name not in MAY_IMPORT[home]):
            found.append(f"{path}:{line}: {home or 'the root'} must not import {name}")
        elif ours and home in RELATIVE and not relative:
            found.append(f"{path}:{line}: import {name} relatively")
        elif ours and home not in RELATIVE and relative and name != home:
            found.append(f"{path}:{line}: import {name} absolutely")
    return found


def project_files() -> dict[str, str]:
    """Path relative to the root → text of every module of the project but the tests."""
    files = [*ROOT.glob("*.py"), *(file for folder in MAY_IMPORT if folder for file in (ROOT / folder).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def test_every_file_keeps_the_import_rule():
    files = project_files()
    assert "__init__.py" in files
    found = [complaint for path, text in files.items() for complaint in violations(text, path)]
    assert not found, "\n".join(found)


def test_every_room_of_the_bench_imports_only_rooms_below_it():
    files = {path: text for path, text in project_files().items() if path.startswith("training/")}
    assert {PurePosixPath(path).parts[1] for path in files} >= ROOMS.keys()
    found = [complaint for path, text in files.items() for complaint in wrong_rooms(text, path)]
    assert not found, "\n".join(found)


def test_no_modules_import_each_other_in_a_circle():
    files = project_files()
    known = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    imports = {}
    for name, path in known.items():
        # A command imports what it runs when it is called, so imports inside functions make no circle.
        others = {other for _, other in modules(files[path], path, inner=False)}
        imports[name] = {n for other in others for n in (other, other.rpartition(".")[0]) if n in known and n != name}
    packages = {name for name, path in known.items() if path.endswith("__init__.py")}
    # A package's own __init__ imports its modules, which is no circle unless they ask it for something back.
    plain = {name: others - packages for name, others in imports.items() if name not in packages}
    assert circles(plain) == []


def test_no_file_is_longer_than_fits_into_one_head():
    long = [
        f"{path}: {text.count(chr(10))} lines" for path, text in project_files().items() if text.count("\n") > LONGEST
    ]
    assert not long, "\n".join(long)


def test_a_circle_and_a_wrong_room_are_caught():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []
    (found,) = wrong_rooms("from ..league.demo import x\nfrom ..common import y", "training/sae/a.py")
    assert found == "training/sae/a.py:1: sae must not import league"
    assert wrong_rooms("from .sae.train import x", "training/__main__.py") == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("nodes/a.py", "from ..training import x", "must not import training"),
        ("nodes/deep/a.py", "from ... import saeuron, training", "must not import training"),
        ("nodes/a.py", "from ....x import y", "must not import something outside the project"),
        ("nodes/a.py", "from .. import comfy_entrypoint", "must not import comfy_entrypoint"),
        ("nodes/a.py", "from saeuron import x", "import saeuron relatively"),
        ("nodes/a.py", "import nodes", "import nodes relatively"),
        ("training/a.py", "import os, nodes.hook", "must not import nodes"),
        ("training/a.py", "from ..saeuron import x", "import saeuron absolutely"),
        ("benchmarks/a.py", "import nodes", "must not import nodes"),
        ("tinycanvas/a.py", "from ..saeuron import x", "must not import saeuron"),
        ("tinycanvas/a.py", "from tinycanvas.b import x", "import tinycanvas relatively"),
        ("tinycanvas/a.py", "import comfy", "must not import comfy"),
        ("saeuron/a.py", "def f():\n    import comfy.utils", "must not import comfy"),
        ("saeuron/a.py", "from diffusers.models import x", "must not import diffusers"),
        ("saeuron/a.py", "from .. import tinycanvas", "must not import tinycanvas"),
        ("saeuron/a.py", "from saeuron.b import x", "import saeuron relatively"),
        ("__init__.py", "from .training import x", "the root must not import training"),
    ],
)
def test_a_forbidden_import_is_caught(path, source, complaint):
    (found,) = violations(source, path)
    assert found.startswith(f"{path}:") and found.endswith(complaint)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("nodes/a.py", "from ..saeuron import x\nfrom .. import tinycanvas\nfrom . import b\nimport comfy.utils"),
        ("nodes/deep/a.py", "from ...saeuron.edit import x\nfrom ..hook import y"),
        ("training/a.py", "import diffusers\nfrom saeuron import x\nfrom tinycanvas.model import y\nfrom .b import z"),
        ("tinycanvas/a.py", "import torch, diffusers, transformers\nfrom .b import x"),
        ("saeuron/a.py", "import torch\nfrom . import b\nfrom .deep.training import x"),
        ("__init__.py", "from .nodes import extension"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert violations(source, path) == []
