"""One sentence, never too long, with the nearest valid values, and naming what differs."""

import pytest

from saeuron import SaeuronError
from saeuron.errors import LONGEST, check_same, nearest


def test_a_long_message_keeps_its_beginning_and_its_end():
    assert str(SaeuronError("a" * LONGEST)) == "a" * LONGEST
    text = str(SaeuronError("begin" + "x" * LONGEST + "end"))
    assert text.startswith("begin" + "x" * 100) and text.endswith("x" * 100 + "end")
    assert len(text) == LONGEST and " … " in text


def test_a_message_is_one_printable_line():
    assert str(SaeuronError("a\nb\tc\x1b[0m")) == "a b c [0m"


def test_of_many_alike_five_are_named_the_most_alike_first():
    names = [f"neon{n}" for n in range(9)]
    assert nearest("neon7", names).split(", ")[0] == "neon7" and len(nearest("neon7", names).split(", ")) == 5
    assert nearest("neon7", names, count=2).count(",") == 1


def test_what_is_only_a_little_alike_is_named_before_what_is_not_at_all():
    assert nearest("moon", ["square", "mouse"]) == "mouse"
    assert nearest("x", [f"name {n}" for n in range(9)]) == ", ".join(f"name {n}" for n in range(5))


def refusal(before, now):
    with pytest.raises(SaeuronError) as refused:
        check_same("the folder", before, now, "take another")
    return str(refused.value)


def test_the_first_value_that_differs_is_named():
    assert refusal({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ("the folder was made with b 2 and now it is 3: take another")
    nested = refusal({"a": {"x": {"y": 1}}}, {"a": {"x": {"y": 2}}})
    assert nested == "the folder was made with y of x of a 1 and now it is 2: take another"
    assert refusal({"a": {"x": 1}}, {"a": 1}) == "the folder was made with a {'x': 1} and now it is 1: take another"
    assert refusal({"a": 1}, {"a": {"x": 1}}) == "the folder was made with a 1 and now it is {'x': 1}: take another"


def test_what_only_one_of_both_says_is_no_difference():
    check_same("it", {"a": 1, "b": {"x": 1}}, {"b": {"x": 1, "y": 2}, "c": 3}, "")


def test_long_values_are_cut():
    assert f"made with a {'x' * 120} and now it is {'y' * 120} …: take" in refusal({"a": "x" * 120}, {"a": "y" * 121})
