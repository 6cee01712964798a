"""Faults on purpose, calls at the same time, and the doors to the emulator."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, Literal

import httpx
import pytest
import stripe
from anyio.lowlevel import checkpoint

from drivers.emulated_shop import shop
from drivers.emulated_times import SECOND
from stripe_emulator import Fault, StripeEmulator

EVENTS = "/v1/billing/meter_events"

Lost = Literal["drop", "reset"]
When = Literal["before", "after"]


@pytest.fixture
def emulator() -> StripeEmulator:
    """An account with two customers and two meters."""
    emulator, _ = shop()
    emulator.add_customer("cus_2")
    emulator.add_meter("calls")
    return emulator


async def send(
    client: Any, identifier: str, *, value: int = 1, customer: str = "cus_1", key: str = "", **named: str
) -> str:
    """Send a meter event; ``ok``, or the status and code of its refusal, or ``lost``."""
    event = {
        "event_name": "calls",
        "identifier": identifier,
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "timestamp": SECOND,
    }
    try:
        await client.billing.meter_events.create(
            **event | named, options={"idempotency_key": key or f"key-{identifier}"}
        )
    except stripe.APIConnectionError:
        return "lost"
    except stripe.StripeError as error:
        code = getattr(error.error, "code", None)
        return f"{error.http_status} {code}" if code else f"{error.http_status}"
    return "ok"


@pytest.mark.anyio
@pytest.mark.parametrize(("action", "when"), [("drop", "after"), ("reset", "before")])
async def test_an_answer_is_lost(client: Any, emulator: StripeEmulator, action: Lost, when: When) -> None:
    emulator.fail_next(action, when=when)
    assert await send(client, "i1", value=3) == "lost"
    assert emulator.accepted("cus_1", "calls") == (3 if when == "after" else 0)
    assert await send(client, "i1", value=3) == "ok"
    assert await send(client, "i1", value=3, key="fresh") == "400"
    assert emulator.accepted("cus_1", "calls") == 3
    assert [request.status for request in emulator.requests] == [0, 200, 400]


@pytest.mark.parametrize(
    ("action", "error"), [("drop", httpx.RemoteProtocolError), ("reset", httpx.ReadError)]
)
def test_drops_and_resets_differ(emulator: StripeEmulator, action: Lost, error: type[Exception]) -> None:
    emulator.fail_next(action, path="/v1/customers")
    with emulator.running() as url, pytest.raises(error):
        httpx.get(f"{url}/v1/customers", auth=("sk_test_1", ""))


@pytest.mark.anyio
async def test_faults_choose_their_requests(client: Any, emulator: StripeEmulator) -> None:
    emulator.fail_next("error", customer="cus_2")
    emulator.fail_next("error", event_name="tokens", status=503)
    emulator.fail_next("error", skip=1, times=2, status=502)
    assert await send(client, "i1") == "ok"
    assert await send(client, "i2", event_name="tokens") == "503"
    assert await send(client, "i3", customer="cus_2") == "500"
    assert [await send(client, name) for name in ("i4", "i5", "i6")] == ["502", "502", "ok"]
    assert emulator.faults == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": "explode"}, "action is 'explode'; it must be one of error, drop"),
        ({"action": "drop", "when": "during"}, "when is 'during'; it must be one of before, after"),
        ({"action": "error", "when": "after", "status": 429}, "status 429 means that nothing was done"),
    ],
)
def test_impossible_faults_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault(**fields)


@pytest.mark.anyio
async def test_one_call_at_a_time_for_a_customer_and_meter(client: Any, emulator: StripeEmulator) -> None:
    emulator.fail_next("delay", delay_s=0.3)
    first = asyncio.ensure_future(send(client, "i1"))
    while emulator.faults:  # Until the first request is in progress.
        await checkpoint()
    results = [await send(client, "i1"), await send(client, "i2"), await send(client, "i3", customer="cus_2")]
    results += [await send(client, "i4", event_name="tokens"), await first]
    assert results == ["409 idempotency_key_in_use", "429 rate_limit", "ok", "ok", "ok"]
    assert sorted(event.identifier for event in emulator.events) == ["i1", "i3", "i4"]


def test_driven_from_another_process(emulator: StripeEmulator) -> None:
    with emulator.running() as url, httpx.Client(base_url=url, auth=("sk_test_1", "")) as client:
        (fault,) = client.post("/_emulator/faults", json={"action": "lose"}).json()["faults"]
        assert fault["action"] == "lose"
        for value in ("2", "3"):
            data = {"event_name": "calls", "payload[stripe_customer_id]": "cus_1", "payload[value]": value}
            assert client.post(EVENTS, data=data).status_code == 200
        seen = client.get("/_emulator/events").json()
        assert [(event["value"], event["counted"]) for event in seen["events"]] == [("2", False), ("3", True)]
        assert seen["total"] == "3"
        for other in ({"customer": "cus_2"}, {"event_name": "tokens"}):
            assert client.get("/_emulator/events", params=other).json()["events"] == []
        requests = client.get("/_emulator/requests").json()["requests"]
        assert [request["status"] for request in requests] == [200, 200]
        client.post("/_emulator/faults", json={"action": "drop"})
        assert [fault["action"] for fault in client.get("/_emulator/faults").json()["faults"]] == ["drop"]
        assert client.delete("/_emulator/faults").json() == {"faults": []}
        assert client.post("/_emulator/reset").json() == {}
        assert client.get("/_emulator/events").json() == {"events": [], "total": "0"}
        assert client.get("/v1/customers/cus_1").status_code == 404


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"action": "x"}', b'{"action": "drop", "colour": 1}'])
def test_control_plane_says_what_a_fault_is(emulator: StripeEmulator, body: bytes) -> None:
    with emulator.running() as url:
        answer = httpx.post(f"{url}/_emulator/faults", content=body)
    assert (answer.status_code, bool(answer.json()["error"]), emulator.faults) == (400, True, ())


def test_import_needs_no_extra() -> None:
    code = (
        "import sys, stripe_emulator as t; t.StripeEmulator().app; t.Clock();"
        "sys.exit(' '.join({'uvicorn', 'stripe', 'httpx', 'meterkit'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
