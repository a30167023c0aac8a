"""What stands under a node: told while it runs, or long after, when its patch has seen a sampling."""

import logging
import sys

MESSAGE = "saeuron.told"


def tell(node_id: str | None, text: str, warn: bool = False) -> None:
    """Write ``text`` to ComfyUI's log, and under the node in the browser; ``warn`` shows it as a toast as well."""
    logging.log(logging.WARNING if warn else logging.INFO, "SAeUron: %s", text)
    # Where nothing has imported it, nobody looks.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_sync(MESSAGE, {"node": str(node_id), "text": text, "warn": warn})
