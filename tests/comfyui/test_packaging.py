"""What ComfyUI, its manager and its registry ask of a pack."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfyui

ROOT = Path(__file__).parents[2]
LISTS_NODES = """
import asyncio, importlib.util, json, sys
import comfy.options
sys.argv.append("--cpu")
comfy.options.enable_args_parsing()
import comfy.sd, comfy_api.latest
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("a_pack", ROOT + "/__init__.py", submodule_search_locations=[ROOT])
pack = sys.modules["a_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
imported = sorted(set(sys.modules) - before - {"a_pack"})
extension = asyncio.run(pack.comfy_entrypoint())
nodes = asyncio.run(extension.get_node_list())
json.dump({"imported": imported, "nodes": len(nodes), "modules": sorted(sys.modules)}, sys.stdout)
"""


@pytest.fixture(scope="module")
def listing(comfyui):
    script = f"ROOT = {str(ROOT)!r}\n{LISTS_NODES}"
    environment = os.environ | {"PYTHONPATH": str(comfyui.path)}
    result = subprocess.run(
        [str(comfyui.python), "-c", script], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_importing_the_pack_imports_nothing_else(listing):
    assert listing["imported"] == []


def test_listing_the_nodes_pulls_in_neither_diffusers_nor_matplotlib(listing):
    assert listing["nodes"] == 13
    assert not {"diffusers", "matplotlib"} & set(listing["modules"])


def test_comfy_node_validate_passes(comfyui, tmp_path):
    command = comfyui.python.parent / "comfy"
    if not command.exists():
        pytest.skip("no comfy-cli beside ComfyUI's python")
    environment = os.environ | {"DO_NOT_TRACK": "1", "HOME": str(tmp_path)}
    result = subprocess.run(
        [str(command), "--skip-prompt", "node", "validate"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0 and "passed" in said and "Warning" not in said, said
