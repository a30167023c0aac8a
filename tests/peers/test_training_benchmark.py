"""The benchmark of training steps all peers of this environment beside ours."""

import json

import pytest

from benchmarks.training import main

for name in ("sparsify", "dictionary_learning", "sae_lens"):
    pytest.importorskip(name, reason="not installed here: run `make test-peers`")


def test_every_peer_is_timed(tmp_path):
    main(["--tiny", "--threads", "1", "--equal-time", "--output", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text("utf-8"))["rows"]
    peers = {row["trainer"].split(",")[0]: row for row in rows}
    for name in ("sparsify", "dictionary_learning", "SAELens", "ours"):
        assert peers[name]["ms"] > 0 and peers[name]["fvu_equal_time"] > 0, name
