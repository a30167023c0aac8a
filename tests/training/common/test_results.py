import json

import pytest

from training.common.options import Command
from training.common.progress import track
from training.common.results import Plan, table, tell


def test_a_table_is_markdown_and_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long = "unet.up_blocks.1.attentions.1" * 4
    lines = table(["a", "b"], [[long, 3], ["x", "yy"]]).splitlines()
    assert len(lines) == 4 and long in lines[2] and len({len(line) for line in lines}) == 1
    assert lines[1].strip("|-") == ""


def test_results_go_to_stdout_as_text_or_as_json(capsys):
    tell(Command(), {"a": 1.5}, "| a |\n")
    assert capsys.readouterr().out == "| a |\n"
    tell(Command(json=True), {"a": 1.5}, "| a |\n")
    assert json.loads(capsys.readouterr().out) == {"a": 1.5}


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_without_a_terminal_progress_is_a_line_a_tenth_with_a_last_one(total, capsys):
    assert list(track(range(total), "drawing")) == list(range(total))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == min(total, 10) and lines[-1].startswith(f"drawing: {total} of {total} in ")


def test_a_plan_tells_work_disk_and_time(capsys):
    Plan({"pictures": 12000}, 3_210_000_000, 7300.0).tell(Command())
    told = capsys.readouterr().out
    assert "12,000 pictures" in told and "3.21 GB" in told and "2.03 hours" in told and "nothing was written" in told
    Plan({"pictures": 2}, 0, None).tell(Command(json=True))
    assert json.loads(capsys.readouterr().out) == {"work": {"pictures": 2}, "bytes": 0, "seconds": None}
