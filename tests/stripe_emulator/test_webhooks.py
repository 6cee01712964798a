"""Webhooks are signed, delivered and retried as Stripe does it, and go wrong as a test wants them to."""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from drivers.delivery import until
from drivers.emulated_account import account
from drivers.emulated_shop import refused
from stripe_emulator import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SECOND = int(NOW.timestamp())
HOOK = "http://app.test/webhooks/stripe"
# Codes that answer the deliveries to come; then 200.
Codes = deque[int]


class Receiver:
    """An app that keeps what it is sent, and answers as it is told to."""

    def __init__(self, *codes: int) -> None:
        self.codes = Codes(codes)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.app = Starlette(routes=[Route("/webhooks/stripe", self._take, methods=["POST"])])

    async def _take(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        code = self.codes.popleft() if self.codes else 200
        return RedirectResponse("/elsewhere", 302) if code == 302 else Response("taken", code)

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for body in self.bodies]

    def event(self, secret: str, *, index: int = -1, tolerance: int = 0) -> Any:
        """What the official SDK makes of a delivery. Tolerance 0: whatever its time."""
        header = self.headers[index].get("stripe-signature")
        event: Any = stripe.Webhook.construct_event(self.bodies[index], header, secret, tolerance)
        return event


def ready(*codes: int, **options: Any) -> tuple[StripeEmulator, Receiver, Clock, str]:
    clock, receiver = Clock(NOW), Receiver(*codes)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    return emulator, receiver, clock, emulator.add_endpoint(HOOK, app=receiver.app, **options)


async def test_an_event_that_is_not_accepted_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The terminal of the emulator showed nothing of an app that refused everything."""
    emulator = StripeEmulator()
    caplog.set_level("WARNING", logger="stripe_emulator")

    def lines() -> list[str]:
        return [said.getMessage() for said in caplog.records if said.name == "stripe_emulator"]

    async with emulator.serve() as url:
        emulator.add_endpoint(f"{url}/v1/events")
        emulator.emit("invoice.paid", {"id": "in_1"})
        await until(lambda: bool(lines()))
    (event,) = emulator.webhook_events
    (line,) = lines()
    refused_by = f"webhook invoice.paid ({event.id}) was not accepted by {url}/v1/events: HTTP 404 "
    assert line.startswith(refused_by)
    assert "Unrecognized request URL" in line


async def test_while_a_secret_is_rolled_both_sign() -> None:
    """For up to 24 hours: https://docs.stripe.com/webhooks#roll-endpoint-secrets."""
    emulator, receiver, clock, old = ready()
    new = emulator.roll_secret(HOOK)
    emulator.emit("invoice.paid", {"id": "in_1"})
    await emulator.deliver()
    assert receiver.event(new).id == receiver.event(old).id
    assert receiver.headers[0]["stripe-signature"].count(",v1=") == 2
    clock.advance(timedelta(days=1))
    emulator.emit("invoice.paid", {"id": "in_2"})
    await emulator.deliver()
    assert receiver.event(new).data.object["id"] == "in_2"
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.event(old)
    with pytest.raises(ValueError, match="no webhook endpoint http://none"):
        emulator.roll_secret("http://none")


async def test_endpoints_are_told_of_what_they_want() -> None:
    emulator, receiver, _, _ = ready(events=["invoice.*", "customer.deleted"])
    for event_type in ("invoice.paid", "customer.created", "customer.deleted"):
        emulator.emit(event_type, {"id": "x_1"})
    await emulator.deliver()
    assert receiver.types == ["invoice.paid", "customer.deleted"]


@pytest.mark.parametrize("code", [302, 500])
async def test_whatever_is_no_2xx_is_tried_again(code: int) -> None:
    """A redirect is a failure too (https://docs.stripe.com/webhooks#automatic-retries)."""
    emulator, receiver, clock, _ = ready(code, 204)
    event: Any = emulator.emit("invoice.paid", {"id": "in_1"})
    assert [delivery.taken for delivery in await emulator.deliver()] == [False]
    assert event.to_json()["pending_webhooks"] == 1
    assert await emulator.deliver() == (), "not before it is due again"
    clock.advance(timedelta(hours=1))
    (again,) = await emulator.deliver()
    assert (again.attempt, again.status, again.taken, again.event) == (2, 204, True, event.id)
    assert event.to_json()["pending_webhooks"] == 0
    clock.advance(timedelta(days=4))
    assert await emulator.deliver() == ()
    first, second = (header["stripe-signature"].partition(",")[0] for header in receiver.headers)
    assert (first, second) == (f"t={SECOND}", f"t={SECOND + 3_600}"), "each attempt is signed anew"


@pytest.mark.parametrize(("livemode", "hours"), [(True, [0, 1, 3, 7, 15, 31, 63]), (False, [0, 1, 3, 7])])
async def test_retries_end_after_three_days_or_three_retries(livemode: bool, hours: list[int]) -> None:
    """Live up to three days, exponentially; in a sandbox three times over a few hours."""
    emulator, receiver, clock, _ = ready(*[500] * 20)
    event: Any = emulator.emit("invoice.paid", {"id": "in_1", "livemode": livemode})
    for _ in range(24 * 6):
        await emulator.deliver()
        clock.advance(timedelta(hours=1))
    assert hours == [(delivery.at - SECOND) / 3_600 for delivery in emulator.deliveries]
    assert len(hours) == len(receiver.bodies)
    async with account(emulator) as client:
        missed = await client.events.list(delivery_success=False)
        assert [event.id] == [found.id for found in missed.data], "so that it can be found in the list"
        assert (await client.events.list(delivery_success=True)).data == []


