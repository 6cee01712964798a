"""The webhook endpoint: an ASGI app that takes Stripe's events and answers at once."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.answers import answer, read_body, refuse
from meterkit.errors import StoreError
from meterkit.subscriptions.webhooks.events import Forged
from meterkit.throttle import MINUTE_S, Throttle

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from meterkit.subscriptions.webhooks.webhooks import Webhooks

_logger = logging.getLogger("meterkit.subscriptions")

BODY_BYTES_MAX: Final = 524_288
"""Of a request to the endpoint; an event of Stripe has some kilobytes."""

_SIGNATURE: Final = b"stripe-signature"
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
            await refuse(send, HTTPStatus.METHOD_NOT_ALLOWED, "Stripe posts its events", allow=b"POST")
            return
        body = await read_body(scope, receive, most=BODY_BYTES_MAX)
        if body is None:
            await refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES_MAX} bytes")
            return
        if not self._webhooks.has_secret:
            self._warn(_NOT_SET_UP)
            await refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "this endpoint is not set up yet")
            return
        signatures = [value for name, value in scope["headers"] if name == _SIGNATURE]
        try:
            receipt = await self._webhooks.receive(body, signatures)
        except StoreError as error:
            self._warn(f"events of Stripe cannot be queued; it will send them again: {error}")
            await refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "it cannot be queued now; send it again")
            return
        if isinstance(receipt, Forged):
            self._warn(f"what came to the webhook endpoint is refused: {receipt}")
            await refuse(send, HTTPStatus.BAD_REQUEST, str(receipt))
            return
        await answer(send, HTTPStatus.OK, _REPEATED if receipt == "duplicate" else _RECEIVED)

    def _warn(self, message: str) -> None:
        """Say what goes wrong, but not again and again."""
        if self._warned.is_due(message):
            _logger.warning("%s", message)
