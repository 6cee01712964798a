"""Only what Stripe has signed with one of our secrets, and lately, is taken for an event."""
# Internals: a pure table of signatures and forgeries.

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from meterkit.subscriptions.webhooks import stripe_events
from meterkit.subscriptions.webhooks.stripe_events import TOLERANCE_S, Forged, verify

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_795_000_000
SECRET = "whsec_4eC39HqLyjWDarjtT1zdp7dc"
OTHER = "whsec_other"
EVENT: dict[str, Any] = {
    "id": "evt_1",
    "object": "event",
    "type": "invoice.paid",
    "data": {"object": {"id": "in_1", "customer": "cus_1"}},
}
BODY = json.dumps(EVENT, indent=2).encode()

sdk: Any = stripe
generate: Callable[..., str] = sdk.WebhookSignature.generate_signature_header


def signed(body: bytes = BODY, secret: str = SECRET, at: int = NOW) -> bytes:
    return generate(body.decode(), secret, timestamp=at).encode()


def why(found: object) -> str | None:
    return found.why if isinstance(found, Forged) else None


def look(header: bytes | None = None, *, body: bytes = BODY, now_s: float = NOW, **given: Any) -> str | None:
    """Why a request is refused; None where its event is taken."""
    headers = given.get("headers", [signed(body) if header is None else header])
    return why(verify(body, headers, given.get("secrets", [SECRET]), now_s=now_s))


def test_while_a_secret_is_rolled_either_signature_will_do() -> None:
    ours, theirs = signed().decode(), signed(secret=OTHER).decode()
    both = f"{ours},{theirs.partition(',')[2]}".encode()
    assert look(both) is None
    assert look(both, secrets=[OTHER]) is None
    assert look(both, secrets=["whsec_third"]) == "no_match"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, None),
        (TOLERANCE_S, None),
        (TOLERANCE_S + 1, "stale"),
        (-TOLERANCE_S, None),
        (-TOLERANCE_S - 1, "future"),
    ],
)
def test_it_may_be_five_minutes_old_or_ahead(seconds: int, expected: str | None) -> None:
    assert look(signed(at=NOW - seconds)) == expected


@pytest.mark.parametrize("body", [BODY + b" ", BODY.replace(b"cus_1", b"cus_2"), b""])
def test_another_body_than_was_signed_is_refused(body: bytes) -> None:
    assert look(signed(), body=body) == "no_match"


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
    assert look(header) == expected


def test_two_times_are_none_and_further_signatures_do_no_harm() -> None:
    at, _, rest = signed().partition(b",")
    assert look(b"%b,%b,%b" % (at, at, rest)) == "malformed"
    assert look(b"t=1,%b,%b" % (at, rest)) == "malformed"
    junk = b"v1=" + b"0" * 64
    assert look(b",".join((at, junk, junk, b"v1=", b"v2=x", rest, rest))) is None
    assert look(b" %b , %b " % (at, rest)) is None


@pytest.mark.parametrize("headers", [[], [signed(), signed()], [b"", signed()]])
def test_no_header_and_several_are_refused(headers: list[bytes]) -> None:
    assert look(headers=headers) == "missing"


def test_without_a_secret_nothing_is_taken() -> None:
    assert look(secrets=[]) == "no_match"
    # What anybody can sign without knowing one.
    assert look(signed(secret=""), secrets=[SECRET]) == "no_match"


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
    stamped = b"%d.%b" % (NOW, body)
    mac = hmac.new(SECRET.encode(), stamped, sha256).hexdigest()
    assert look(b"t=%d,v1=%b" % (NOW, mac.encode()), body=body) == "unreadable"


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(stripe_events, "compare_digest", compare)
    at, _, rest = signed().partition(b",")
    junk = b"v1=" + b"0" * 64
    assert look(b",".join((at, rest, junk)), secrets=[SECRET, OTHER]) is None
    assert len(compared) == 4, "the first that fits does not end it"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_comes_is_refused_without_an_error(header: bytes, body: bytes) -> None:
    assert isinstance(verify(body, [header], [SECRET], now_s=NOW), Forged)
