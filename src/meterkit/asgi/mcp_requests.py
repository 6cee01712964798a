"""Requests to an MCP endpoint: read their message, and find the line of the plans file that takes it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.answers import answer
from meterkit.asgi.body import BufferedBody
from meterkit.asgi.logs import warn
from meterkit.asgi.mcp_messages import (
    MESSAGE_BYTES_MAX,
    McpMessage,
    UnreadableMessageError,
    read_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from meterkit.asgi.routing import Router
    from meterkit.catalog import Route
    from meterkit.store.store import Store

_ROUTERS_MAX: Final = 256
_PARSE_ERROR: Final = -32700


class McpRequest(NamedTuple):
    """A request whose message was read.

    Attributes:
        route: the line that takes it; None: no line does.
        message: what the client posts; None: it was not read, as nothing depends on it.
        receive: gives the app the body as the client sent it.
    """

    route: Route | None
    message: McpMessage | None
    receive: Receive


class McpLines:
    """Finds the line of a message: a router asks all lines but those of other messages.

    Args:
        routes: in the order of the plans file.
        router_of: makes a router of such lines.
    """

    def __init__(self, routes: Sequence[Route], router_of: Callable[[Sequence[Route]], Router]) -> None:
        self._routes = routes
        self._router_of = router_of
        self._routers: dict[tuple[int, ...], Router] = {}

    def line(self, message: McpMessage, scope: Scope) -> Route | None:
        """The first line that takes a message; None where none does."""
        routes = [route for route in self._routes if route.mcp is None or message.falls_under(route.mcp)]
        key = tuple(id(route) for route in routes if route.mcp is not None)
        router = self._routers.get(key)
        if router is None:
            if len(self._routers) >= _ROUTERS_MAX:
                self._routers.clear()
            router = self._routers[key] = self._router_of(routes)
        return router.match_http(scope)

    async def read(
        self, route: Route, scope: Scope, receive: Receive, send: Send, store: Store
    ) -> McpRequest | None:
        """Read a request that one of the lines may take; None: it could not be read, and was refused.

        Args:
            route: the line that its path leads to.
            scope: the request's.
            receive: the server's.
            send: likewise.
            store: of the kit.
        """
        if route.enforcement == "off":
            return McpRequest(route, None, receive)
        body = BufferedBody(scope, receive, most=MESSAGE_BYTES_MAX)
        await body.read()
        content, _, is_whole = body.content()
        try:
            message = read_message(content, is_whole=is_whole)
        except UnreadableMessageError as error:
            warn(store, route.match, f"a request is no message that can be read: {error}")
            if route.enforcement == "shadow":
                return McpRequest(route, None, body.receive)
            await _refuse(send, str(error), is_whole=is_whole)
            return None
        return McpRequest(self.line(message, scope), message, body.receive)


async def _refuse(send: Send, why: str, *, is_whole: bool) -> None:
    status = HTTPStatus.BAD_REQUEST if is_whole else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    detail = f"{why}; post one JSON-RPC message of at most {MESSAGE_BYTES_MAX >> 20} MiB"
    await answer(
        send, status, {"jsonrpc": "2.0", "id": None, "error": {"code": _PARSE_ERROR, "message": detail}}
    )
