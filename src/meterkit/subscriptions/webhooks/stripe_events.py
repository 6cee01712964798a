"""Stripe's events: their signatures, and what each hints at: whom to sync, what to report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest, digest
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from meterkit.catalog.amount_texts import money
from meterkit.subscriptions.stripe_objects import TOP_UP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TOLERANCE_S: Final = 300
"""How far the clock of who signed may be from ours, on both sides."""
Event = Mapping[str, Any]
"""An event as Stripe's JSON tells it: of a snapshot destination, or the notice of a thin one."""
Why = Literal["missing", "malformed", "no_match", "stale", "future", "unreadable"]

# Stripe signs with each secret that is valid, two while one is rolled.
_PARTS_MAX: Final = 16
_HEADER_MAX: Final = 2048
_TIME: Final = re.compile(r"[0-9]{1,12}")
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[\x21-\x7e]{1,255}")
_OBJECTS: Final = ("event", "v2.core.event")
_SAYS: Final[Mapping[Why, str]] = {
    "missing": "no Stripe-Signature header, or several",
    "malformed": "the Stripe-Signature header has no single t and no v1",
    "no_match": "no signature in it was made with one of the signing secrets",
    "stale": f"it was signed more than {TOLERANCE_S} s ago",
    "future": f"it was signed more than {TOLERANCE_S} s from now",
    "unreadable": "it is signed, and is no event",
}


@dataclass(frozen=True, slots=True)
class ForgedEvent:
    """A body that is not a verified event of Stripe.

    Attributes:
        why: in a word.
    """

    why: Why

    def __str__(self) -> str:
        return _SAYS[self.why]


def verify(
    body: bytes, headers: Iterable[bytes], secrets: Iterable[str], *, now_s: float
) -> Event | ForgedEvent:
    """The event that a request brings, if it is signed with one of the secrets and within the tolerance.

    Args:
        body: the request's, byte for byte.
        headers: the values of its ``Stripe-Signature`` headers.
        secrets: the signing secrets, ``whsec_…``: of each endpoint, two while one is rolled.
        now_s: this process's clock, in Unix seconds.
    """
    values = list(headers)
    if len(values) != 1 or not values[0].strip():
        return ForgedEvent("missing")
    signed = _parts(values[0])
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
    return _event(body)


def _parts(header: bytes) -> tuple[str, list[str]] | None:
    """When it was signed, and the signatures of scheme v1; None where the header does not say so clearly."""
    if len(header) > _HEADER_MAX:
        return None
    parts = [part.strip().partition("=") for part in header.decode("latin-1").split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value for name, _, value in parts if name == "v1" and _SIGNATURE.fullmatch(value)]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not signatures:
        return None
    return times[0], signatures[:_PARTS_MAX]


def _event(body: bytes) -> Event | ForgedEvent:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        return ForgedEvent("unreadable")
    event = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    texts = [event.get(name) for name in ("id", "type")]
    is_named = all(isinstance(text, str) and _NAME.fullmatch(text) for text in texts)
    return event if is_named and event.get("object") in _OBJECTS else ForgedEvent("unreadable")