async def test_nobody_there_is_tried_again() -> None:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    emulator.add_endpoint("http://127.0.0.1:1/none")
    emulator.emit("invoice.paid", {"id": "in_1"})
    (delivery,) = await emulator.deliver()
    assert (delivery.status, delivery.taken, bool(delivery.answer)) == (0, False, True)
    clock.advance(timedelta(hours=1))
    assert [delivery.attempt for delivery in await emulator.deliver()] == [2]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("wrong_secret", "No signatures found matching"),
        ("changed", "No signatures found matching"),
        ("unsigned", "No Stripe-Signature header value|Unable to extract timestamp"),
        ("old_scheme", "No signatures found with expected scheme"),
    ],
)
async def test_forgeries_are_refused_by_the_sdk(how: Any, words: str) -> None:
    emulator, receiver, clock, secret = ready(400)
    event: Any = emulator.emit("invoice.paid", {"id": "in_1"})
    (delivery,) = await emulator.deliver(event, forge=how)
    assert (delivery.forged, delivery.status, delivery.attempt) == (how, 400, 0)
    with pytest.raises(stripe.SignatureVerificationError, match=words):
        receiver.event(secret)
    clock.advance(timedelta(hours=1))
    (first,) = await emulator.deliver()
    assert first.attempt == 1, "a forgery is not Stripe's: it uses up no attempt, and its success is none"
    assert receiver.event(secret).type == "invoice.paid"


@pytest.mark.parametrize(("how", "days"), [("stale", -1), ("early", 1)])
async def test_a_delivery_a_day_off_is_rightly_signed(how: Any, days: int) -> None:
    emulator, receiver, _, secret = ready()
    event: Any = emulator.emit("invoice.paid", {"id": "in_1"})
    await emulator.deliver(event, forge=how)
    assert receiver.headers[0]["stripe-signature"].startswith(f"t={SECOND + days * 86_400},v1=")
    assert receiver.event(secret).id == event.id


async def test_what_cannot_be_delivered_is_said() -> None:
    emulator, _, _, _ = ready()
    event: Any = emulator.emit("invoice.paid", {"id": "in_1"})
    deliver: Any = emulator.deliver
    for call, message in (
        (deliver("evt_none"), "there is no event evt_none"),
        (deliver(event, to="http://none"), "there is no webhook endpoint http://none"),
        (deliver(event, forge="sabotaged"), "forge is 'sabotaged'; it must be one of wrong_secret, changed"),
        (deliver(forge="stale"), "with the events to forge"),
    ):
        with pytest.raises(ValueError, match=message):
            await call


async def test_events_are_found_by_type_and_time() -> None:
    """https://docs.stripe.com/api/events/list: ``types`` holds at most 20 and does not go with ``type``."""
    clock = Clock(NOW)
    async with account(StripeEmulator(clock=clock)) as client:
        made = [await client.customers.create(name=str(n)) for n in range(3)]
        clock.advance(timedelta(seconds=1))
        await client.customers.update(made[0].id, name="x")

        async def found(params: Any) -> list[str]:
            return [event.type async for event in (await client.events.list(**params)).auto_paging_iter()]

        created, updated = ["customer.created"] * 3, ["customer.updated"]
        for asked, events in (
            ({"limit": 2}, updated + created),
            ({"type": "customer.updated"}, updated),
            ({"type": "customer.*"}, updated + created),
            ({"types": ["customer.updated", "customer.created"]}, updated + created),
            ({"types": ["customer.created"]}, created),
            ({"created": {"gt": SECOND}}, updated),
            ({"created": {"gte": SECOND, "lt": SECOND + 1}}, created),
            ({"created": SECOND}, created),
            ({"delivery_success": True}, updated + created),
            ({"delivery_success": False}, []),
        ):
            assert await found(asked) == events
        for params, message in (
            ({"type": "a", "types": ["b"]}, "only specify one"),
            ({"types": [f"t{n}" for n in range(21)]}, "at most 20"),
            ({"created": {"at": 1}}, "unknown parameter"),
            ({"delivery_success": "perhaps"}, "Invalid boolean"),
        ):
            await refused(found(params), message)


async def test_events_are_read_for_30_days() -> None:
    """https://docs.stripe.com/api/events: through the API for 30 days."""
    clock = Clock(NOW)
    async with account(StripeEmulator(clock=clock)) as client:
        await client.customers.create()
        (event,) = (await client.events.list()).data
        clock.advance(timedelta(days=30) - timedelta(seconds=1))
        assert (await client.events.retrieve(event.id)).id == event.id
        clock.advance(timedelta(seconds=1))
        assert (await client.events.list()).data == []
        error = await refused(client.events.retrieve(event.id), f"No such event: '{event.id}'")
        assert error.http_status == 404
