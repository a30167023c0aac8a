"""A few trials of ``python -m tests.kills``: whatever the moment, what was killed is finished to the same files."""

import subprocess
import sys
from pathlib import Path

from tests.kills import files


def test_what_is_killed_at_random_is_finished_to_the_same_files():
    command = [sys.executable, "-m", "tests.kills", "record", "train", "learn", "atlas", "--times", "3"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["record", "train", "learn", "atlas"]
    for line in lines:
        counts = {name: int(count) for count, name in (part.split(" ", 1) for part in line.split(": ")[1].split(", "))}
        assert counts["trials"] == 3 and counts["kills"] >= 1
        assert counts["other files"] == counts["failed"] == 0


def test_another_file_would_be_noticed(tmp_path):
    (tmp_path / "a").write_text("1", "utf-8")
    before = files(tmp_path)
    (tmp_path / "b").touch()
    assert files(tmp_path) != before
