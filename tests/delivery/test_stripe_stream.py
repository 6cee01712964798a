"""The stream as a transport: what goes over the wire, and what an answer says of a batch."""
# Internals: one call at a time of the transport, on the wire.

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.stripe_sdk import StripeSession
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.outbox.intents import Sealed
from meterkit.stripe.request import API_VERSION
from meterkit.testing import Clock
from servers.fixed_answers import answer, answering

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.delivery.outcomes import Kind
    from servers.fixed_answers import Asked

pytestmark = pytest.mark.anyio

KEY = "sk_test_51SECRETsecret"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTENT = Sealed(
    identifier="4f1c",
    customer="ada",
    stripe_customer="cus_1",
    period="1793491200000",
    meter_token="requ",
    event_name="api_requests",
    value=3,
    timestamp=int(NOW.timestamp()),
    key="4f1c",
    sealed_ms=0,
    due_ms=0,
)
OTHER = replace(INTENT, identifier="4f1d", stripe_customer="cus_2", value=10**15 - 1)
STREAM = "POST /v2/billing/meter_event_stream HTTP/1.1"
SESSION = {
    "object": "v2.billing.meter_event_session",
    "authentication_token": "token_1",
    "created": "2026-11-20T12:00:00.000Z",
    "expires_at": "2026-11-20T12:15:00.000Z",
}


@asynccontextmanager
async def opened(
    api_base: str, *, clock: Clock | None = None, **settings: Any
) -> AsyncGenerator[StripeStreamTransport]:
    given: dict[str, Any] = {"timeout_s": 240.0, "clock": clock or Clock(NOW), **settings}
    transport = StripeStreamTransport(KEY, api_base=api_base, **given)
    try:
        yield transport
    finally:
        await transport.close()


def stand_in(status: int = 200, body: object = "{}", session: object = None, **headers: str) -> Any:
    """Answers: a session to whoever asks for one, else what is given."""

    def answered(asked: Asked) -> bytes:
        if asked.line == STREAM:
            return answer(status, body, **headers)
        return answer(200, SESSION if session is None else session)

    return answered


async def test_the_wire_form_is_that_of_the_official_sdk_but_for_texts() -> None:
    async with answering(stand_in()) as server, opened(server.url) as transport:
        assert await transport.ready() is None
        assert (await transport.send(INTENT, OTHER)).kind == "delivered"
        sdk = StripeSession(KEY, api_base=server.url, events_base=server.url, timeout_s=300.0)
        client = sdk.client
        session = await client.v2.billing.meter_event_session.create_async()
        events: Any = json.loads(server.asked[1].body)["events"]
        options: Any = {"api_key": session.authentication_token}
        await client.v2.billing.meter_event_stream.create_async({"events": events}, options)
        await sdk.close()
    ours, theirs = server.asked[:2], server.asked[2:]
    assert [asked.line for asked in ours] == [asked.line for asked in theirs]
    assert json.loads(ours[1].body) == json.loads(theirs[1].body)
    for mine, sdks in zip(ours, theirs, strict=True):
        for name in ("authorization", "stripe-version", "content-type", "host"):
            assert mine.headers[name] == sdks.headers[name]
    assert ours[1].headers["authorization"] == "Bearer token_1"
    assert ours[0].headers["stripe-version"] == API_VERSION
    # RFC 3339 (format: date-time), and texts: the SDK would write a datetime as a Unix integer.
    assert events == [
        {
            "event_name": "api_requests",
            "identifier": "4f1c",
            "payload": {"stripe_customer_id": "cus_1", "value": "3"},
            "timestamp": "2026-11-20T12:00:00Z",
        },
        {
            "event_name": "api_requests",
            "identifier": "4f1d",
            "payload": {"stripe_customer_id": "cus_2", "value": "999999999999999"},
            "timestamp": "2026-11-20T12:00:00Z",
        },
    ]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "{}", "delivered"),
        (200, "", "unreadable"),
        (500, "{}", "unknown"),
        (400, "<html>Bad Request</html>", "systemic"),
        (400, {"error": {"code": "invalid_fields", "message": "No."}}, "permanent"),
        (400, {"error": {"code": "no_meter", "message": "No."}}, "no_meter"),
        (400, {"error": {"code": "duplicate_meter_event", "message": "No."}}, "duplicate"),
        (400, {"error": {"code": "payload_no_customer_defined", "message": "No."}}, "mapping"),
        (429, {"error": {"code": "too_many_concurrent_requests", "message": "No."}}, "not_done"),
    ],
)
async def test_what_an_answer_says_of_a_batch(status: int, body: object, kind: Kind) -> None:
    answers = stand_in(status, body, **{"request-id": "req_1"})
    async with answering(answers) as server, opened(server.url) as transport:
        await transport.ready()
        assert (await transport.send(INTENT, OTHER)).kind == kind


@pytest.mark.parametrize(("age_s", "sessions"), [(12 * 60 + 59, 1), (13 * 60, 2)])
async def test_a_session_is_renewed_two_minutes_before_its_end(age_s: int, sessions: int) -> None:
    # https://docs.stripe.com/api/v2/billing/meter-event-stream/session/create: 15 minutes.
    clock = Clock(NOW)
    async with answering(stand_in()) as server, opened(server.url, clock=clock) as transport:
        await transport.ready()
        clock.advance(timedelta(seconds=age_s))
        await transport.ready()
    assert len(server.asked) == sessions


@pytest.mark.parametrize(
    "session",
    ["{}", "<html>", {**SESSION, "authentication_token": "a\r\nx: y"}, {**SESSION, "expires_at": "soon"}],
)
async def test_what_is_no_session_is_not_used(session: object) -> None:
    async with answering(stand_in(session=session)) as server, opened(server.url) as transport:
        outcome = await transport.ready()
        assert outcome is not None
        assert (outcome.kind, outcome.refused) == ("unreadable", True)
        assert (await transport.send(INTENT)).kind == "not_done"
    assert len(server.asked) == 1


async def test_i10_neither_key_nor_token_is_told(caplog: pytest.LogCaptureFixture) -> None:
    body = {"error": {"type": "invalid_request_error", "message": f"Invalid API Key provided: {KEY}"}}
    async with answering(stand_in(401, body)) as server, opened(server.url) as transport:
        await transport.ready()
        outcome = await transport.send(INTENT)
        told = f"{transport!r} {outcome!r} {caplog.text}"
    assert "SECRET" not in told
    assert "token_1" not in told
