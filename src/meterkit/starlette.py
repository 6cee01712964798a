"""For Starlette: the billing routes, to be mounted: ``Mount("/billing", routes=billing_routes(…))``.

And the endpoints that Stripe and object stores post their events to, for any ASGI app.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from meterkit.allowed_origins import SendingPage
from meterkit.asgi.context import is_anonymous
from meterkit.errors import MeterkitError
from meterkit.storage.service import StorageEndpoint
from meterkit.subscriptions.billing_requests import BODY_BYTES_MAX, BillingResponder
from meterkit.subscriptions.billing_routes import ENDPOINTS
from meterkit.subscriptions.webhooks.webhook_endpoint import WebhookEndpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.requests import Request
    from starlette.types import Scope

    from meterkit.storage.service import StoringKit
    from meterkit.store.store import Store
    from meterkit.subscriptions.billing_routes import BillingEndpoint, BillingKit
    from meterkit.subscriptions.webhooks.webhook_endpoint import WebhookKit

__all__ = ["billing_routes", "storage_events", "stripe_webhook"]


def billing_routes(
    kit: BillingKit,
    *,
    customer: Callable[[Scope], str | Awaitable[str | None] | None],
    origins: Iterable[str],
    delivery_states: bool = True,
) -> list[Route]:
    """Routes by which customers see and change their own subscriptions, and what they used.

    Only ``customer`` identifies a request's customer; the app authenticates and authorizes. In the plans file
    these lines want ``always``, so that a customer who owes can pay. The endpoint of :func:`stripe_webhook`
    is among them, at ``/webhooks/stripe``; its line wants ``exempt``, before them.

    Args:
        kit: the kit of these customers.
        customer: from a request's ASGI scope to the customer's id, or None: then the response is 401. Sync or
            async; the app handles the errors it raises.
        origins: of the app, such as ``https://app.example``: to which Stripe may redirect customers.
        delivery_states: False leaves the states of delivery to Stripe (``pending`` to ``dead``) out of usage.

    Raises:
        MeterkitError: ``customer`` is missing, or an origin is invalid.
    """
    check_customer_of(customer, "a callable that gives the customer's id for an ASGI scope")
    billing = BillingResponder(kit, origins, delivery_states=delivery_states)
    routes = [
        Route(
            endpoint.path,
            partial(_respond_to_customer, billing=billing, endpoint=endpoint, customer=customer),
            methods=[endpoint.method],
            name=f"billing {endpoint.method} {endpoint.path}",
        )
        for endpoint in ENDPOINTS
    ]
    return [*routes, webhook_route(kit)]


def webhook_route(kit: WebhookKit, prefix: str = "") -> Route:
    """Make the billing route that receives Stripe's events; it has no customer."""
    path = f"{prefix}/webhooks/stripe"
    return Route(path, stripe_webhook(kit), methods=["POST"], name="billing webhook", include_in_schema=False)


def stripe_webhook(kit: WebhookKit) -> WebhookEndpoint:
    """Make the endpoint that Stripe posts its events to, an ASGI app.

    ``Route("/webhooks/stripe", stripe_webhook(kit))``. It wants ``METERKIT_STRIPE_WEBHOOK_SECRET``, and in
    the plans file ``exempt: true`` on its line, as Stripe is no customer. It answers once an event is
    queued; this process, or another that delivers to Stripe, processes it.

    Args:
        kit: the same that the app is wrapped with.
    """
    return WebhookEndpoint(kit.webhooks)


def storage_events(kit: StoringKit, *, secret: str, topics: Iterable[str] = ()) -> StorageEndpoint:
    """Make the endpoint that MinIO, SNS and EventBridge post events of stored objects to, an ASGI app.

    ``Route("/storage-events", storage_events(kit, secret=…))``. It answers 200 once the events have counted.
    In the plans file its line wants ``exempt: true``, as an object store is no customer.

    Args:
        kit: the same that the app is wrapped with; its plans file has ``storage:``.
        secret: 16 characters or more, which MinIO and EventBridge send in ``Authorization: Bearer``.
        topics: ARNs of the topics of SNS whose messages count.

    Raises:
        MeterkitError: the secret is too short.
    """
    return StorageEndpoint(kit, secret, topics)


async def _respond_to_customer(
    request: Request,
    *,
    billing: BillingResponder,
    endpoint: BillingEndpoint,
    customer: Callable[[Scope], str | Awaitable[str | None] | None],
) -> Response:
    found = customer(request.scope)
    who = await found if inspect.isawaitable(found) else found
    return await respond(request, billing=billing, endpoint=endpoint, customer=who)


async def respond(
    request: Request, *, billing: BillingResponder, endpoint: BillingEndpoint, customer: object
) -> Response:
    """Answer a request of the identified customer."""
    answer = await billing.answer(
        endpoint,
        without_address(customer, billing.kit.store),
        query=request.url.query,
        content_type=request.headers.get("content-type", ""),
        sender=SendingPage.of(request.headers),
        read=partial(_read, request),
    )
    return Response(answer.body, answer.status, headers=dict(answer.headers))


def without_address(customer: object, store: Store) -> object:
    """The customer that the app has identified; None for the address of an anonymous client.

    Others have that address, too, and would share a subscription.
    """
    return None if isinstance(customer, str) and is_anonymous(customer, store) else customer


async def _read(request: Request) -> bytes | None:
    """Read the body of a request; None: it is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        pieces.append(piece)
        size += len(piece)
        if size > BODY_BYTES_MAX:
            return None
    return b"".join(pieces)


def check_customer_of(customer: object, allowed: str) -> None:
    """Check the argument that identifies a request's customer.

    Raises:
        MeterkitError: it is not callable.
    """
    if not callable(customer):
        raise MeterkitError(
            f"customer: found {customer!r:.80}; allowed is {allowed}. Without it any client could"
            " change any customer's subscription"
        )
