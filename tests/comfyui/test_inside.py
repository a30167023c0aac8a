"""Runs ``inside/`` in ComfyUI's interpreter."""

import os
import subprocess
from pathlib import Path

import pytest

INSIDE = Path(__file__).parent / "inside"


@pytest.mark.comfyui
@pytest.mark.parametrize("name", sorted(path.name for path in INSIDE.glob("test_*.py")))
def test_inside_comfyui(comfyui, name):
    command = [
        str(comfyui.python),
        "-m",
        "pytest",
        str(INSIDE / name),
        "-q",
        "-o",
        "pythonpath=",
        "--rootdir",
        str(INSIDE),
    ]
    environment = os.environ | {"SAEURON_INSIDE_COMFYUI": "1", "COMFYUI_PATH": str(comfyui.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-8000:]
