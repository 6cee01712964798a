"""Stripe events: verify the signature of each, and read from it the customer to sync and the event to send.

https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.catalog.value_parsers import money
from meterkit.subscriptions.stripe_objects import TOP_UP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ID: Final = re.compile(r"[A-Za-z]{2,8}_[A-Za-z0-9_]{1,240}")
_INTEGER_MAX: Final = 10**15
_CHECKOUT: Final = "checkout.session.completed"
_CUSTOMER: Final = "customer.updated"
_UPDATED: Final = "customer.subscription.updated"
CHANGE: Final = "change"
"""Kind of the note of an event that reports other items of a subscription."""
_METHOD_FIELDS: Final = frozenset({"invoice_settings", "default_source"})
"""Fields of a Stripe customer that name its default payment method."""
_TRIAL: Final = "customer.subscription.trial_will_end"
_INVOICES: Final = (
    "created",
    "finalized",
    "paid",
    "payment_succeeded",
    "payment_failed",
    "voided",
    "marked_uncollectible",
)
_SUBSCRIPTIONS: Final = ("created", "updated", "deleted", "paused", "resumed", "trial_will_end")
PAYMENTS: Final = frozenset({"invoice.paid", "invoice.payment_succeeded", "invoice.payment_failed"})
"""Of an invoice of a top-up, these settle it."""
CREDITED: Final = "credit_note.created"
REFUNDED: Final = "charge.refunded"
DISPUTED: Final = "charge.dispute.created"
"""A customer's bank reverses a payment: an operator must respond, and Stripe keeps the subscription
(https://docs.stripe.com/disputes/how-disputes-work)."""
TYPES: Final = (
    _CHECKOUT,
    _CUSTOMER,
    # A payment method was saved.
    "payment_method.attached",
    "setup_intent.succeeded",
    *(f"customer.subscription.{change}" for change in _SUBSCRIPTIONS),
    *(f"invoice.{change}" for change in _INVOICES),
    CREDITED,
    REFUNDED,
    DISPUTED,
)
"""Event types of a snapshot destination that request a sync; at most 20, as many as can be listed at once
(https://docs.stripe.com/api/events/list)."""
ALARMS: Final = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""Event types of a thin destination: Stripe does not bill usage that it has accepted
(https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-meter-event-errors)."""
Event = Mapping[str, Any]
"""A Stripe event: of a snapshot destination, or the notification of a thin one."""
TOLERANCE_S: Final = 300
"""Largest difference between Stripe's clock and ours, both ways."""
ForgeryReason = Literal["missing", "malformed", "no_match", "stale", "future", "unreadable"]

# Stripe signs with each secret that is valid, two while one is rolled.
_PARTS_MAX: Final = 16
_HEADER_MAX: Final = 2048
_TIME: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,255}")
_OBJECTS: Final = ("event", "v2.core.event")
_FORGERY_TEXTS: Final[Mapping[ForgeryReason, str]] = {
    "missing": "no Stripe-Signature header, or several",
    "malformed": "the Stripe-Signature header lacks one t (Unix seconds) and a v1 of 64 hexadecimal digits",
    "no_match": "no signature in it was made with a secret in METERKIT_STRIPE_WEBHOOK_SECRET: add that of"
    " this destination at Stripe",
    "stale": f"it was signed more than {TOLERANCE_S} s ago",
    "future": f"it was signed more than {TOLERANCE_S} s from now",
    "unreadable": "it is signed, and is no event",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """An action besides the sync of a Stripe customer, done once however often it is requested.

    Attributes:
        name: two notes of one name are the same action.
        kind: ``link``: find the customer of a checkout session; ``change``: read when items changed;
            otherwise the event to send to handlers.
        data: its parameters, as JSON.
    """

    name: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def dump(self) -> str:
        """Serialize the note without its name."""
        return json.dumps({"kind": self.kind, "data": self.data}, separators=(",", ":"))

    @classmethod
    def parse(cls, name: str, kept: str) -> EventNote:
        """Parse the result of :meth:`dump`."""
        found: dict[str, Any] = json.loads(kept)
        return cls(name=name, kind=found["kind"], data=found["data"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncHint:
    """The sync that an event requests.

    Attributes:
        event: the event's id; a repeat has the same.
        stripe_customer: ``cus_…``; of an alarm the event to fetch, ``evt_…``; of a refund or a dispute the
            payment, ``pi_…``; of the payment of a top-up, or of a credit note, the invoice, ``in_…``.
        note: a further action.
        alarm: text for an operator.
    """

    event: str
    stripe_customer: str | None = None
    note: EventNote | None = None
    alarm: str | None = None


def hint_of(event: Event) -> SyncHint | None:
    """Read the hint of a verified event; None if it needs no action."""
    kind, name = event["type"], event["id"]
    if kind in ALARMS:
        return SyncHint(event=name, stripe_customer=_id_of(name), alarm=_alarm_text(kind, event))
    # An event of an account that is connected to ours is about its customers, whom our key does not reach.
    if kind not in TYPES or event["object"] != "event" or event.get("account") is not None:
        return None
    data = _as_object(event.get("data"))
    shown = _as_object(data.get("object"))
    if kind in {DISPUTED, REFUNDED}:
        alarm = _dispute_text(shown) if kind == DISPUTED else None
        return SyncHint(event=name, stripe_customer=_id_of(shown.get("payment_intent")), alarm=alarm)
    if kind == CREDITED:
        return SyncHint(event=name, stripe_customer=_id_of(shown.get("invoice")))
    is_top_up = kind in PAYMENTS and TOP_UP in _as_object(shown.get("metadata"))
    customer = _id_of(shown if kind == _CUSTOMER or is_top_up else shown.get("customer"))
    changed = _as_object(data.get("previous_attributes")).keys()
    if customer is None or (kind == _CUSTOMER and not changed & _METHOD_FIELDS):
        return None
    note_of = _NOTE_READERS.get(kind)
    note = None if note_of is None else note_of(shown, event)
    return SyncHint(event=name, stripe_customer=customer, note=note)


def _alarm_text(kind: str, event: Event) -> str:
    meter = _id_of(event.get("related_object"))
    found = "no active meter of its event name" if kind == ALARMS[1] else "errors in meter events"
    where = "" if meter is None else f" of meter {meter}"
    return (
        f"Stripe has accepted usage that it does not bill: {found}{where}; the event names"
        f" examples: stripe v2 core events retrieve {event['id']}"
    )


def _dispute_text(shown: Mapping[str, Any]) -> str:
    amount, currency = _integer_of(shown.get("amount")), shown.get("currency")
    paid = "a payment"
    if amount is not None and isinstance(currency, str):
        paid = f"a payment of {money(amount, currency)}"
    return (
        f"{paid} is disputed ({_id_of(shown)}): the subscription goes on until you end it; answer the dispute"
        " in Stripe's dashboard"
    )


def _checkout_note(shown: Mapping[str, Any], _event: Event) -> EventNote | None:
    session = _id_of(shown)
    # A single payment, such as an order of a shop, has a reference of its own.
    if session is None or shown.get("client_reference_id") is None or shown.get("mode") == "payment":
        return None
    return EventNote(name=f"link/{session}", kind="link", data={"session": session})


def _change_note(_shown: Mapping[str, Any], event: Event) -> EventNote | None:
    if "items" not in _as_object(_as_object(event.get("data")).get("previous_attributes")):
        return None
    return EventNote(
        name=f"{CHANGE}/{event['id']}", kind=CHANGE, data={"event": event["id"], **_created_at(event)}
    )


def _trial_note(shown: Mapping[str, Any], event: Event) -> EventNote | None:
    subscription, trial_end_s = _id_of(shown), _integer_of(shown.get("trial_end"))
    if subscription is None or trial_end_s is None:
        return None
    data = {"subscription": subscription, "trial_end_ms": trial_end_s * 1000, **_created_at(event)}
    return EventNote(name=f"trial.ending/{subscription}/{trial_end_s}", kind="trial.ending", data=data)


def _failed_payment_note(shown: Mapping[str, Any], event: Event) -> EventNote | None:
    next_s = _integer_of(shown.get("next_payment_attempt"))
    more = {"next_attempt_ms": None if next_s is None else next_s * 1000}
    return _payment_note("payment.failed", shown, event, shown.get("amount_remaining"), more)


def _paid_note(shown: Mapping[str, Any], event: Event) -> EventNote | None:
    # An invoice of nothing, such as that of a trial, is paid without a payment; a top-up, by the customer's
    # balance at Stripe.
    return (
        _payment_note("payment.succeeded", shown, event, shown.get("amount_paid"), {})
        if shown.get("amount_paid") or TOP_UP in _as_object(shown.get("metadata"))
        else None
    )


def _payment_note(
    kind: str, shown: Mapping[str, Any], event: Event, amount: object, more: Mapping[str, Any]
) -> EventNote | None:
    invoice, amount_cents, currency = _id_of(shown), _integer_of(amount), shown.get("currency")
    attempt = _integer_of(shown.get("attempt_count")) or 0
    if invoice is None or amount_cents is None or not isinstance(currency, str):
        return None
    parent = _as_object(_as_object(shown.get("parent")).get("subscription_details"))
    data: dict[str, Any] = {
        "invoice": invoice,
        "subscription": _id_of(parent.get("subscription") or shown.get("subscription")),
        "failures": attempt,
        "amount_cents": amount_cents,
        "currency": currency,
        **more,
        **_created_at(event),
    }
    return EventNote(name=f"{kind}/{invoice}/{attempt}", kind=kind, data=data)


_NOTE_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], Event], EventNote | None]]] = {
    _CHECKOUT: _checkout_note,
    _TRIAL: _trial_note,
    _UPDATED: _change_note,
    "invoice.payment_failed": _failed_payment_note,
    "invoice.payment_succeeded": _paid_note,
    # An endpoint may be subscribed to only one of the two.
    "invoice.paid": _paid_note,
}


