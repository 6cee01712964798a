"""Only what Stripe has signed with one of our secrets, and lately, is an event; what each event hints at."""
# Internals: a pure table of Stripe's events, their signatures and forgeries.

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.subscriptions.webhooks import stripe_events
from meterkit.subscriptions.webhooks.stripe_events import (
    ALARMS,
    CREDITED,
    DISPUTED,
    PAYMENTS,
    REFUNDED,
    TOLERANCE_S,
    TYPES,
    ForgedEvent,
    SyncHint,
    hint_of,
    verify_signature,
)

NOW = 1_795_000_000
SECRET = "whsec_4eC39HqLyjWDarjtT1zdp7dc"
OTHER = "whsec_other"
INVOICE = {
    "id": "in_1",
    "object": "invoice",
    "customer": "cus_1",
    "attempt_count": 2,
    "amount_due": 2900,
    "amount_remaining": 1900,
    "amount_paid": 0,
    "currency": "usd",
    "next_payment_attempt": NOW + 86_400,
}


def event(kind: str, told: object, **more: Any) -> dict[str, Any]:
    return {"id": "evt_1", "object": "event", "type": kind, "created": NOW, "data": {"object": told}, **more}


EVENT = event("invoice.paid", INVOICE)
BODY = json.dumps(EVENT, indent=2).encode()


def signed(body: bytes = BODY, secret: str = SECRET, at: int = NOW) -> bytes:
    """As https://docs.stripe.com/webhooks#verify-manually."""
    return b"t=%d,v1=%b" % (at, hmac.new(secret.encode(), b"%d.%b" % (at, body), sha256).hexdigest().encode())


def refusal(header: bytes | None = None, *, body: bytes = BODY, **given: Any) -> str | None:
    """Why a request is refused; None where its event is taken."""
    headers = given.get("headers", [signed(body) if header is None else header])
    found = verify_signature(body, headers, given.get("secrets", [SECRET]), now_s=NOW)
    return found.why if isinstance(found, ForgedEvent) else None


def test_while_a_secret_is_rolled_either_signature_will_do() -> None:
    both = signed() + b"," + signed(secret=OTHER).partition(b",")[2]
    assert refusal(both) is None
    assert refusal(both, secrets=[OTHER]) is None
    assert refusal(both, secrets=["whsec_third"]) == "no_match"
    assert refusal(secrets=[]) == "no_match"
    # What anybody can sign without knowing one.
    assert refusal(signed(secret=""), secrets=[SECRET]) == "no_match"


def test_another_body_is_refused_and_one_too_old_or_ahead() -> None:
    for body in (BODY + b" ", BODY.replace(b"cus_1", b"cus_2"), b""):
        assert refusal(signed(), body=body) == "no_match"
    ages = (TOLERANCE_S, TOLERANCE_S + 1, -TOLERANCE_S, -TOLERANCE_S - 1)
    assert [refusal(signed(at=NOW - age)) for age in ages] == [None, "stale", None, "future"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", "missing"),
        (b",", "malformed"),
        (b"v1=" + b"a" * 64, "malformed"),
        (b"t=-5,v1=" + b"a" * 64, "malformed"),
        (b"t=" + b"9" * 5000 + b",v1=" + b"a" * 64, "malformed"),
        (signed().replace(b"v1=", b"v0="), "malformed"),
        (signed(at=NOW - 86_400).replace(b"t=%d" % (NOW - 86_400), b"t=%d" % NOW), "no_match"),
        ("t=\uff11\uff17,v1=".encode() + b"a" * 64, "malformed"),
        (b"t=%d,v1=" % NOW + b"a" * 63, "malformed"),
        (b"t=%d,v1=" % NOW + b"a" * 64, "no_match"),
        (b"t=%d,v1=" % NOW + b"\x00" * 64, "malformed"),
    ],
)
def test_headers_that_are_none_are_refused(header: bytes, expected: str) -> None:
    assert refusal(header) == expected


