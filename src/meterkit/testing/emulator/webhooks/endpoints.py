"""Webhook endpoints: create, retrieve, list, update, delete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import API_VERSION, PAGING
from meterkit.testing.emulator.replies import JsonObject, missing_parameter, new_id, no_such
from meterkit.testing.emulator.webhooks.events import matches

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from meterkit.testing.emulator.call import Call, Params

__all__ = ["ROLL_S_MAX", "WebhookEndpoint", "WebhookEndpoints"]

# The Dashboard lets an old secret sign on for up to a day (https://docs.stripe.com/webhooks#roll-endpoint-secrets).
ROLL_S_MAX: Final = 86_400
CHANGEABLE: Final = ("url", "enabled_events", "description", "metadata")


@dataclass(slots=True, kw_only=True, eq=False)
class WebhookEndpoint:
    """Who is told of events.

    Attributes:
        events: types, ``*`` or groups such as ``invoice.*``.
        thin: whether it is told of thin events, and of them alone.
        secret: what its deliveries are signed with.
        rolled: the secret before, and until when in Unix seconds it signs too.
        app: an ASGI app that takes them in the running loop; None: they go to ``url`` over HTTP.
    """

    id: str
    url: str
    secret: str
    created: int
    events: tuple[str, ...] = ("*",)
    thin: bool = False
    livemode: bool = False
    disabled: bool = False
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    rolled: tuple[str, float] | None = None
    app: ASGIApp | None = None

    def wants(self, event_type: str, *, thin: bool) -> bool:
        """Tell whether it is to be told of such an event."""
        return not self.disabled and self.thin == thin and matches(event_type, self.events)

    def secrets(self, *, now: float) -> list[str]:
        """Return what a delivery is signed with: two secrets while one is rolled."""
        before = [self.rolled[0]] if self.rolled is not None and now < self.rolled[1] else []
        return [self.secret, *before]

    def to_json(self) -> JsonObject:
        """Return the endpoint as Stripe shows it, without its secret."""
        return {
            "id": self.id,
            "object": "webhook_endpoint",
            "api_version": API_VERSION,
            "application": None,
            "created": self.created,
            "description": self.description,
            "enabled_events": list(self.events),
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "status": "disabled" if self.disabled else "enabled",
            "url": self.url,
        }


class WebhookEndpoints:
    """All webhook endpoints of the emulated account, by id, oldest first."""

    def __init__(self) -> None:
        self._by_id: dict[str, WebhookEndpoint] = {}

    @property
    def all(self) -> tuple[WebhookEndpoint, ...]:
        """Every endpoint."""
        return tuple(self._by_id.values())

    def get(self, endpoint_id: str) -> WebhookEndpoint | None:
        """Return an endpoint, or None where it was deleted."""
        return self._by_id.get(endpoint_id)

    def add(self, endpoint: WebhookEndpoint) -> None:
        """Take over an endpoint that was made elsewhere."""
        self._by_id[endpoint.id] = endpoint

    def create(self, call: Call) -> JsonObject:
        """``POST /v1/webhook_endpoints``; the one answer that has the secret in it."""
        params = call.params
        params.only("api_version", *CHANGEABLE)
        if not params.texts("enabled_events"):
            raise missing_parameter("enabled_events")
        endpoint = WebhookEndpoint(
            id=new_id("we_1", length=23),
            url=params.required("url"),
            secret=new_id("whsec", length=32),
            created=int(call.now),
            livemode=call.livemode,
        )
        _apply(endpoint, params=params)
        self.add(endpoint)
        return {**endpoint.to_json(), "secret": endpoint.secret}

    def retrieve(self, call: Call) -> JsonObject:
        """``GET /v1/webhook_endpoints/{id}``."""
        call.params.only()
        return self._find(call.object_id).to_json()

    def update(self, call: Call) -> JsonObject:
        """``POST /v1/webhook_endpoints/{id}``; a disabled one is told of nothing."""
        call.params.only("disabled", *CHANGEABLE)
        endpoint = self._find(call.object_id)
        _apply(endpoint, params=call.params)
        disabled = call.params.boolean("disabled")
        endpoint.disabled = endpoint.disabled if disabled is None else disabled
        return endpoint.to_json()

    def delete(self, call: Call) -> JsonObject:
        """``DELETE /v1/webhook_endpoints/{id}``."""
        endpoint = self._find(call.object_id)
        del self._by_id[endpoint.id]
        return {"id": endpoint.id, "object": "webhook_endpoint", "deleted": True}

    def list(self, call: Call) -> JsonObject:
        """``GET /v1/webhook_endpoints``, newest first."""
        call.params.only(*PAGING)
        found = [endpoint.to_json() for endpoint in reversed(self._by_id.values())]
        return call.params.page(found, url="/v1/webhook_endpoints")

    def _find(self, endpoint_id: str) -> WebhookEndpoint:
        endpoint = self._by_id.get(endpoint_id)
        if endpoint is None:
            raise no_such("webhook endpoint", endpoint_id)
        return endpoint


def _apply(endpoint: WebhookEndpoint, *, params: Params) -> None:
    params.amend("metadata", endpoint.metadata)
    endpoint.url = params.given("url") or endpoint.url
    endpoint.events = tuple(params.texts("enabled_events").values()) or endpoint.events
    if "description" in params:
        endpoint.description = params.text("description") or None
