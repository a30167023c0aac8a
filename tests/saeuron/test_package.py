"""The names that `saeuron` itself offers, each imported when it is asked for."""

import pytest

import saeuron


def test_every_name_that_is_offered_is_there():
    for name in saeuron.__all__:
        assert saeuron.__getattr__(name).__name__ == name
        assert name in dir(saeuron)


def test_what_is_not_offered_is_named():
    with pytest.raises(AttributeError, match=r"module 'saeuron' has no attribute 'nothing'"):
        saeuron.nothing  # noqa: B018
