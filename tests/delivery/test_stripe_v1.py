"""Meter events by API v1 and by streams: what goes over the wire, and what an answer says."""
# Internals: one call at a time of the transport, and a pure table of Stripe's answers.

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import time
from typing import Any
from urllib.parse import parse_qs

import anyio
import pytest

from drivers.delivery import STRIPE_KEY, aclosing_transport, kit_for, sealed
from drivers.emulated_account import StripeSession
from meterkit.delivery.delivery_outcome import OutcomeKind, classify
from meterkit.delivery.sender import Transport
from meterkit.stripe.api import StripeApi
from meterkit.stripe.request import API_VERSION, RequestResult
from meterkit.testing import Clock, StripeEmulator
from servers.fixed_answers import Asked, answer, answering

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTENT = sealed("4f1c", 3, int(NOW.timestamp()), stripe_customer="cus_1")
ACCEPTED = {"object": "billing.meter_event", "identifier": "4f1c", "livemode": False}


opened = partial(aclosing_transport, timeout_s=240.0, clock=Clock(NOW))
opened_stream = partial(opened, kind="v2-stream")


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
        session = StripeSession(STRIPE_KEY, api_base=stand_in.url, timeout_s=300)
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


HTML = "<html>An event already exists with identifier 4f1c. No such customer: please log in</html>"


def refused(**fields: str) -> dict[str, Any]:
    """Stripe's own refusal."""
    return {"error": {"type": "invalid_request_error", **fields}}


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (400, refused(message="Locked."), {"stripe_should_retry": "true"}, "not_done"),
        (400, refused(message="Too late.", param="timestamp"), {}, "timestamp"),
        (401, refused(message=f"Invalid API Key provided: {STRIPE_KEY}"), {}, "systemic"),
        (409, refused(code="idempotency_key_in_use"), {}, "not_done"),
        (503, refused(type="api_error"), {}, "unknown"),
        # Not of this event.
        (200, "", {}, "unreadable"),
        (200, HTML, {}, "unreadable"),
        (200, "[]", {}, "unreadable"),
        (200, '{"identifier": "another"}', {}, "unreadable"),
        (200, '{"identifier": "4f1', {}, "unreadable"),
        # F-50: not Stripe's own.
        (302, "", {}, "unreadable"),
        (400, HTML, {}, "unreadable"),
        (403, "[]", {}, "systemic"),
        (404, '{"error": "odd"}', {}, "unreadable"),
        (407, '{"error": null}', {}, "unreadable"),
        (413, '{"error": {"type": 3}}', {}, "unreadable"),
    ],
)
async def test_a_refusal_that_is_not_stripes_own_ends_no_intent(
    status: int, body: object, headers: dict[str, str], kind: OutcomeKind
) -> None:
    async with answering(answer(status, body, **headers)) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert kind == outcome.kind
    assert len(stand_in.asked) == 1, "one send is one request, and a redirect is not followed"
    assert "SECRET" not in repr(outcome)
    assert (outcome.scope == "account") == (kind in {"systemic", "unreadable"})
    if isinstance(body, str):
        assert (outcome.step, outcome.refused) == ("retry", False)
        assert status == 200 or f"HTTP {status}" in outcome.detail


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        answer(200, ACCEPTED)[:-1],
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


async def test_an_answer_that_is_too_long_is_unknown() -> None:
    raw = answer(200, "x" * 33_000_000)  # It is not read to its end.
    async with answering(raw, closes=True) as stand_in, opened(stand_in.url) as transport:
        outcome = await transport.send(INTENT)
    assert (outcome.kind, outcome.new_key) == ("unknown", False)


async def test_an_answer_cut_off_on_a_kept_connection_is_unknown() -> None:
    async with answering(created) as stand_in, opened(stand_in.url) as transport:
        assert (await transport.send(INTENT)).kind == "delivered"
        stand_in.answer, stand_in.closes = lambda _: answer(200, ACCEPTED)[:-1], True
        outcome = await transport.send(replace(INTENT, identifier="4f1d"))
    assert stand_in.connections == 1
    assert (outcome.kind, outcome.refused) == ("unknown", False)