_ID: Final = re.compile(r"[A-Za-z]{2,8}_[A-Za-z0-9_]{1,240}")
_WHOLE_MAX: Final = 10**15
TOPS_UP: Final = "tops_up"
"""In the data of a note about an invoice: it is of a top-up."""
_CHECKOUT: Final = "checkout.session.completed"
_CUSTOMER: Final = "customer.updated"
_MEANS: Final = frozenset({"invoice_settings", "default_source"})
"""The attributes of a Stripe customer that name its default payment method."""
_TRIAL: Final = "customer.subscription.trial_will_end"
_INVOICES: Final = (
    *("created", "finalized", "paid", "payment_succeeded", "payment_failed"),
    *("voided", "marked_uncollectible"),
)
_SUBSCRIPTIONS: Final = ("created", "updated", "deleted", "paused", "resumed", "trial_will_end")
REFUNDED: Final = "charge.refunded"
DISPUTED: Final = "charge.dispute.created"
"""A customer's bank takes a payment back: a person is to answer, and Stripe changes no subscription by itself
(https://docs.stripe.com/disputes/how-disputes-work)."""
TYPES: Final = (
    _CHECKOUT,
    _CUSTOMER,
    # A payment method was saved.
    "payment_method.attached",
    "setup_intent.succeeded",
    *(f"customer.subscription.{change}" for change in _SUBSCRIPTIONS),
    *(f"invoice.{change}" for change in _INVOICES),
    "entitlements.active_entitlement_summary.updated",
    REFUNDED,
    DISPUTED,
)
"""The events of a snapshot destination that say whom to look at; at most 20, as many as can be listed at once
(https://docs.stripe.com/api/events/list)."""
ALARMS: Final = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
"""The events of a thin destination that say that Stripe does not bill usage which it has accepted
(https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-meter-event-errors)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """An action besides the sync of a Stripe customer, done once however often it is requested.

    Attributes:
        name: what makes it the same.
        kind: ``link``: find the customer of a checkout session; else the event to send to handlers.
        data: what belongs to it; whatever JSON can say.
    """

    name: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def dump(self) -> str:
        """The note as JSON; its name is kept beside it."""
        return json.dumps({"kind": self.kind, "data": self.data}, separators=(",", ":"))

    @classmethod
    def parse(cls, name: str, kept: str) -> EventNote:
        """The inverse of :meth:`dump`."""
        found: dict[str, Any] = json.loads(kept)
        return cls(name=name, kind=found["kind"], data=found["data"])


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncHint:
    """What an event hints at.

    Attributes:
        event: the event's id, by which a repeat is known.
        stripe_customer: ``cus_…``; of an alarm the event itself, ``evt_…``, which is to be fetched; of a
            refund or a dispute the payment, ``pi_…``.
        note: what is to be done besides.
        alarm: the text for an operator.
    """

    event: str
    stripe_customer: str | None = None
    note: EventNote | None = None
    alarm: str | None = None


def hint_of(event: Event) -> SyncHint | None:
    """The hint of a verified event; None: it needs no action."""
    kind, name = event["type"], event["id"]
    if kind in ALARMS:
        return SyncHint(event=name, stripe_customer=_id(name), alarm=_alarm(kind, event))
    # An event of an account that is connected to ours is about its customers, whom our key does not reach.
    if kind not in TYPES or event["object"] != "event" or event.get("account") is not None:
        return None
    data = _object(event.get("data"))
    told = _object(data.get("object"))
    if kind in {DISPUTED, REFUNDED}:
        alarm = _dispute(told) if kind == DISPUTED else None
        return SyncHint(event=name, stripe_customer=_id(told.get("payment_intent")), alarm=alarm)
    customer = _id(told if kind == _CUSTOMER else told.get("customer"))
    changed = _object(data.get("previous_attributes")).keys()
    if customer is None or (kind == _CUSTOMER and not changed & _MEANS):
        return None
    note_of = _NOTES.get(kind)
    note = None if note_of is None else note_of(told, event)
    return SyncHint(event=name, stripe_customer=customer, note=note)


def _alarm(kind: str, event: Event) -> str:
    meter = _id(event.get("related_object"))
    found = "no active meter of its event name" if kind == ALARMS[1] else "errors in meter events"
    where = "" if meter is None else f" of meter {meter}"
    return (
        f"Stripe has accepted usage that it does not bill: {found}{where}; the event names"
        f" examples: stripe v2 core events retrieve {event['id']}"
    )


def _dispute(told: Mapping[str, Any]) -> str:
    amount, currency = _whole(told.get("amount")), told.get("currency")
    paid = "a payment"
    if amount is not None and isinstance(currency, str):
        paid = f"a payment of {money(amount, currency)}"
    return (
        f"{paid} is disputed ({_id(told)}): the subscription goes on until you end it; answer the dispute in"
        " Stripe's dashboard"
    )


def _checkout(told: Mapping[str, Any], _event: Event) -> EventNote | None:
    session = _id(told)
    if session is None or told.get("client_reference_id") is None:
        return None
    return EventNote(name=f"link/{session}", kind="link", data={"session": session})


def _trial_ending(told: Mapping[str, Any], event: Event) -> EventNote | None:
    subscription, trial_end_s = _id(told), _whole(told.get("trial_end"))
    if subscription is None or trial_end_s is None:
        return None
    data = {"subscription": subscription, "trial_end_ms": trial_end_s * 1000, **_at(event)}
    return EventNote(name=f"trial.ending/{subscription}/{trial_end_s}", kind="trial.ending", data=data)


def _payment_failed(told: Mapping[str, Any], event: Event) -> EventNote | None:
    next_s = _whole(told.get("next_payment_attempt"))
    more = {"next_attempt_ms": None if next_s is None else next_s * 1000}
    return _payment("payment.failed", told, event, told.get("amount_due"), more)


def _payment_succeeded(told: Mapping[str, Any], event: Event) -> EventNote | None:
    # An invoice of nothing, such as that of a trial, is paid without a payment.
    return (
        _payment("payment.succeeded", told, event, told.get("amount_paid"), {})
        if told.get("amount_paid")
        else None
    )


def _payment(
    kind: str, told: Mapping[str, Any], event: Event, amount: object, more: Mapping[str, Any]
) -> EventNote | None:
    invoice, amount_cents, currency = _id(told), _whole(amount), told.get("currency")
    attempt = _whole(told.get("attempt_count")) or 0
    if invoice is None or amount_cents is None or not isinstance(currency, str):
        return None
    data: dict[str, Any] = {
        "invoice": invoice,
        "failures": attempt,
        "amount_cents": amount_cents,
        "currency": currency,
        **more,
        **_at(event),
    }
    if TOP_UP in _object(told.get("metadata")):
        data[TOPS_UP] = True
    return EventNote(name=f"{kind}/{invoice}/{attempt}", kind=kind, data=data)


_NOTES: Final[Mapping[str, Callable[[Mapping[str, Any], Event], EventNote | None]]] = {
    _CHECKOUT: _checkout,
    _TRIAL: _trial_ending,
    "invoice.payment_failed": _payment_failed,
    "invoice.payment_succeeded": _payment_succeeded,
    # An endpoint may be subscribed to only one of the two.
    "invoice.paid": _payment_succeeded,
}


def _at(event: Event) -> dict[str, int]:
    return {"at_ms": (_whole(event.get("created")) or 0) * 1000}


def _object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _id(value: object) -> str | None:
    """The id of an object that is named, or shown in full; None where there is none."""
    found = value if isinstance(value, str) else _object(value).get("id")
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def _whole(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if abs(value) <= _WHOLE_MAX else None
