"""Sends webhooks: over HTTP, or into an app of this process."""

from __future__ import annotations

import json
from time import time
from typing import Final

from stripe_emulator.webhook_deliveries import Delivery, DueDelivery, Forgery, forge_payload

try:
    import httpx
except ImportError as error:
    raise ImportError("delivering webhooks needs httpx: pip install 'meterkit[cli]'") from error


# Stripe does not publish its own.
TIMEOUT_S: Final = 10.0
ANSWER_MAX: Final = 500
HEADERS: Final = {
    "content-type": "application/json; charset=utf-8",
    "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
}


async def send(due: DueDelivery, *, now: float, how: Forgery | None = None) -> Delivery:
    """Send one event to one endpoint. A failure is a delivery that was not accepted."""
    endpoint, event = due.endpoint, due.event
    at = time() if endpoint.has_real_time else now
    body = json.dumps(event.notification(), indent=2).encode()
    body, signature = forge_payload(body, secrets=endpoint.secrets(now=now), at_s=int(at), how=how)
    transport = None if endpoint.app is None else httpx.ASGITransport(endpoint.app)
    status, answer = 0, ""
    # A proxy of the environment is for the world outside, and webhooks of an emulator stay at home.
    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S, trust_env=False) as client:
        try:
            response = await client.post(endpoint.url, content=body, headers=HEADERS | signature)
        except httpx.HTTPError as error:
            answer = str(error)
        else:
            status, answer = response.status_code, response.text
    return Delivery(
        event=event.id,
        type=event.type,
        url=endpoint.url,
        at=now,
        attempt=due.attempt,
        status=status,
        answer=answer[:ANSWER_MAX],
        forged=how,
    )