async def test_a_refusal_of_the_environments_proxy_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with opened("http://127.0.0.1:1") as transport:
        assert (await transport.send(INTENT)).kind == "not_done"


async def test_cancellation_passes() -> None:
    async with emulated() as (emulator, transport):
        emulator.fail_next("hang")
        with anyio.move_on_after(0.1) as scope:
            await transport.send(INTENT)
        assert scope.cancelled_caught


async def test_after_close_nothing_is_sent() -> None:
    async with emulated() as (emulator, transport):
        await transport.send(INTENT)
        await transport.close()
        await transport.close()
        assert (await transport.send(replace(INTENT, identifier="other"))).kind == "not_done"
        assert len(emulator.events) == 1


async def test_missing_extra_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.delivery.stripe_v1.find_spec", {"httpx": 1}.get)
    with pytest.raises(ImportError, match=r"needs aiohttp: pip install 'meterkit\[stripe\]'"):
        async with opened("http://127.0.0.1:1"):
            pass


async def test_meter_events_may_go_to_an_address_of_their_own(store_url: str) -> None:
    api, events = StripeEmulator(), StripeEmulator()
    for emulator in (api, events):
        emulator.add_meter("api_requests")
        emulator.add_customer("cus_1")
    with api.running() as api_base, events.running() as events_base:
        async with kit_for(store_url, api_base, clock=time, stripe_events_base=events_base) as kit:
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
        sdk = StripeSession(STRIPE_KEY, api_base=server.url, events_base=server.url, timeout_s=300.0)
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
        (400, "<html>Bad Request</html>", "unreadable"),
        (400, {"error": {"code": "invalid_fields", "message": "No."}}, "permanent"),
        (400, {"error": {"code": "no_meter", "message": "No."}}, "no_meter"),
        (400, {"error": {"code": "duplicate_meter_event", "message": "No."}}, "duplicate"),
        (400, {"error": {"code": "payload_no_customer_defined", "message": "No."}}, "mapping"),
        (429, {"error": {"code": "too_many_concurrent_requests", "message": "No."}}, "not_done"),
    ],
)
async def test_what_an_answer_says_of_a_batch(status: int, body: object, kind: OutcomeKind) -> None:
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
    body = refused(message=f"Invalid API Key provided: {STRIPE_KEY}")
    async with answering(stand_in(401, body)) as server, opened_stream(server.url) as transport:
        await transport.ready()
        outcome = await transport.send(INTENT)
        told = f"{transport!r} {outcome!r} {caplog.text}"
    assert "SECRET" not in told
    assert "token_1" not in told


DUPLICATE = "An event already exists with identifier 4f1c."
NO_METER = "Invalid event_name: api_requests. No active meter found with this event name."
OLD = "The event timestamp cannot be more than 35 days in past. Expected a timestamp …"
NO_CUSTOMER = "No such customer: 'c'"
DIGITS = "The value in the event payload can have at most 15 digits. Received 1234567890123456."
OTHER_MODE = "No such customer: 'cus_1'; a similar object exists in live mode, but a test mode key was used."

MISSING = "Missing required param: payload[user_id]"
KEY = "payload[user_id]"
NEW = "The event timestamp cannot be more than 5 minutes in the future. Expected a timestamp …"


def refusal(message: str, *, status: int = 400, **said: Any) -> RequestResult:
    """Stripe's own error envelope, as it comes where a parameter is not what it must be."""
    return RequestResult(status=status, type="invalid_request_error", message=message, **said)


