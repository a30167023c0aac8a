"""What the browser asks the server: the concepts of an SAE file, to choose from."""

import asyncio

from ..saeuron import ConceptTable, SaeuronError
from ..saeuron.checkpoints import load_bundle
from .concepts import FROM_FILE
from .host import files


def register() -> None:
    from aiohttp import web
    from server import PromptServer

    async def concepts(request: web.Request) -> web.Response:
        name, table = request.query.get("sae", ""), request.query.get("table", FROM_FILE)
        for given, known in ((name, files.names()), (table, [FROM_FILE, *files.tables()])):
            if given not in known:
                return web.json_response({"error": f"there is no file {given!r} in models/saes"}, status=404)
        try:
            found = await asyncio.to_thread(_concepts, name, table)
        except SaeuronError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"concepts": found})

    if getattr(PromptServer, "instance", None) is not None:  # nodes are also listed without a server
        PromptServer.instance.routes.get("/saeuron/concepts")(concepts)


def _concepts(name: str, table: str) -> dict[str, str]:
    """Concept → kind."""
    known = load_bundle(files.resolve(name)).table if table == FROM_FILE else ConceptTable.load(files.path(table))
    return {} if known is None else dict(known.concepts)
