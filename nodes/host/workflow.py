"""The workflow that is being validated: what a node's links lead to, before anything has run.

ComfyUI shows what `validate_inputs` says on the node itself and in a toast, without a Python path before it, but tells
it only the node's own widgets. The workflow as it was queued is remembered here for the time of its validation.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ...saeuron import SaeuronError
from .files import roots

LONGEST = 199
"""Letters of a sentence that a toast shows whole."""

_queued: ContextVar[dict] = ContextVar("saeuron_queued_workflow", default={})  # noqa: B039 (never changed in place)


def register() -> None:
    from server import PromptServer

    if getattr(PromptServer, "instance", None) is not None:  # nodes are also listed without a server
        PromptServer.instance.add_on_prompt_handler(_remember)


def _remember(request: dict) -> dict:
    _queued.set(request.get("prompt") or {})
    return request


def number(node: type) -> str | None:
    """The id that the workflow gives a node, if its schema asks for it and ComfyUI tells it this early."""
    return getattr(getattr(node, "hidden", None), "unique_id", None)


def inputs(node_id: str | None) -> dict:
    """A node's inputs as they were queued: values, and links ``[node id, output]``."""
    node = _queued.get().get(str(node_id))
    return node.get("inputs", {}) if isinstance(node, dict) else {}


def linked(node_id: str | None, name: str, class_type: str) -> dict | None:
    """The inputs of the node that input ``name`` is linked to, if it is of this class."""
    node = _queued.get().get(str(source(node_id, name)))
    return node.get("inputs", {}) if isinstance(node, dict) and node.get("class_type") == class_type else None


def source(node_id: str | None, name: str) -> str | None:
    """The id of the node that input ``name`` is linked to."""
    link = inputs(node_id).get(name)
    return str(link[0]) if isinstance(link, list) and link else None


def upstream(node_id: str | None, name: str) -> Iterator[tuple[str, str, dict]]:
    """Id, class and inputs of the nodes that ``name`` leads to, each by its own input of that name."""
    seen: set[str] = set()
    while (node_id := source(node_id, name)) is not None and node_id not in seen:
        seen.add(node_id)
        node = _queued.get().get(node_id)
        if not isinstance(node, dict):
            return
        yield node_id, str(node.get("class_type")), inputs(node_id)


def followers(node_id: str, output: int) -> set[str]:
    """The classes of the nodes that are linked to this output."""
    queued = [node for node in _queued.get().values() if isinstance(node, dict)]
    return {
        str(node.get("class_type"))
        for node in queued
        for value in _links(node.get("inputs", {}))
        if [node_id, output] == [str(value[0]), *value[1:]]
    }


def _links(given: dict) -> list[list]:
    return [value for value in given.values() if isinstance(value, list) and len(value) == 2]


def told(check: Callable[..., object], value: object, *more: object) -> bool | str:
    """What `validate_inputs` returns of ``check(value, *more)``: True, or the sentence of its SaeuronError.

    A ``value`` of None comes from another node, and is not known before that has run.
    """
    try:
        if value is not None:
            check(value, *more)
    except SaeuronError as error:
        return sentence(error)
    return True


def first_told(*checks: tuple) -> bool | str:
    """What `told` says of the first of ``checks``, each given as its arguments, that does not hold; True if all do."""
    return next((said for check in checks if (said := told(*check)) is not True), True)


def sentence(error: SaeuronError) -> str:
    """What an error says, short enough for a toast, and of files their names alone."""
    text = str(error)
    for folder in sorted(roots(), key=len, reverse=True):
        text = text.replace(folder.rstrip("/\\") + os.sep, "")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


@contextmanager
def plainly() -> Iterator[None]:
    """What goes wrong inside is told as `sentence` has it."""
    try:
        yield
    except SaeuronError as error:
        raise SaeuronError(sentence(error)) from error
