"""What the browser asks the server: the concepts of an SAE file, to choose from."""

import asyncio

from ..saeuron import SaeuronError
from ..saeuron.checkpoints import load_bundle
from . import files


def register() -> None:
    from aiohttp import web
    from server import PromptServer

    async def concepts(request: web.Request) -> web.Response:
        name = request.query.get("sae", "")
        if name not in files.names():
            return web.json_response({"error": f"there is no SAE file {name!r}"}, status=404)
        try:
            found = await asyncio.to_thread(_concepts, name)
        except SaeuronError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"concepts": found})

    if PromptServer.instance is not None:
        PromptServer.instance.routes.get("/saeuron/concepts")(concepts)


def _concepts(name: str) -> dict[str, str]:
    table = load_bundle(files.resolve(name)).table
    return {} if table is None else dict(table.concepts)