def test_two_times_are_none_and_further_signatures_do_no_harm() -> None:
    at, _, rest = signed().partition(b",")
    assert refusal(b"%b,%b,%b" % (at, at, rest)) == "malformed"
    assert refusal(b"t=1,%b,%b" % (at, rest)) == "malformed"
    junk = b"v1=" + b"0" * 64
    assert refusal(b",".join((at, junk, junk, b"v1=", b"v2=x", rest, rest))) is None
    assert refusal(b" %b , %b " % (at, rest)) is None
    for headers in ([], [signed(), signed()], [b"", signed()]):
        assert refusal(headers=headers) == "missing"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"id": ' + b"9" * 5000 + b"}",
        json.dumps({**EVENT, "id": "e" * 256}).encode(),
        json.dumps({**EVENT, "id": "evt_\ud800"}).encode(),
        json.dumps({**EVENT, "id": "evt_1\n"}).encode(),
        json.dumps({**EVENT, "type": "invoice.p\u00e4id"}).encode(),
        json.dumps({**EVENT, "object": "invoice"}).encode(),
    ],
)
def test_what_is_signed_and_no_event_is_refused(body: bytes) -> None:
    mac = hmac.new(SECRET.encode(), b"%d.%b" % (NOW, body), sha256).hexdigest()
    assert refusal(b"t=%d,v1=%b" % (NOW, mac.encode()), body=body) == "unreadable"


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(stripe_events, "compare_digest", compare)
    assert refusal(signed() + b",v1=" + b"0" * 64, secrets=[SECRET, OTHER]) is None
    assert len(compared) == 4, "the first that fits does not end it"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_comes_is_refused_without_an_error(header: bytes, body: bytes) -> None:
    assert isinstance(verify_signature(body, [header], [SECRET], now_s=NOW), ForgedEvent)


def test_a_failed_payment_is_of_what_a_part_payment_leaves() -> None:
    found = hint_of(event("invoice.payment_failed", INVOICE))
    assert found is not None
    assert found.note is not None
    assert found.note.data["amount_cents"] == 1900


LOOK = SyncHint(event="evt_1", stripe_customer="cus_1")


@pytest.mark.parametrize("kind", sorted({*TYPES} - {CREDITED, DISPUTED, REFUNDED, "customer.updated"}))
def test_each_type_names_the_stripe_customer_to_look_at(kind: str) -> None:
    for customer in ("cus_1", {"id": "cus_1", "object": "customer"}):
        assert hint_of(event(kind, {"id": "x_1", "customer": customer})) == LOOK


def test_a_top_up_and_a_credit_note_name_the_invoice() -> None:
    marked = {**INVOICE, "metadata": {"meterkit_top_up": "usd 1000"}}
    hints = [hint_of(event(kind, marked)) for kind in sorted(PAYMENTS)]
    hints.append(hint_of(event(CREDITED, {"id": "cn_1", "customer": "cus_1", "invoice": "in_1"})))
    assert [hint and hint.stripe_customer for hint in hints] == ["in_1"] * 4
    assert len(TYPES) <= 20  # As many as Stripe lists at once.


def test_of_a_customer_only_another_payment_method_matters() -> None:
    told = {"id": "cus_1", "object": "customer"}
    for previous, expected in (
        ({"invoice_settings": {"default_payment_method": None}}, LOOK),
        ({"balance": 0}, None),
        (None, None),
    ):
        data = {"object": told, "previous_attributes": previous}
        assert hint_of(event("customer.updated", told, data=data)) == expected


@pytest.mark.parametrize(
    ("cents", "currency", "amount"), [(2900, "usd", "a payment of $29.00"), (None, 7, "a payment")]
)
def test_a_disputed_payment_is_for_a_person(cents: object, currency: object, amount: str) -> None:
    found = hint_of(event(DISPUTED, {"id": "dp_1", "amount": cents, "currency": currency}))
    assert found is not None
    assert (found.stripe_customer, found.note) == (None, None)
    assert str(found.alarm).startswith(f"{amount} is disputed (dp_1): the subscription goes on")


@pytest.mark.parametrize(
    "other",
    [
        event("customer.created", {"id": "cus_1"}),
        event("invoice.paid", {"id": "in_1", "customer": None}),
        event("invoice.paid", {"id": "in_1", "customer": "../v1/accounts"}),
        event("invoice.paid", INVOICE, account="acct_1"),
        {**EVENT, "data": None},
        {**EVENT, "object": "v2.core.event"},
    ],
)
def test_all_else_is_nothing_to_do(other: dict[str, Any]) -> None:
    assert hint_of(other) is None


def test_usage_that_stripe_does_not_bill_is_an_alarm() -> None:
    notice = {"id": "evt_9", "object": "v2.core.event", "type": ALARMS[0], "related_object": {"id": "mtr_1"}}
    found = hint_of(notice)
    assert found is not None
    # The event itself is to be fetched.
    assert (found.stripe_customer, found.note) == ("evt_9", None)
    assert "mtr_1" in str(found.alarm)
    assert "stripe v2 core events retrieve evt_9" in str(found.alarm)


@pytest.mark.parametrize(
    "broken", [{"amount_remaining": True}, {"amount_remaining": 10**4000}, {"currency": None}]
)
def test_a_payment_that_cannot_be_read_is_looked_at_and_not_told(broken: dict[str, object]) -> None:
    assert hint_of(event("invoice.payment_failed", {**INVOICE, **broken})) == LOOK
