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


def test_every_file_keeps_the_import_rule():
    files = [*ROOT.glob("*.py"), *(file for folder in MAY_IMPORT if folder for file in (ROOT / folder).rglob("*.py"))]
    assert ROOT / "__init__.py" in files
    found = [v for f in files for v in violations(f.read_text("utf-8"), f.relative_to(ROOT).as_posix())]
    assert not found, "\n".join(found)


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
