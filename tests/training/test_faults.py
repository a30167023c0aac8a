"""Disks that are full, folders that may not be written, permissions that are lost: one line, and nothing is lost."""

import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import saeuron.files
from tests.kills import PLACE, prepare
from training.__main__ import main

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def lines(home) -> dict[str, list[str]]:
    """Command → a line that runs it in seconds, but for its ``--output``."""
    return prepare(home)


@pytest.fixture
def run(capfd) -> Callable[[list[str], Path], tuple[int, list[str]]]:
    """Run a line; its exit code, and what it told on stderr that is no progress."""

    def run(line: list[str], output: Path) -> tuple[int, list[str]]:
        capfd.readouterr()
        code = main([*line, "--output", str(output)])
        return code, [told for told in capfd.readouterr().err.splitlines() if told.startswith("error: ")]

    return run


def output_of(command: str, folder: Path) -> Path:
    return folder / ("a.safetensors" if command == "learn" else "out")


@pytest.mark.parametrize("command", ["record", "train", "learn"])
def test_on_a_disk_that_is_full_time_and_again_work_comes_to_the_same_files(
    lines, run, command, home, files, monkeypatch
):
    folder, rng = home / command, random.Random(command)
    assert run(lines[command], output_of(command, folder)) == (0, [])
    expected, real = files(folder), os.fsync
    shutil.rmtree(folder)

    def fsync(descriptor: int) -> None:
        if rng.random() < 0.3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(saeuron.files.os, "fsync", fsync)
    refused, code = 0, None
    while code != 0:
        code, told = run(lines[command], output_of(command, folder))
        assert not list(folder.rglob("*.tmp")), "and nothing half written"
        if code:
            assert code == 2 and len(told) == 1 and "could not be written: No space left on device" in told[0]
            refused += 1
    assert refused >= 2 and files(folder) == expected


def test_a_checkpoint_tells_of_a_disk_that_is_really_full(lines, home):
    """torch says something else where it meets one."""
    disk = home / "disk"
    disk.mkdir()
    line = [sys.executable, "-m", "training", *lines["train"], "--output", str(disk / "out")]
    mounted = f"mount -t tmpfs -o size=60k tmpfs {disk} || exit 77\n" + 'exec "$@"'
    try:
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", *line]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ended.returncode in (1, 77) and "error:" not in ended.stderr:
        pytest.skip("nothing may be mounted here")
    assert ended.returncode == 2
    assert "checkpoint.pt could not be written: No space left on device" in ended.stderr


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """In the block ``folder`` may be read but not written: by root neither, who is somebody else for that time."""
    whole = [folder, *folder.rglob("*")]
    before = {path: path.stat().st_mode for path in whole}
    for path in whole:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in before.items():
            path.chmod(mode)


def test_what_lies_in_a_folder_that_may_not_be_written_can_be_read(lines, run, home):
    out = home / "writable"
    out.mkdir()
    out.chmod(0o777)
    with without_permission(home / "recording"):
        assert run(lines["train"], out / "sae") == (0, [])
    assert (out / "sae" / "sae.safetensors").exists()


@pytest.mark.parametrize("command", ["record", "train", "learn"])
def test_into_a_folder_that_may_not_be_written_nothing_is_made(lines, run, home, command):
    folder = home / "forbidden"
    folder.mkdir(exist_ok=True)
    with without_permission(folder):
        code, told = run(lines[command], output_of(command, folder))
    assert code == 2 and len(told) == 1 and "could not be written: Permission denied" in told[0]
    assert list(folder.iterdir()) == []


def test_a_permission_that_is_lost_and_given_back_loses_nothing(lines, run, home, files, monkeypatch):
    folder = home / "lost"
    assert run(lines["record"], folder / "out") == (0, [])
    expected, real, left = files(folder), os.replace, iter(range(5))
    shutil.rmtree(folder)
    folder.mkdir()

    def replace(source: object, target: object) -> None:
        if next(left, None) is None:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    with monkeypatch.context() as lost:
        lost.setattr(saeuron.files.os, "replace", replace)
        code, told = run(lines["record"], folder / "out")
    assert code == 2 and len(told) == 1 and "could not be written: Permission denied" in told[0]
    assert list((folder / "out" / PLACE).glob("shard-*")), "some were finished"
    assert run(lines["record"], folder / "out") == (0, []) and files(folder) == expected
