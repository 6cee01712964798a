"""The class of a request that was admitted, by what its line reads and counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.asgi.exchange import Exchange
from meterkit.asgi.mcp_exchange import McpExchange
from meterkit.asgi.upload import Upload
from meterkit.asgi.websocket import WebSocketExchange

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route


def kind_of(scope: Scope, route: Route) -> type[Exchange]:
    """What stands between the app and the server for a request of a line."""
    if scope["type"] != "http":
        return WebSocketExchange
    if route.mcp is not None:
        return McpExchange
    return Upload if route.storage_meter else Exchange
