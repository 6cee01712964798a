"""The webhook endpoint: an ASGI app that takes Stripe's events and answers at once."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.errors import StoreError
from meterkit.subscriptions.webhooks.events import Forged
from meterkit.throttle import MINUTE_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from meterkit.subscriptions.webhooks.webhooks import Webhooks

_logger = logging.getLogger("meterkit.subscriptions")

BODY_BYTES_MAX: Final = 524_288
"""Of a request to the endpoint; an event of Stripe has some kilobytes."""

_SIGNATURE: Final = b"stripe-signature"
_LENGTH: Final = b"content-length"
_NOT_SET_UP: Final = "no signing secret is set: METERKIT_STRIPE_WEBHOOK_SECRET"
_RECEIVED: Final = {"received": True}
_REPEATED: Final = {"received": True, "duplicate": True}


class HookedKit(Protocol):
    """As much of a kit as the endpoint uses."""

    @property
    def webhooks(self) -> Webhooks:
        """What takes Stripe's events."""
        ...


class WebhookEndpoint:
    """Answers 200 once an event is queued, or is of a type that nothing follows from.

    400 for what Stripe has not signed lately, 413 for more than 512 KiB, 503 where it could not be queued:
    Stripe sends it again, for three days.

    Args:
        webhooks: takes the events.
    """

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self._warned = Throttle(MINUTE_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the webhook endpoint takes HTTP requests; found {scope['type']}")
        if scope["method"] != "POST":
            await _refuse(send, HTTPStatus.METHOD_NOT_ALLOWED, "Stripe posts its events", allow=b"POST")
            return
        body = await _body(scope, receive)
        if body is None:
            await _refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES_MAX} bytes")
            return
        if not self._webhooks.has_secret:
            self._warn(_NOT_SET_UP)
            await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "this endpoint is not set up yet")
            return
        signatures = [value for name, value in scope["headers"] if name == _SIGNATURE]
        try:
            receipt = await self._webhooks.receive(body, signatures)
        except StoreError as error:
            self._warn(f"events of Stripe cannot be queued; it will send them again: {error}")
            await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "it cannot be queued now; send it again")
            return
        if isinstance(receipt, Forged):
            self._warn(f"what came to the webhook endpoint is refused: {receipt}")
            await _refuse(send, HTTPStatus.BAD_REQUEST, str(receipt))
            return
        await _answer(send, HTTPStatus.OK, _REPEATED if receipt == "duplicate" else _RECEIVED)

    def _warn(self, message: str) -> None:
        """Say what goes wrong, but not again and again."""
        if self._warned.is_due(message):
            _logger.warning("%s", message)


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None where there is more of it than an event has."""
    lengths = [value for name, value in scope["headers"] if name == _LENGTH]
    if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > BODY_BYTES_MAX:
        return None
    pieces, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _refuse(send: Send, status: HTTPStatus, detail: str, *, allow: bytes | None = None) -> None:
    problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    headers = [] if allow is None else [(b"allow", allow)]
    await _answer(send, status, problem, b"application/problem+json", headers)


async def _answer(
    send: Send,
    status: HTTPStatus,
    content: Mapping[str, Any],
    kind: bytes = b"application/json",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    body = json.dumps(content, separators=(",", ":")).encode()
    head = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status.value, "headers": [*head, *(headers or ())]})
    await send({"type": "http.response.body", "body": body})
