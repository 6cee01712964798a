"""Webhook endpoints and deliveries to them: signatures, first attempts, retries."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from stripe_emulator.call import API_VERSION
from stripe_emulator.protocol import JsonObject, shown_fields
from stripe_emulator.webhook_events import AnyEvent, matches_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp

    from stripe_emulator.registry import ObjectRegistry

Forgery = Literal["wrong_secret", "changed", "truncated", "unsigned", "old_scheme", "stale", "early"]
FORGERIES: Final[tuple[str, ...]] = get_args(Forgery)
# A day: far beyond the 300 seconds that receivers allow.
FORGED_CLOCK_S: Final = 86_400


def sign_payload(body: bytes, *, secrets: Sequence[str], at_s: int, scheme: str = "v1") -> str:
    """Return ``Stripe-Signature``: ``t=`` and a ``v1=`` for each active secret.

    HMAC-SHA256 of ``{t}.{body}`` with the whole secret (https://docs.stripe.com/webhooks#verify-manually).
    """
    signed = b"%d.%s" % (at_s, body)
    signatures = (hmac.digest(secret.encode(), signed, "sha256").hex() for secret in secrets)
    return ",".join((f"t={at_s}", *(f"{scheme}={signature}" for signature in signatures)))


def forge_payload(
    body: bytes, *, secrets: Sequence[str], at_s: int, how: Forgery | None
) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a forged delivery; ``how`` None: of a valid one.

    ``wrong_secret``: signed with another secret; ``changed``: another body than was signed; ``truncated``:
    half of it; ``unsigned``: no signature; ``old_scheme``: a ``v0`` signature only; ``stale``, ``early``:
    signed rightly, a day ago or a day from now.
    """
    if how == "unsigned":
        return body, {}
    at_s += {"stale": -FORGED_CLOCK_S, "early": FORGED_CLOCK_S}.get(how or "", 0)
    if how == "wrong_secret":
        secrets = [f"whsec_not_{secret.removeprefix('whsec_')}" for secret in secrets]
    header = sign_payload(body, secrets=secrets, at_s=at_s, scheme="v0" if how == "old_scheme" else "v1")
    if how == "truncated":
        body = body[: len(body) // 2]
    elif how == "changed":
        body = body.replace(b"{", b'{"forged": true,', 1)
    return body, {"stripe-signature": header}


# Stripe says for how long, and that it is exponential, not when: three days, in a sandbox three times "over a
# few hours" (https://docs.stripe.com/webhooks#automatic-retries). Here each pause is twice the one before.
RETRY_S: Final = 3_600
RETRIES: Final = {True: 6, False: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt to deliver an event.

    Attributes:
        event: its id.
        at: Unix seconds by the emulator's clock.
        attempt: 1 for the first; 0 for a delivery that the test requested.
        status: of the answer; 0 where none came.
        answer: the first 500 characters of its body.
        forged: what was wrong with it on purpose.
    """

    event: str
    type: str
    url: str
    at: float
    attempt: int
    status: int
    answer: str = ""
    forged: Forgery | None = None

    @property
    def taken(self) -> bool:
        """True if the endpoint has accepted it: any 2xx, no redirect."""
        return 200 <= self.status < 300  # noqa: PLR2004


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDelivery:
    """One delivery to come. ``at_s``: not before, in Unix seconds."""

    event: AnyEvent
    endpoint: WebhookEndpoint
    attempt: int
    at_s: float


class DeliveryQueue:
    """Pending deliveries, and every attempt so far."""

    def __init__(self, endpoints: ObjectRegistry[WebhookEndpoint]) -> None:
        self._endpoints = endpoints
        self._waiting: list[DueDelivery] = []
        self.made: list[Delivery] = []

    def add(self, event: AnyEvent, *, now: float) -> None:
        """Schedule an event for every endpoint that wants its type."""
        for endpoint in self._endpoints:
            if endpoint.wants(event.type, thin=event.thin):
                event.undelivered.add(endpoint.id)
                self._waiting.append(DueDelivery(event=event, endpoint=endpoint, attempt=1, at_s=now))

    def take_due(self, *, now: float, apps: bool) -> DueDelivery | None:
        """Remove and return the earliest due delivery; None: none is due.

        Args:
            now: Unix seconds.
            apps: whether to take what goes to apps of this process too.
        """
        ripe = [due for due in self._waiting if due.at_s <= now and (apps or due.endpoint.app is None)]
        if not ripe:
            return None
        due = min(ripe, key=lambda due: due.at_s)
        self._waiting.remove(due)
        return due

    def record_result(self, due: DueDelivery, delivery: Delivery) -> None:
        """Record an attempt, and queue a retry if it failed."""
        self.made.append(delivery)
        if delivery.forged is not None:
            return
        event, endpoint = due.event, due.endpoint
        if delivery.taken:
            event.undelivered.discard(endpoint.id)
            self._waiting = [
                other
                for other in self._waiting
                if (other.event.id, other.endpoint.id) != (event.id, endpoint.id)
            ]
        elif 1 <= due.attempt <= RETRIES[event.livemode]:
            later_s = delivery.at + RETRY_S * 2 ** (due.attempt - 1)
            self._waiting.append(
                DueDelivery(event=event, endpoint=endpoint, attempt=due.attempt + 1, at_s=later_s)
            )


# The Dashboard lets an old secret sign on for up to a day (https://docs.stripe.com/webhooks#roll-endpoint-secrets).
ROLL_S_MAX: Final = 86_400


@dataclass(slots=True, kw_only=True, eq=False)
class WebhookEndpoint:
    """A webhook endpoint.

    Attributes:
        events: types, ``*`` or groups such as ``invoice.*``.
        thin: whether it gets thin events, and no others.
        secret: what its deliveries are signed with.
        rolled: the secret before, and until when in Unix seconds it signs too.
        app: an ASGI app that takes them in the running loop; None: they go to ``url`` over HTTP.
        has_real_time: whether they are signed by the machine's clock, as what takes them has no other.
    """

    id: str
    url: str
    secret: str
    created: int
    events: tuple[str, ...] = ("*",)
    thin: bool = False
    livemode: bool = False
    rolled: tuple[str, float] | None = None
    app: ASGIApp | None = None
    has_real_time: bool = False

    def wants(self, event_type: str, *, thin: bool) -> bool:
        """Return whether the endpoint gets events of a type."""
        return self.thin == thin and matches_type(event_type, self.events)

    def secrets(self, *, now: float) -> list[str]:
        """Return the signing secrets: two while one is rolled."""
        before = [self.rolled[0]] if self.rolled is not None and now < self.rolled[1] else []
        return [self.secret, *before]

    def to_json(self) -> JsonObject:
        """Return the endpoint as Stripe shows it, without its secret."""
        return {
            **shown_fields(self, "app events has_real_time rolled secret thin"),
            "object": "webhook_endpoint",
            "api_version": API_VERSION,
            "application": None,
            "enabled_events": list(self.events),
            "description": None,
            "metadata": {},
            "status": "enabled",
        }
