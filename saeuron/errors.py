"""The one error users meet, and the nearest valid names to put into it."""

import difflib
from collections.abc import Iterable, Mapping

LONGEST = 380
"""Characters of a message. What a file says of itself may be of any length, and so may a message that repeats it."""


class SaeuronError(ValueError):
    """Something the user gave does not fit. The message is one sentence that says what to do about it."""

    def __init__(self, message: object) -> None:
        text = "".join(c if c.isprintable() else " " for c in str(message))
        if len(text) > LONGEST:  # the beginning names the file and the end says what to do
            text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 + 3 :]}"
        super().__init__(text)


def nearest(name: str, valid: Iterable[str], count: int = 5) -> str:
    """A readable list of the valid names most like ``name``, or of the first few where none is like it."""
    valid = list(valid)
    lowered = {v.lower(): v for v in valid}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.4)]
    return ", ".join(close or valid[:count]) or "none"


def check_same(what: object, before: Mapping[str, object], now: Mapping[str, object], advice: str) -> None:
    """Raise SaeuronError naming the first value that is in both and another one now; ``advice`` says what to do."""
    for key, value in now.items():
        known = before.get(key, value)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            parts = [{f"{name} of {key}": own for name, own in part.items()} for part in (known, value)]
            check_same(what, *parts, advice)
        elif known != value:
            raise SaeuronError(f"{what} was made with {key} {_short(known)} and now it is {_short(value)}: {advice}")


def _short(value: object, longest: int = 120) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]} …"
