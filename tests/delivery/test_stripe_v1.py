from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import util
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import anyio
import httpx
import pytest
import respx
from anyio.abc import SocketAttribute, SocketStream

from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.delivery.transport import Intent, Transport
from meterkit.testing import Clock, StripeEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from importlib.machinery import ModuleSpec
    from pathlib import Path

    from meterkit.delivery.outcomes import Kind

pytestmark = pytest.mark.anyio

KEY = "sk_test_51SECRETsecret"
URL = "http://stripe.test"
EVENTS = f"{URL}/v1/billing/meter_events"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INTENT = Intent(
    identifier="4f1c",
    event_name="api_requests",
    stripe_customer="cus_1",
    value=3,
    timestamp=int(NOW.timestamp()),
    idempotency_key="4f1c",
    customer="acme",
    meter="requests",
    period="2026-11",
)
ACCEPTED = {"object": "billing.meter_event", "identifier": "4f1c", "livemode": False}
CLOSED_PORT = "http://127.0.0.1:1"


@asynccontextmanager
async def opened(api_base: str = URL, *, timeout_s: float = 5.0) -> AsyncGenerator[Transport]:
    transport = StripeV1Transport(KEY, api_base=api_base, timeout_s=timeout_s)
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def emulated(*, timeout_s: float = 5.0) -> AsyncGenerator[tuple[StripeEmulator, Transport]]:
    emulator = StripeEmulator(clock=Clock(NOW))
    emulator.add_customer("cus_1")
    emulator.add_meter("api_requests")
    async with emulator.serve() as url, opened(url, timeout_s=timeout_s) as transport:
        yield emulator, transport


@respx.mock
async def test_wire_form() -> None:
    route = respx.post(EVENTS).respond(json=ACCEPTED)
    async with opened() as transport:
        outcome = await transport.send(replace(INTENT, value=10**15 - 1, idempotency_key="4f1c-2"))
    assert outcome.kind == "delivered"
    request = route.calls.last.request
    assert parse_qs(request.content.decode()) == {
        "event_name": ["api_requests"],
        "identifier": ["4f1c"],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["999999999999999"],
        "timestamp": [str(INTENT.timestamp)],
    }
    assert request.headers["idempotency-key"] == "4f1c-2"
    assert request.headers["stripe-version"] == "2026-10-28.endive"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert "x-stripe-client-telemetry" not in request.headers


@respx.mock
async def test_zero_is_sent_as_zero() -> None:
    route = respx.post(EVENTS).respond(json=ACCEPTED)
    async with opened() as transport:
        await transport.send(replace(INTENT, value=0))
    assert parse_qs(route.calls.last.request.content.decode())["payload[value]"] == ["0"]


@respx.mock
@pytest.mark.parametrize(
    ("status", "error", "headers", "kind"),
    [
        (400, {"message": "An event already exists with identifier 4f1c."}, {}, "duplicate"),
        (400, {"type": "idempotency_error", "message": "Keys for …"}, {}, "bug"),
        (400, {"message": "Locked."}, {"Stripe-Should-Retry": "true"}, "not_done"),
        (401, {"message": f"Invalid API Key provided: {KEY}"}, {}, "systemic"),
        (403, {"message": "No permission."}, {}, "systemic"),
        (404, {"message": "Unrecognized request URL"}, {}, "systemic"),
        (409, {"code": "idempotency_key_in_use"}, {}, "not_done"),
        (429, {"code": "rate_limit"}, {}, "not_done"),
        (500, {"type": "api_error"}, {}, "unknown"),
        (503, {"type": "api_error"}, {}, "unknown"),
    ],
)
async def test_refusals(status: int, error: dict[str, str], headers: dict[str, str], kind: Kind) -> None:
    route = respx.post(EVENTS).respond(status, json={"error": error}, headers=headers)
    async with opened() as transport:
        outcome = await transport.send(INTENT)
    assert kind == outcome.kind
    assert route.call_count == 1, "one send is one request"
    assert "SECRET" not in repr(outcome)


@respx.mock
async def test_code_of_a_429_is_found_although_the_sdk_hides_it() -> None:
    respx.post(EVENTS).respond(429, json={"error": {"code": "lock_timeout", "type": "invalid_request_error"}})
    async with opened() as transport:
        assert "lock_timeout" in (await transport.send(INTENT)).detail


@respx.mock
@pytest.mark.parametrize(
    "body",
    ["", "<html>Log in to the hotel</html>", "[]", "null", '"ok"', "{}", '{"identifier": "another"}'],
)
async def test_a_200_that_is_not_of_this_event_is_unknown(body: str) -> None:
    respx.post(EVENTS).respond(200, text=body)
    async with opened() as transport:
        outcome = await transport.send(INTENT)
    assert outcome.kind == "unknown"
    assert outcome.new_key


