"""One thread for all tests: their tensors are small, and OpenMP's threads spin for each other.

Beside another busy process two threads took 210 s for what one does in 10 s. And the project as a wheel, for tests of
what uses it from outside.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """``run(*command, cwd=FOLDER, code=0)`` gives what the command prints on stdout, with no path to the repository."""

    def run(*command, cwd, code=0):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(
            list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory, run) -> Path:
    """The folder of the programs of a fresh environment with the wheel, which finds all else where these tests do."""
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):  # a copy: building leaves files behind
        if (ROOT / name).exists() and not name.startswith("tests/"):
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / "source" / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "wheel", *offline, "-w", place, place / "source", cwd=place)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", place / "env", cwd=place)
    python = place / "env" / "bin" / "python"
    target = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    (Path(target) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    run(python, "-m", "pip", "install", *offline, wheel, cwd=place)
    return python.parent


@pytest.fixture(scope="session")
def make_unet():
    """UNets of Stable Diffusion's make in small: the channels of each level, and which levels have attention."""
    from diffusers import UNet2DConditionModel

    def make(levels: tuple[int, ...], attention: tuple[bool, ...], **more: int) -> UNet2DConditionModel:
        down = tuple("CrossAttnDownBlock2D" if own else "DownBlock2D" for own in attention)
        up = tuple("CrossAttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attention))
        named = {"sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4} | more
        return UNet2DConditionModel(
            block_out_channels=levels, down_block_types=down, up_block_types=up, layers_per_block=1, **named
        )

    return make
