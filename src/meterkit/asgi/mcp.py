"""MCP requests: parse the JSON-RPC message, find its line of the plans file, write refusals as MCP.

Parsers disagree about members that are named twice and about capitals in names. Such a body is not read, and
neither is one that is no single JSON object: no client of MCP sends one. Refusals of tool calls that can be
paid have the form of x402: https://github.com/coinbase/x402/blob/main/specs/transports-v2/mcp.md
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.asgi.buffered_body import BufferedBody
from meterkit.asgi.logs import warn
from meterkit.asgi.refusal_responses import compact_json, payment_required
from meterkit.catalog.models import NAMED_METHODS
from meterkit.http_bodies import send_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from meterkit.asgi.refusal_responses import Denial
    from meterkit.asgi.route_matching import Router
    from meterkit.catalog import Route
    from meterkit.store.store import Store

MESSAGE_BYTES_MAX: Final = 4 << 20
"""As many as the servers of the SDKs take: https://github.com/modelcontextprotocol/python-sdk"""
NAME_CHARS_MAX: Final = 1_024

# Beyond this size a body is parsed only if it is cheap to parse: ASCII with few escapes, as base64 is.
_ANY_BYTES_MAX: Final = 1 << 20
_MARKS_MAX: Final = 1 << 14
_MEMBERS_MAX: Final = 1_024
_INTEGER_CHARS_MAX: Final = 24
_MEMBERS: Final = ("jsonrpc", "id", "method", "params")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpMessage:
    """JSON-RPC message that a client posts.

    Attributes:
        method: None: it answers a request of the server's.
        name: of the tool or prompt, where the method has one.
        id: of the request, to be repeated in its answer.
        is_request: whether it wants an answer: it has an id.
    """

    method: str | None
    name: str | None = None
    id: str | float | None = None
    is_request: bool = True


class UnreadableMessageError(Exception):
    """Body that not every server reads as the same message; the text says why."""


def read_message(body: bytes, *, is_whole: bool = True) -> McpMessage:
    """Parse the message in a body. Takes some milliseconds at most.

    Raises:
        UnreadableMessageError: it is none, or parsers could differ about it.
    """
    if not is_whole:
        raise UnreadableMessageError("the body is too large, in too many pieces, or in a coding")
    root = _parse_json(body)
    if not isinstance(root, tuple):
        raise UnreadableMessageError("the body is not a single JSON object")
    found = _find_members(cast("_Pairs", root), _MEMBERS)
    is_request = "id" in found
    given: Any = found.get("id")
    message_id = given if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    if "method" not in found:
        return McpMessage(method=None, id=message_id, is_request=False)
    method, name = found["method"], None
    if not isinstance(method, str):
        raise UnreadableMessageError("`method` is not a text")
    if method in NAMED_METHODS:
        params = found.get("params")
        name = (
            _find_members(cast("_Pairs", params), ("name",)).get("name")
            if isinstance(params, tuple)
            else None
        )
        if not isinstance(name, str) or len(name) > NAME_CHARS_MAX:
            raise UnreadableMessageError(
                f"`params.name` is not a text of at most {NAME_CHARS_MAX} characters"
            )
    return McpMessage(method=method, name=name, id=message_id, is_request=is_request)


_Pairs = tuple[tuple[str, Any], ...]
"""An object, with members that are named twice; arrays are lists."""


def _integer(written: str) -> float:
    """Parse an integer; a long one as a float, as converting it exactly is slow."""
    return int(written) if len(written) <= _INTEGER_CHARS_MAX else float(written[:_INTEGER_CHARS_MAX])


_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_int=_integer)


def _parse_json(body: bytes) -> object:
    is_cheap = len(body) <= _ANY_BYTES_MAX or (body.isascii() and body.count(b"\\") <= _MARKS_MAX)
    if not is_cheap or sum(map(body.count, (b",", b"{", b"["))) > _MARKS_MAX:
        raise UnreadableMessageError("the body has too many values to be read")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UnreadableMessageError("the body is not JSON in UTF-8") from None


def _find_members(pairs: _Pairs, names: tuple[str, ...]) -> dict[str, Any]:
    """Find members by name. Each may be there once, and in just this spelling."""
    if len(pairs) > _MEMBERS_MAX:
        raise UnreadableMessageError("an object has too many members")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name.casefold() in names:
            if name in found or name not in names:
                raise UnreadableMessageError(f"`{name.casefold()}` is there twice, or in other letters")
            found[name] = value
    return found


