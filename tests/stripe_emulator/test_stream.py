"""Meter event streams of the emulator, by the official SDK: one test for each rule of Stripe's pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
import stripe

from drivers.emulated_account import reached
from drivers.emulated_shop import shop
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

KEY = "sk_test_1"
SESSION = "/v2/billing/meter_event_session"
STREAM = "/v2/billing/meter_event_stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """An emulator, its clock, and Stripe's SDK before it."""

    emulator: StripeEmulator
    clock: Clock
    url: str
    client: stripe.StripeClient

    async def session(self) -> str:
        """The token of a new session."""
        return (await self.client.v2.billing.meter_event_session.create_async()).authentication_token

    async def stream(self, *events: dict[str, Any], token: str | None = None) -> None:
        """Send a batch by the SDK."""
        given: Any = {"events": list(events)}
        options: Any = {"api_key": token or await self.session()}
        await self.client.v2.billing.meter_event_stream.create_async(given, options)

    def reports(self) -> list[tuple[str, str, list[str]]]:
        """What thin events tell: their type, the code, the identifiers."""
        found: list[tuple[str, str, list[str]]] = []
        for event in self.emulator.thin_events:
            reason: Any = event.data["reason"]
            for kind in reason["error_types"]:
                samples = [sample["request"]["identifier"] for sample in kind["sample_errors"]]
                found.append((event.type.removeprefix("v1.billing.meter."), kind["code"], samples))
        return found


@pytest.fixture
async def at() -> AsyncGenerator[Room]:
    emulator, clock = shop()
    async with emulator.serve() as url, reached(url, key=KEY, timeout_s=5.0) as client:
        yield Room(emulator=emulator, clock=clock, url=url, client=client)


def payload(customer: str, value: object) -> dict[str, Any]:
    return {"stripe_customer_id": customer, "value": value}


def event(identifier: object = "a", **fields: Any) -> dict[str, Any]:
    """A meter event as Stripe's schema has it."""
    told = {"event_name": "tokens", "identifier": identifier, "payload": payload("cus_1", "3")}
    return told | {"timestamp": "2026-04-01T00:00:00Z"} | fields


@pytest.mark.parametrize(("age", "is_over"), [(899, False), (900, True)])
async def test_a_token_holds_for_a_quarter_of_an_hour(at: Room, age: int, is_over: bool) -> None:
    # https://docs.stripe.com/api/v2/billing/meter-event-stream/create: the 401 and its code.
    token = await at.session()
    at.clock.advance(timedelta(seconds=age))
    if not is_over:
        await at.stream(event(), token=token)
        return
    with pytest.raises(stripe.TemporarySessionExpiredError) as raised:
        await at.stream(event(), token=token)
    assert (raised.value.http_status, at.emulator.events) == (401, ())


async def test_a_stream_takes_no_key_and_the_api_no_token(at: Room) -> None:
    with pytest.raises(stripe.AuthenticationError):
        await at.stream(event(), token=KEY)
    async with httpx.AsyncClient(base_url=at.url) as http:
        headers = {"Authorization": f"Bearer {await at.session()}"}
        assert (await http.get("/v1/customers", headers=headers)).status_code == 401


@pytest.mark.parametrize(("count", "is_taken"), [(0, False), (1, True), (100, True), (101, False)])
async def test_a_batch_has_one_to_a_hundred_events(at: Room, count: int, is_taken: bool) -> None:
    # https://docs.stripe.com/api/v2/billing/meter-event-stream/create
    events = [event(str(number)) for number in range(count)]
    if is_taken:
        await at.stream(*events)
    else:
        with pytest.raises(stripe.InvalidRequestError):
            await at.stream(*events)
    assert len(at.emulator.events) == (count if is_taken else 0)


@pytest.mark.parametrize(
    "odd",
    [
        event(payload=payload("cus_1", 3)),
        event(timestamp=1_775_001_600),
        event(timestamp="2026-04-01T00:00:00"),
        event(event_name=""),
        event(identifier="i" * 101),
        event(value="3"),
    ],
)
async def test_one_event_of_another_form_has_the_whole_batch_refused(at: Room, odd: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {await at.session()}"}
    async with httpx.AsyncClient(base_url=at.url, headers=headers) as http:
        refused = await http.post(STREAM, json={"events": [event("good"), odd]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_fields")
    assert (at.emulator.events, at.reports()) == ((), [])


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"events": [], "more": 1}', b'{"events": 7}'])
async def test_what_is_no_batch_is_refused(at: Room, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {await at.session()}"}
    async with httpx.AsyncClient(base_url=at.url, headers=headers) as http:
        assert (await http.post(STREAM, content=body)).status_code == 400
        headers["Authorization"] = f"Bearer {KEY}"
        assert (await http.post(SESSION, content=b'{"a": 1}', headers=headers)).status_code == 400


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        (event("odd", payload={"value": "3"}), "meter_event_no_customer_defined"),
        (event("odd", payload=payload("cus_2", "3")), "meter_event_customer_not_found"),
        (event("odd", payload=payload("cus_1", "x")), "meter_event_invalid_value"),
        (event("odd", payload=payload("cus_1", "1" * 16)), "meter_event_value_too_many_digits"),
        (event("odd", timestamp="2026-02-24T23:59:59Z"), "timestamp_too_far_in_past"),
        (event("odd", timestamp="2026-04-01T00:05:01Z"), "timestamp_in_future"),
    ],
)
async def test_wrong_contents_are_told_afterwards(at: Room, odd: dict[str, Any], code: str) -> None:
    # https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-meter-event-errors
    await at.stream(event("good"), odd)
    assert [taken.identifier for taken in at.emulator.events] == ["good"]
    assert at.reports() == [("error_report_triggered", code, ["odd"])]


async def test_a_missing_or_inactive_meter_is_told_afterwards(at: Room) -> None:
    (meter,) = (await at.client.v1.billing.meters.list_async()).data
    await at.client.v1.billing.meters.deactivate_async(meter.id)
    await at.stream(event("a"), event("b", event_name="none"), event("c", event_name="none"))
    assert at.reports() == [
        ("error_report_triggered", "archived_meter", ["a"]),
        ("no_meter_found", "no_meter", ["b", "c"]),
    ]
    assert at.emulator.events == ()


async def test_an_identifier_counts_once_in_24_hours_silently(at: Room) -> None:
    # https://docs.stripe.com/api/v2/billing/meter-event-stream/create has no code for a repeat.
    await at.stream(event("a"), event("a"))
    at.clock.advance(timedelta(hours=23))
    await at.stream(event("a"))
    assert (len(at.emulator.events), at.reports()) == (1, [])
    at.clock.advance(timedelta(hours=1))
    await at.stream(event("a"))
    assert len(at.emulator.events) == 2
