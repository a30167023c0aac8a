"""A short turn of ``python -m tests.endurance``, and that it would notice."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.endurance import tenths


@pytest.mark.comfyui
def test_patched_and_unpatched_in_turn_nothing_stays_and_no_picture_changes():
    command = [sys.executable, "-m", "tests.endurance", "--only", "comfyui", "--samplings", "7", "--growth", "1000"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = ended.stdout.splitlines()[-1]
    assert told.startswith("| comfyui | 14 samplings") and "0 hooks left, 0 other pictures, 0 unpatched" in told


def test_memory_that_grows_is_told_from_memory_that_is_taken_once_and_from_waves():
    assert tenths([10**6] * 5 + [10**8, 9 * 10**7] * 48)[1:] == [100] * 9
    taken = tenths([10**8 + 10**5 * step for step in range(100)])
    assert taken[-1] / taken[2] > 1.05
