"""The workflow that is being validated: what a node's links lead to, before anything has run.

ComfyUI shows what `validate_inputs` says on the node itself and in a toast, without a Python path before it, but tells
it only the node's own widgets. The workflow as it was queued is remembered here for the time of its validation.
"""

from collections.abc import Callable
from contextvars import ContextVar

from ...saeuron import SaeuronError

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
    link = inputs(node_id).get(name)
    node = _queued.get().get(str(link[0])) if isinstance(link, list) and link else None
    return node.get("inputs", {}) if isinstance(node, dict) and node.get("class_type") == class_type else None


def told(check: Callable[..., object], value: object, *more: object) -> bool | str:
    """What `validate_inputs` returns of ``check(value, *more)``: True, or the sentence of its SaeuronError.

    A ``value`` of None comes from another node, and is not known before that has run.
    """
    try:
        if value is not None:
            check(value, *more)
    except SaeuronError as error:
        return str(error)
    return True
