"""What stands under a node: told while it runs, or long after, when its patch has seen a sampling."""

import logging
import sys

from comfy_api.latest import ui

MESSAGE = "saeuron.told"


class Told(ui.PreviewText):
    """What a node shows under itself where that changes once it has run, and `say` changes it.

    ComfyUI keeps the list ``said`` with the node's other results, and shows it again where the node is cached.
    """

    def __init__(self, text: str, node_id: str | None) -> None:
        super().__init__(text)
        self.node_id, self.said = node_id, [text]

    def as_dict(self) -> dict:
        return {"told": (self.said,)}

    def say(self, text: str) -> None:
        self.said[:] = [text]
        tell(self.node_id, text)


def tell(node_id: str | None, text: str, warn: bool = False) -> None:
    """Write ``text`` to ComfyUI's log, and under the node in the browser; ``warn`` shows it as a toast as well."""
    logging.log(logging.WARNING if warn else logging.INFO, "SAeUron: %s", text)
    # Where nothing has imported it, nobody looks.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_sync(MESSAGE, {"node": str(node_id), "text": text, "warn": warn})