def _created_at(event: Event) -> dict[str, int]:
    return {"at_ms": (_integer_of(event.get("created")) or 0) * 1000}


def _as_object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _id_of(value: object) -> str | None:
    """The id of an object, expanded or not; None if there is none."""
    found = value if isinstance(value, str) else _as_object(value).get("id")
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def _integer_of(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if abs(value) <= _INTEGER_MAX else None


@dataclass(frozen=True, slots=True)
class ForgedEvent:
    """A body that is not a verified event of Stripe.

    Attributes:
        why: the reason.
    """

    why: ForgeryReason

    def __str__(self) -> str:
        return _FORGERY_TEXTS[self.why]


def verify_signature(
    body: bytes, headers: Iterable[bytes], secrets: Iterable[str], *, now_s: float
) -> Event | ForgedEvent:
    """Verify a webhook request; return its event if it was signed with one of the secrets lately.

    Args:
        body: of the request, byte for byte.
        headers: the values of its ``Stripe-Signature`` headers.
        secrets: the signing secrets, ``whsec_…``: of each endpoint, two while one is rolled.
        now_s: the current time (Unix seconds).
    """
    values = list(headers)
    if len(values) != 1 or not values[0].strip():
        return ForgedEvent("missing")
    signed = _parse_signature_header(values[0])
    if signed is None:
        return ForgedEvent("malformed")
    at, signatures = signed
    is_ours = False
    for secret in secrets:
        expected = digest(secret.encode(), b"%b.%b" % (at.encode(), body), sha256).hex().encode()
        for signature in signatures:
            is_ours |= compare_digest(expected, signature.encode())
    if not is_ours:
        return ForgedEvent("no_match")
    if abs(now_s - int(at)) > TOLERANCE_S:
        return ForgedEvent("stale" if int(at) < now_s else "future")
    return _parse_event(body)


def _parse_signature_header(header: bytes) -> tuple[str, list[str]] | None:
    """Return the time and the v1 signatures of a Stripe-Signature header; None if it is malformed."""
    if len(header) > _HEADER_MAX:
        return None
    parts = [part.strip().partition("=") for part in header.decode("latin-1").split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value for name, _, value in parts if name == "v1" and _SIGNATURE.fullmatch(value)]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not signatures:
        return None
    return times[0], signatures[:_PARTS_MAX]


def _parse_event(body: bytes) -> Event | ForgedEvent:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return ForgedEvent("unreadable")
    event = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    texts = [event.get(name) for name in ("id", "type")]
    is_named = all(isinstance(text, str) and _NAME.fullmatch(text) for text in texts)
    return event if is_named and event.get("object") in _OBJECTS else ForgedEvent("unreadable")