_ROUTERS_MAX: Final = 256
_PARSE_ERROR: Final = -32700


class McpRequest(NamedTuple):
    """MCP request whose message was read.

    Attributes:
        route: the line that takes it; None: no line does.
        message: what the client posts; None: it was not read, as nothing depends on it.
        receive: gives the app the body as the client sent it.
    """

    route: Route | None
    message: McpMessage | None
    receive: Receive


class McpLines:
    """Finds the line of an MCP message with a router of all lines except those of other messages.

    Args:
        routes: in the order of the plans file.
        router_of: makes a router of such lines.
    """

    def __init__(self, routes: Sequence[Route], router_of: Callable[[Sequence[Route]], Router]) -> None:
        self._routes = routes
        self._router_of = router_of
        self._routers: dict[tuple[int, ...], Router] = {}

    def line(self, message: McpMessage, scope: Scope) -> Route | None:
        """Find the first line that takes a message; None: none does."""
        return self._first_line_where(
            lambda route: route.mcp is None or route.mcp.takes(message.method, message.name), scope
        )

    def _first_line_where(self, takes: Callable[[Route], bool], scope: Scope) -> Route | None:
        routes = [route for route in self._routes if takes(route)]
        key = tuple(id(route) for route in routes if route.mcp is not None)
        router = self._routers.get(key)
        if router is None:
            if len(self._routers) >= _ROUTERS_MAX:
                self._routers.clear()
            router = self._routers[key] = self._router_of(routes)
        return router.match(scope)

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
            if self._is_in_shadow(scope):
                return McpRequest(route, None, body.receive)
            await _send_parse_error(send, str(error), is_whole=is_whole)
            return None
        return McpRequest(self.line(message, scope), message, body.receive)

    def _is_in_shadow(self, scope: Scope) -> bool:
        """Whether all MCP lines of a path are in shadow: an unreadable message may fall under any of them."""
        found = self._first_line_where(
            lambda route: route.mcp is None or route.enforcement != "shadow", scope
        )
        return found is None or found.mcp is None


async def _send_parse_error(send: Send, why: str, *, is_whole: bool) -> None:
    status = HTTPStatus.BAD_REQUEST if is_whole else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    detail = f"{why}; post one JSON-RPC message of at most {MESSAGE_BYTES_MAX >> 20} MiB"
    await send_json(
        send, status, {"jsonrpc": "2.0", "id": None, "error": {"code": _PARSE_ERROR, "message": detail}}
    )


ERROR_CODE: Final = -32000
"""Of refusals: the first code that servers of JSON-RPC may use as they like."""
_REPLACED: Final = frozenset({b"content-type", b"content-length"})
_JSON: Final = (b"content-type", b"application/json")


def mcp_denial(denial: Denial, message: McpMessage) -> Denial:
    """Convert a refusal to an MCP response; a message that wants none gets the problem document.

    A tool call that is refused with 402 gets a *result* with ``isError``, which reaches
    the model. The result has the problem document as ``problem``, and the members of x402 only if there is
    an offer: their ``accepts`` must not be empty. All other messages get a JSON-RPC error with the status of
    the refusal, and the problem document as its ``data``.
    """
    if not message.is_request:
        return denial
    problem: dict[str, Any] = json.loads(denial.body)
    head = tuple(pair for pair in denial.headers if pair[0] not in _REPLACED)
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message.id}
    offer: dict[str, Any] | None = problem.get("offer")
    is_payable = denial.status == HTTPStatus.PAYMENT_REQUIRED
    if is_payable and message.method == "tools/call":
        structured: dict[str, Any] = {"problem": problem}
        if offer is not None:
            structured = payment_required(problem["detail"], f"mcp://tool/{message.name}", offer) | structured
        text = compact_json(structured).decode()
        content = [{"type": "text", "text": text}]
        # Results of the current revision say what kind they are: this one is complete.
        reply["result"] = {
            "resultType": "complete",
            "isError": True,
            "structuredContent": structured,
            "content": content,
        }
        return _json_rpc_denial(denial, HTTPStatus.OK, head, reply)
    reply["error"] = {"code": ERROR_CODE, "message": problem["detail"], "data": problem}
    return _json_rpc_denial(denial, denial.status, head, reply)


def _json_rpc_denial(
    denial: Denial, status: int, head: tuple[tuple[bytes, bytes], ...], reply: dict[str, Any]
) -> Denial:
    body = compact_json(reply)
    length = (b"content-length", b"%d" % len(body))
    return replace(denial, status=int(status), headers=(_JSON, length, *head), body=body)
