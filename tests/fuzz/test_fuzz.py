"""A seeded part of ``python -m tests.fuzz``, and that it would notice."""

import random

from saeuron import SaeuronError
from tests.fuzz.mutate import spoilt
from tests.fuzz.run import attempt, fuzz, place


def test_every_spoilt_file_is_read_or_refused_with_one_clear_error():
    tally, finds = fuzz(seed=0, first=0, count=1800)
    assert finds == []
    assert len(tally) >= 23, "every reader had its turn"
    assert all(counts["refused"] for counts in tally.values()), "and was given files that are worth refusing"


def test_an_error_that_is_not_clear_would_be_noticed(tmp_path):
    def fail(error):
        raise error

    place(tmp_path / "case", {"a": b""})
    assert attempt(tmp_path / "case", lambda _: fail(SaeuronError("a is broken"))) == ("refused", "")
    for error in (KeyError("a"), RecursionError(), SaeuronError("")):
        assert attempt(tmp_path / "case", lambda _, error=error: fail(error))[0] == "unclear"


def test_a_case_is_the_same_each_time():
    for name in ("a.json", "a.txt", "a.jsonl"):
        content = b'{"prompt": "a cat", "object": ["cat", 1, 2.5]}'
        assert spoilt(name, content, random.Random("0 1")) == spoilt(name, content, random.Random("0 1"))
