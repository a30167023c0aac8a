"""What the browser asks the server: what an SAE file holds, its concepts, and how somebody's text is understood."""

import asyncio
from collections.abc import Callable

from ..saeuron import SaeuronError
from . import atlas_routes
from .concepts import understood
from .host import files, workflow
from .host.headers import concepts_of, offered
from .loader import describe


def concepts(sae: str, table: str = files.FROM_FILE) -> dict[str, object]:
    header = concepts_of(sae, table)
    return {"concepts": {} if header is None else offered(header.concepts)}


def register() -> None:
    from aiohttp import web
    from server import PromptServer

    def answer(reply: Callable[..., dict[str, object]], *asked: str):
        async def handler(request: web.Request) -> web.Response:
            query = request.query
            table = query.get("table", files.FROM_FILE)
            for given, known in ((query.get("sae", ""), files.names()), (table, [files.FROM_FILE, *files.tables()])):
                if given not in known:
                    return web.json_response({"error": f"there is no file {given!r} in models/saes"}, status=404)
            given = {name: query[name] for name in asked if name in query}
            try:
                return web.json_response(await asyncio.to_thread(reply, query["sae"], **given))
            except SaeuronError as error:
                return web.json_response({"error": workflow.sentence(error)}, status=400)

        return handler

    if getattr(PromptServer, "instance", None) is not None:  # nodes are also listed without a server
        routes = PromptServer.instance.routes
        atlas_routes.register(routes)
        routes.get("/saeuron/concepts")(answer(concepts, "table"))
        routes.get("/saeuron/sae")(
            answer(lambda sae, **given: {"text": describe(sae, **given)}, "hookpoint", "site", "concepts")
        )
        routes.get("/saeuron/understood")(
            answer(lambda sae, **given: {"text": understood(sae, **given)}, "text", "table")
        )
