"""Every benchmark runs at a tiny size, prints one table and writes what it found. No time is asked for."""

import importlib
import json

import pytest
import torch

NAMES = ("training", "edits", "bench", "growth", "memory", "score_memory", "supervised_cost")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_it_prints_a_table_and_writes_json(name, tmp_path, capsys):
    path = tmp_path / "found.json"
    importlib.import_module(f"benchmarks.{name}").main(["--tiny", "--threads", "1", "--output", str(path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = json.loads(path.read_text("utf-8"))
    assert found["machine"]["threads"] == 1 and found["machine"]["torch"]
    rows = [row for value in found.values() if isinstance(value, list) for row in value]
    assert len(lines) == len(rows) + 2, "a line a row, beneath a head of two"
    numbers = [
        value for row in rows for key, value in row.items() if key in ("ms", "seconds", "tokens_per_s", "needed")
    ]
    assert numbers and all(value > 0 for value in numbers)
