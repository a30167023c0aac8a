"""What the browser asks the server: the concepts of an SAE file, to choose from."""

import asyncio

from ..saeuron import SaeuronError
from . import atlas_routes
from .host import files
from .host.headers import concepts_of, offered


def register() -> None:
    from aiohttp import web
    from server import PromptServer

    async def concepts(request: web.Request) -> web.Response:
        name, table = request.query.get("sae", ""), request.query.get("table", files.FROM_FILE)
        for given, known in ((name, files.names()), (table, [files.FROM_FILE, *files.tables()])):
            if given not in known:
                return web.json_response({"error": f"there is no file {given!r} in models/saes"}, status=404)
        try:
            header = await asyncio.to_thread(concepts_of, name, table)
        except SaeuronError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"concepts": {} if header is None else offered(header.concepts)})

    if getattr(PromptServer, "instance", None) is not None:  # nodes are also listed without a server
        PromptServer.instance.routes.get("/saeuron/concepts")(concepts)
        atlas_routes.register(PromptServer.instance.routes)
