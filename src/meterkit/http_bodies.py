"""Bodies of ASGI endpoints: read up to a bound, or sent as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from meterkit.problem_types import PROBLEM_JSON

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from http import HTTPStatus

    from starlette.types import Receive, Scope, Send

_LENGTH: Final = b"content-length"


async def read_body(scope: Scope, receive: Receive, *, most: int) -> bytes | None:
    """Read the whole body; None if it has more than ``most`` bytes; empty if the client has left."""
    lengths = [value for name, value in scope["headers"] if name == _LENGTH]
    if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > most:
        return None
    pieces, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)


async def send_json(
    send: Send,
    status: HTTPStatus,
    content: Mapping[str, Any] | None,
    *,
    kind: str = "application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send JSON, or an empty body for None."""
    body = b"" if content is None else json.dumps(content, separators=(",", ":")).encode()
    head = [
        (b"content-type", kind.encode()),
        (_LENGTH, b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": [*head, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, status: HTTPStatus, detail: str, *, allow: bytes | None = None) -> None:
    """Send a problem document of the status alone (``about:blank``)."""
    problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    headers = [] if allow is None else [(b"allow", allow)]
    await send_json(send, status, problem, kind=PROBLEM_JSON, headers=headers)
