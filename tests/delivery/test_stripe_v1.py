"""Meter events by API v1 and by streams: what goes over the wire, and what an answer says."""
# Internals: one call at a time of the transport, on the wire.

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import util
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
import pytest

from drivers.emulated_account import StripeSession
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.delivery.stripe_stream import StripeStreamTransport
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.outbox.intents import Sealed
from meterkit.stripe.api import StripeApi
from meterkit.stripe.request import API_VERSION
from meterkit.testing import Clock, StripeEmulator
from servers.fixed_answers import answer, answering

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from importlib.machinery import ModuleSpec

    from meterkit.delivery.outcomes import Kind
    from meterkit.delivery.sending import Transport
    from servers.fixed_answers import Asked

pytestmark = pytest.mark.anyio

KEY = "sk_test_51SECRETsecret"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTENT = Sealed(
    identifier="4f1c",
    customer="ada",
    stripe_customer="cus_1",
    period="2026-11-01T00:00:00Z",
    meter_token="requ",
    event_name="api_requests",
    value=3,
    timestamp=int(NOW.timestamp()),
    key="4f1c",
    sealed_ms=0,
    due_ms=0,
)
ACCEPTED = {"object": "billing.meter_event", "identifier": "4f1c", "livemode": False}
CLOSED_PORT = "http://127.0.0.1:1"


@asynccontextmanager
async def opened(api_base: str, *, timeout_s: float = 240.0) -> AsyncGenerator[Transport]:
    transport = StripeV1Transport(KEY, api_base=api_base, timeout_s=timeout_s)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def emulated(*, timeout_s: float = 240.0) -> AsyncGenerator[tuple[StripeEmulator, Transport]]:
    emulator = StripeEmulator(clock=Clock(NOW))
    emulator.add_customer("cus_1")
    emulator.add_meter("api_requests")
    async with emulator.serve() as url, opened(url, timeout_s=timeout_s) as transport:
        yield emulator, transport


def created(asked: Asked) -> bytes:
    """What Stripe answers to a meter event."""
    return answer(200, {**ACCEPTED, "identifier": parse_qs(asked.body)["identifier"][0]})


async def test_wire_form_is_that_of_the_official_sdk() -> None:
    intent = replace(INTENT, value=10**15 - 1, key="4f1c-2")
    async with answering(created) as stand_in, opened(stand_in.url) as transport:
        assert (await transport.send(intent)).kind == "delivered"
        session = StripeSession(KEY, api_base=stand_in.url, timeout_s=300)
        await session.create_meter_event(intent)
        await session.close()
    ours, theirs = stand_in.asked
    assert parse_qs(ours.body) == {
        "event_name": ["api_requests"],
        "identifier": ["4f1c"],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["999999999999999"],
        "timestamp": [str(INTENT.timestamp)],
    }
    assert parse_qs(ours.body) == parse_qs(theirs.body)
    assert (ours.line, theirs.line) == ("POST /v1/billing/meter_events HTTP/1.1",) * 2
    for name in ("authorization", "idempotency-key", "stripe-version", "content-type", "host"):
        assert ours.headers[name] == theirs.headers[name]
    assert "x-stripe-client-telemetry" not in ours.headers


@pytest.mark.parametrize(
    ("status", "error", "headers", "kind"),
    [
        (400, {"message": "Locked."}, {"stripe_should_retry": "true"}, "not_done"),
        (400, {"message": "Too late.", "param": "timestamp"}, {}, "timestamp"),
        (401, {"message": f"Invalid API Key provided: {KEY}"}, {}, "systemic"),
        (409, {"code": "idempotency_key_in_use"}, {}, "not_done"),
        (503, {"type": "api_error"}, {}, "unknown"),
    ],
)
async def test_refusals(status: int, error: dict[str, str], headers: dict[str, str], kind: Kind) -> None:
    body = {"error": {"type": "invalid_request_error", **error}}
    async with answering(answer(status, body, **headers)) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert kind == outcome.kind
    assert len(stand_in.asked) == 1, "one send is one request"
    assert "SECRET" not in repr(outcome)


HTML = "<html>An event already exists with identifier 4f1c. No such customer: please log in</html>"


@pytest.mark.parametrize("body", ["", HTML, "[]", '{"identifier": "another"}', '{"identifier": "4f1'])
async def test_a_200_that_is_not_of_this_event_is_unknown_and_told(body: str) -> None:
    async with answering(answer(200, body)) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert (outcome.kind, outcome.new_key, outcome.alert) == ("unreadable", True, True)
    assert (outcome.step, outcome.refused, outcome.scope) == ("retry", False, "account")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (302, ""),
        (400, HTML),
        (403, "[]"),
        (404, '{"error": "odd"}'),
        (407, '{"error": null}'),
        (413, '{"error": {"type": 3}}'),
    ],
)
async def test_a_refusal_that_is_not_stripes_own_ends_no_intent(status: int, body: str) -> None:
    # F-50
    async with answering(answer(status, body)) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert (outcome.kind, outcome.step, outcome.scope) == ("systemic", "retry", "account")
    assert f"HTTP {status}" in outcome.detail
    assert len(stand_in.asked) == 1, "a redirect is not followed"


WHOLE = answer(200, ACCEPTED)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        WHOLE[:-1],
        CHUNKED + b'5\r\n{"ide\r\n',
        CHUNKED + b"%x\r\n" % len(json.dumps(ACCEPTED)) + json.dumps(ACCEPTED).encode() + b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=range(5),
)
async def test_an_answer_that_is_cut_off_is_unknown(raw: bytes) -> None:
    # F-50: a truncated answer says nothing, whatever its status.
    async with answering(raw, closes=True) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert (outcome.kind, outcome.new_key) == ("unknown", False)


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    endless = answer(200, "x" * 2_000_000)
    async with answering(endless) as stand_in, opened(stand_in.url) as transport:
        assert (await transport.send(INTENT)).kind == "unknown"


