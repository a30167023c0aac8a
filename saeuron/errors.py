"""The one error users meet, and the nearest valid names to put into it."""

import difflib
from collections.abc import Iterable


class SaeuronError(ValueError):
    """Something the user gave does not fit. The message is one sentence that says what to do about it."""


def nearest(name: str, valid: Iterable[str], count: int = 5) -> str:
    """A readable list of the valid names most like ``name``, or of the first few where none is like it."""
    valid = list(valid)
    lowered = {v.lower(): v for v in valid}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.4)]
    return ", ".join(close or valid[:count]) or "none"
