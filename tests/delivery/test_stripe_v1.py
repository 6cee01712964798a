"""Meter events by API v1: what goes over the wire, and what an answer says."""
# Internals: one call at a time of the transport, on the wire.

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import util
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from drivers.stripe_sdk import StripeSession
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.outbox.intents import Sealed
from meterkit.stripe.api import StripeApi
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


async def test_a_trickling_answer_cannot_outlive_the_timeout() -> None:
    async def trickle(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                await stream.send(b" ")
                await anyio.sleep(0.02)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 (not Django's)
        async with (
            anyio.create_task_group() as tasks,
            opened(f"http://127.0.0.1:{port}", timeout_s=0.3) as transport,
        ):
            tasks.start_soon(listener.serve, trickle)
            with anyio.fail_after(240):
                outcome = await transport.send(INTENT)
            assert (outcome.kind, outcome.detail) == ("unknown", "no answer: TimeoutError")
            tasks.cancel_scope.cancel()


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