@respx.mock
@pytest.mark.parametrize("body", ["", "<html>502</html>", "[]", '{"error": "odd"}', '{"error": null}'])
async def test_unreadable_refusals_are_unknown(body: str) -> None:
    respx.post(EVENTS).respond(502, text=body)
    async with opened() as transport:
        assert (await transport.send(INTENT)).kind == "unknown"


@respx.mock
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), "not_done"),
        (httpx.ConnectTimeout("slow"), "not_done"),
        (httpx.PoolTimeout("busy"), "not_done"),
        (httpx.ReadTimeout("slow"), "unknown"),
        (httpx.WriteError("broken"), "unknown"),
        (httpx.RemoteProtocolError("closed"), "unknown"),
        (RuntimeError("the client has been closed"), "unknown"),
        (OSError("odd"), "unknown"),
    ],
)
async def test_failures_of_the_network(error: Exception, kind: Kind) -> None:
    respx.post(EVENTS).mock(side_effect=error)
    async with opened() as transport:
        outcome = await transport.send(INTENT)
    assert kind == outcome.kind
    assert type(error).__name__ in outcome.detail


@respx.mock
@pytest.mark.parametrize("date", [None, "yesterday", ""])
async def test_without_a_date_there_is_no_server_time(date: str | None) -> None:
    respx.post(EVENTS).respond(json=ACCEPTED, headers={} if date is None else {"date": date})
    async with opened() as transport:
        outcome = await transport.send(INTENT)
    assert outcome.kind == "delivered"
    assert outcome.server_time_s is None


async def test_server_time_is_stripes_clock() -> None:
    async with emulated() as (emulator, transport):
        assert (await transport.send(INTENT)).server_time_s == int(NOW.timestamp())
        emulator.fail_next("error", status=429)
        refused = await transport.send(replace(INTENT, idempotency_key="k2"))
        assert refused.server_time_s == int(NOW.timestamp())


async def test_delivered_once() -> None:
    async with emulated() as (emulator, transport):
        first = await transport.send(INTENT)
        assert (await transport.send(INTENT)).kind == "delivered", "the stored answer of the same key"
        assert (await transport.send(replace(INTENT, idempotency_key="k2"))).kind == "duplicate"
    assert first.kind == "delivered"
    assert first.request_id is not None
    assert emulator.accepted("cus_1", "api_requests") == 3


@pytest.mark.parametrize("action", ["drop", "reset", "error"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_is_unknown_is_settled_by_trying_again(action: str, when: str) -> None:
    async with emulated() as (emulator, transport):
        emulator.fail_next(action, when=when)  # type: ignore[arg-type]  # parametrised
        lost = await transport.send(INTENT)
        assert lost.kind == "unknown"
        again = await transport.send(replace(INTENT, idempotency_key="k2") if lost.new_key else INTENT)
        assert again.delivered
        assert emulator.accepted("cus_1", "api_requests") == 3


async def test_a_server_that_hangs_costs_one_timeout() -> None:
    async with emulated(timeout_s=0.2) as (emulator, transport):
        emulator.fail_next("hang")
        with anyio.fail_after(2):
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
            with anyio.fail_after(2):
                outcome = await transport.send(INTENT)
            assert (outcome.kind, outcome.detail) == ("unknown", "no answer no_reply: TimeoutError")
            tasks.cancel_scope.cancel()


async def test_nobody_at_the_address_is_certainly_not_done() -> None:
    async with opened(CLOSED_PORT) as transport:
        assert (await transport.send(INTENT)).kind == "not_done"


async def test_concurrent_first_sends_share_one_session() -> None:
    async with emulated() as (emulator, transport):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                customer = emulator.add_customer()
                intent = replace(
                    INTENT, identifier=f"i{number}", idempotency_key=f"i{number}", stripe_customer=customer
                )
                tasks.start_soon(transport.send, intent)
        assert len(emulator.events) == 20


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


async def test_sdk_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("stripe._telemetry_id._loaded", False)
    async with emulated() as (_, transport):
        assert (await transport.send(INTENT)).delivered
    assert not any(tmp_path.glob("**/*"))  # noqa: ASYNC240 (nothing else waits)


async def test_key_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with opened(CLOSED_PORT) as transport:
        outcome = await transport.send(INTENT)
        assert "SECRET" not in repr(transport) + repr(outcome) + caplog.text


def test_missing_extra_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        return None if name == "stripe" else util.find_spec(name)

    monkeypatch.setattr("meterkit.delivery.stripe_v1.find_spec", find_spec)
    with pytest.raises(ImportError, match=r"needs stripe: pip install 'meterkit\[stripe\]'"):
        StripeV1Transport(KEY)


def test_import_and_construction_leave_the_sdk_alone() -> None:
    code = (
        "import sys, meterkit.delivery, meterkit.delivery.stripe_v1 as v1; v1.StripeV1Transport('sk_test_1');"
        "sys.exit(' '.join({'stripe', 'httpx'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_conforms_to_the_port() -> None:
    transport = StripeV1Transport(KEY, timeout_s=7.0)
    _: Transport = transport
    assert transport.timeout_s == 7.0