async def test_a_refusal_of_the_environments_proxy_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Whatever\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        async with opened("https://stripe.test") as transport:
            assert (await transport.send(INTENT)).kind == "not_done"
    assert asked[0].startswith(b"CONNECT stripe.test:443 HTTP/1.1\r\n")


async def test_a_server_that_hangs_costs_one_timeout() -> None:
    async with emulated(timeout_s=0.3) as (emulator, transport):
        emulator.fail_next("hang")
        with anyio.fail_after(240):
            assert (await transport.send(INTENT)).kind == "unknown"


async def test_nobody_at_the_address_is_certainly_not_done() -> None:
    async with opened(CLOSED_PORT) as transport:
        assert (await transport.send(INTENT)).kind == "not_done"


async def test_after_close_nothing_is_sent() -> None:
    async with emulated() as (emulator, transport):
        await transport.send(INTENT)
        await transport.close()
        await transport.close()
        assert (await transport.send(replace(INTENT, identifier="other"))).kind == "not_done"
        assert len(emulator.events) == 1


async def test_cancellation_passes() -> None:
    async with emulated() as (emulator, transport):
        emulator.fail_next("hang")
        with anyio.move_on_after(0.1) as scope:
            await transport.send(INTENT)
        assert scope.cancelled_caught


def test_missing_extra_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        return None if name == "aiohttp" else util.find_spec(name)

    monkeypatch.setattr("meterkit.delivery.stripe_v1.find_spec", find_spec)
    with pytest.raises(ImportError, match=r"needs aiohttp: pip install 'meterkit\[stripe\]'"):
        StripeV1Transport(KEY)


async def test_meter_events_may_go_to_an_address_of_their_own(store_url: str) -> None:
    api, events = StripeEmulator(), StripeEmulator()
    for emulator in (api, events):
        emulator.add_meter("api_requests")
        emulator.add_customer("cus_1")
    plans = """
        {schema: 1, currency: usd, default_plan: free,
         meters: {requests: {unit: request, stripe: {event_name: api_requests}}},
         plans: {free: {price: {amount_cents: 0, interval: month}}}}
    """
    with api.running() as api_base, events.running() as events_base:
        addresses = {"stripe_api_base": api_base, "stripe_events_base": events_base}
        settings: dict[str, Any] = {
            "redis_url": store_url,
            "stripe_api_key": KEY,
            "flush": False,
            **addresses,
        }
        async with MeterKit(loads(plans), **settings) as kit:
            await kit.customers.link("ada", "cus_1")
            await kit.record("ada", "requests", 7)
            assert (await kit.flush(everything=True, timeout_s=60)).is_complete
            events.add_meter("others")
            api_of_all_else = StripeApi(kit.settings)
            meters = await api_of_all_else.list("/v1/billing/meters")
            await api_of_all_else.close()
    assert (0, 7) == tuple(int(emulator.accepted("cus_1", "api_requests")) for emulator in (api, events))
    assert ["api_requests"] == [meter["event_name"] for meter in meters]


OTHER = replace(INTENT, identifier="4f1d", stripe_customer="cus_2", value=10**15 - 1)


STREAM = "POST /v2/billing/meter_event_stream HTTP/1.1"


SESSION = {
    "object": "v2.billing.meter_event_session",
    "authentication_token": "token_1",
    "created": "2026-11-20T12:00:00.000Z",
    "expires_at": "2026-11-20T12:15:00.000Z",
}


@asynccontextmanager
async def opened_stream(
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
    async with answering(stand_in()) as server, opened_stream(server.url) as transport:
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
    async with answering(answers) as server, opened_stream(server.url) as transport:
        await transport.ready()
        assert (await transport.send(INTENT, OTHER)).kind == kind


@pytest.mark.parametrize(("age_s", "sessions"), [(12 * 60 + 59, 1), (13 * 60, 2)])
async def test_a_session_is_renewed_two_minutes_before_its_end(age_s: int, sessions: int) -> None:
    # https://docs.stripe.com/api/v2/billing/meter-event-stream/session/create: 15 minutes.
    clock = Clock(NOW)
    async with answering(stand_in()) as server, opened_stream(server.url, clock=clock) as transport:
        await transport.ready()
        clock.advance(timedelta(seconds=age_s))
        await transport.ready()
    assert len(server.asked) == sessions


@pytest.mark.parametrize(
    "session",
    ["{}", "<html>", {**SESSION, "authentication_token": "a\r\nx: y"}, {**SESSION, "expires_at": "soon"}],
)
async def test_what_is_no_session_is_not_used(session: object) -> None:
    async with answering(stand_in(session=session)) as server, opened_stream(server.url) as transport:
        outcome = await transport.ready()
        assert outcome is not None
        assert (outcome.kind, outcome.refused) == ("unreadable", True)
        assert (await transport.send(INTENT)).kind == "not_done"
    assert len(server.asked) == 1


async def test_i10_neither_key_nor_token_is_told(caplog: pytest.LogCaptureFixture) -> None:
    body = {"error": {"type": "invalid_request_error", "message": f"Invalid API Key provided: {KEY}"}}
    async with answering(stand_in(401, body)) as server, opened_stream(server.url) as transport:
        await transport.ready()
        outcome = await transport.send(INTENT)
        told = f"{transport!r} {outcome!r} {caplog.text}"
    assert "SECRET" not in told
    assert "token_1" not in told
