"""CORS preflights of lines that decide: answered by the app's CORS layer, never by a handler.

A preflight has no customer, and handlers that take every method would serve it for free. So the app gets it
in asterisk form (``OPTIONS *``, RFC 9110 section 9.3.7), which asks about the server as a whole. No route of
a fixed path matches that, and CORS layers do not look at the path.
"""

from __future__ import annotations

from asyncio import FIRST_COMPLETED, get_running_loop, wait
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.cancellation import start_task

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from meterkit.asgi.logs import TroubleLog
    from meterkit.catalog import Route

_PREFLIGHT: Final = frozenset({b"origin", b"access-control-request-method"})
_NO_PREFLIGHT: Final = frozenset({b"authorization", b"cookie", b"transfer-encoding"})
_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_CORS: Final = b"access-control-"
_BODY_BYTES_MAX: Final = 64
_TEXT: Final = b"text/plain"
_NOT_ROUTED: Final = frozenset({404, 405})


def is_preflight(scope: Scope) -> bool:
    """Whether an HTTP request is a CORS preflight (Fetch standard, section 3.2.2).

    Browsers send it without credentials and without a body: what has either may be a request for a handler
    that takes every method.
    """
    if scope["method"] != "OPTIONS":
        return False
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if not headers.keys() >= _PREFLIGHT or not headers.keys().isdisjoint(_NO_PREFLIGHT):
        return False
    return headers.get(b"content-length", b"0") == b"0"


class Preflights:
    """Serves CORS preflights that match a line which decides.

    Args:
        app: what the middleware wraps.
        cors: the origins whose scripts may read refusals.
        troubles: takes preflights that browsers will not accept.
    """

    def __init__(self, app: ASGIApp, cors: Collection[str], troubles: TroubleLog) -> None:
        self._app = app
        self._cors = frozenset(cors)
        self._troubles = troubles

    async def serve(self, route: Route, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a preflight, and return whether the request was one."""
        if not is_preflight(scope):
            return False
        if route.enforcement != "on":
            await self._app(scope, receive, send)
            return True
        start, body = await self._ask_cors_layer(scope, receive)
        headers = [(name.lower(), value) for name, value in start.get("headers", ())]
        of_layer = [(name, value) for name, value in headers if name.startswith(_CORS) or name == b"vary"]
        is_layer = any(name.startswith(_CORS) for name, _ in of_layer) and start["status"] not in _NOT_ROUTED
        if is_layer and body is not None and dict(headers).get(b"content-type", b"").startswith(_TEXT):
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return True
        fields = of_layer if _ALLOW_ORIGIN in dict(of_layer) else self._allow_fields(dict(scope["headers"]))
        if _ALLOW_ORIGIN not in dict(fields):
            self._troubles.log_preflight(route, scope)
        await send({"type": "http.response.start", "status": HTTPStatus.NO_CONTENT.value, "headers": fields})
        await send({"type": "http.response.body", "body": b""})
        return True

    async def _ask_cors_layer(self, scope: Scope, receive: Receive) -> tuple[Message, bytes | None]:
        """Ask the app; the start of its response, and the body if it is as short as that of a CORS layer.

        A stream is of a handler that takes all paths: it is stopped. An app that has sent all may end by
        itself: Django, cancelled then, leaves tasks of its own behind.
        """
        start: Message = {"status": HTTPStatus.NOT_FOUND.value}
        body: bytes | None = None
        is_stream = get_running_loop().create_future()

        async def collect(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body" and not is_stream.done():
                content: bytes = message.get("body", b"")
                if message.get("more_body", False):
                    is_stream.set_result(None)
                elif len(content) <= _BODY_BYTES_MAX:
                    body = content

        async def ask() -> None:
            await self._app({**scope, "path": "*", "raw_path": b"*"}, receive, collect)

        asked = start_task(ask())
        try:
            await wait({asked, is_stream}, return_when=FIRST_COMPLETED)
        finally:
            if not asked.done():
                asked.cancel()
                await wait({asked})
        if not asked.cancelled() and isinstance(error := asked.exception(), Exception):
            self._troubles.log_unasked(error)
        return start, body

    def _allow_fields(self, asked: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Format the fields that allow the origins in ``cors``."""
        fields = [(b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
        origin = asked[b"origin"]
        is_any = "*" in self._cors
        if is_any or origin.decode("latin-1") in self._cors:
            fields += [
                (_ALLOW_ORIGIN, b"*" if is_any else origin),
                (b"access-control-allow-methods", asked[b"access-control-request-method"]),
            ]
            if not is_any:  # As in refusals: browsers else send no request with cookies.
                fields.append((b"access-control-allow-credentials", b"true"))
            if b"access-control-request-headers" in asked:
                fields.append((b"access-control-allow-headers", asked[b"access-control-request-headers"]))
        return fields