# What happened, and what became of the intent; the last column: whether the next try needs a fresh key.
TABLE: list[tuple[str, RequestResult, OutcomeKind, bool]] = [
    ("accepted", RequestResult(status=200), "delivered", False),
    ("accepted earlier", refusal(DUPLICATE, should_retry=False), "duplicate", False),
    ("accepted earlier, v2", RequestResult(status=400, code="duplicate_meter_event"), "duplicate", False),
    ("no connection", RequestResult(failure="not_sent", message="ConnectError"), "not_done", False),
    ("no answer", RequestResult(failure="no_reply", message="ReadTimeout"), "unknown", False),
    ("a 2xx of somebody else", RequestResult(status=200, failure="unreadable"), "unreadable", True),
    ("server error", RequestResult(status=500, type="api_error"), "unknown", True),
    ("key in flight", RequestResult(status=409, code="idempotency_key_in_use"), "not_done", False),
    ("too many calls", RequestResult(status=429, code="rate_limit", should_retry=False), "not_done", False),
    ("Stripe says: again", refusal("lock", should_retry=True), "not_done", False),
    ("key of another request", RequestResult(status=400, type="idempotency_error"), "bug", True),
    ("bad key", RequestResult(status=401, should_retry=True), "systemic", True),
    ("meter unknown or inactive", refusal(NO_METER), "no_meter", True),
    ("meter unknown, v2", RequestResult(status=400, code="no_meter"), "no_meter", True),
    ("test key for live objects", refusal(OTHER_MODE), "systemic", True),
    ("unknown address", refusal("Unrecognized request URL", status=404), "systemic", True),
    ("payment of the account", RequestResult(status=402, type="card_error"), "systemic", True),
    ("an error of the API's own as 400", RequestResult(status=400, type="api_error"), "systemic", True),
    # F-50: what does not come in Stripe's envelope says nothing of the event.
    ("a page of a proxy's", RequestResult(status=400, message="<html>Bad Request"), "unreadable", True),
    ("a page that speaks of an identifier", RequestResult(status=400, message=DUPLICATE), "unreadable", True),
    ("a gateway's envelope", RequestResult(status=400, type="bad_request", message="No"), "unreadable", True),
    # F-51
    ("too old", refusal(OLD), "timestamp", True),
    ("too new", refusal(NEW), "timestamp", True),
    # F-53
    ("another key, by its param", refusal(MISSING, param=KEY, code="parameter_missing"), "mapping", True),
    ("another key, v2", refusal("No.", code="payload_no_value_defined"), "mapping", True),
    ("too many digits", refusal(DIGITS, param="payload[value]"), "permanent", True),
    ("no customer", refusal(NO_CUSTOMER, code="resource_missing", param="payload[x]"), "permanent", True),
    ("anything else refused", refusal("Invalid integer: x"), "permanent", True),
]  # fmt: skip

STEPS: dict[OutcomeKind, tuple[str, bool]] = {
    "delivered": ("acknowledge", False),
    "duplicate": ("acknowledge", False),
    "unknown": ("retry", False),
    "not_done": ("retry", False),
    "bug": ("retry", True),
    "unreadable": ("retry", True),
    "systemic": ("retry", True),
    "no_meter": ("retry", True),
    "timestamp": ("park", True),
    "mapping": ("park", True),
    "permanent": ("dead", True),
}


@pytest.mark.parametrize(
    ("result", "kind", "new_key"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_outcome_table(result: RequestResult, kind: OutcomeKind, new_key: bool) -> None:
    outcome = classify(result)
    assert (outcome.kind, outcome.new_key, STEPS[kind]) == (kind, new_key, (outcome.step, outcome.alert))
    assert (kind in {"delivered", "duplicate"}) == outcome.delivered


@pytest.mark.parametrize(
    ("result", "is_refused"),
    [
        (RequestResult(failure="not_sent"), True),
        (refusal("", status=429, code="rate_limit"), True),
        (refusal(OLD), True),
        # The key is in use by another request.
        (refusal("", status=409, code="idempotency_key_in_use"), False),
        (RequestResult(status=200, failure="no_reply"), False),
        (RequestResult(status=500, type="api_error", message=DUPLICATE), False),
        # R4: a gateway may have forwarded the request.
        (RequestResult(status=400, message=OLD), False),
        (RequestResult(status=429, type="bad_request"), False),
    ],
)
def test_only_stripe_or_an_unsent_request_proves_a_refusal(result: RequestResult, is_refused: bool) -> None:
    assert classify(result).refused == is_refused
