"""Webhooks are signed, delivered and retried as Stripe does it, and go wrong as a test wants them to."""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import stripe
from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from emulated import account
from meterkit.testing import Clock, StripeEmulator
from meterkit.testing.emulator.server import serve

if TYPE_CHECKING:
    from starlette.requests import Request

    from meterkit.testing.emulator.webhooks.deliveries import Forgery

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

    def event(self, secret: str, *, index: int = -1, tolerance: int = 0) -> stripe.Event:
        """What the official SDK makes of a delivery. Tolerance 0: whatever its time."""
        header = self.headers[index].get("stripe-signature")
        event: stripe.Event = stripe.Webhook.construct_event(self.bodies[index], header, secret, tolerance)
        return event


def ready(*codes: int, **options: Any) -> tuple[StripeEmulator, Receiver, Clock, str]:
    clock, receiver = Clock(NOW), Receiver(*codes)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    return emulator, receiver, clock, emulator.add_endpoint(HOOK, app=receiver.app, **options)


async def test_the_official_sdk_takes_what_is_delivered() -> None:
    receiver = Receiver()
    emulator = StripeEmulator()
    secret = emulator.add_endpoint(HOOK, app=receiver.app)
    emulator.emit("customer.created", {"id": "cus_1", "object": "customer", "name": "Ada"})
    (delivery,) = await emulator.deliver()
    event = receiver.event(secret, tolerance=300)
    assert (event.type, event.data.object["name"], event.id) == ("customer.created", "Ada", delivery.event)
    assert (delivery.status, delivery.attempt, delivery.answer, delivery.taken) == (200, 1, "taken", True)
    assert event.pending_webhooks == 1, "this delivery is one of those to come"
    assert receiver.headers[0]["content-type"] == "application/json; charset=utf-8"
    assert receiver.bodies[0].startswith(b'{\n  "id": "evt_'), "the raw bytes are not those of json.dumps"


async def test_the_signature_is_that_of_the_sdks_own_helper() -> None:
    emulator, receiver, _, secret = ready()
    emulator.emit("invoice.paid", {"id": "in_1"})
    await emulator.deliver()
    sdk: Any = stripe.WebhookSignature
    signed = sdk._compute_signature(
        f"{SECOND}.{receiver.bodies[0].decode()}", secret
    )  # Before SDK 16 no other.
    assert f"t={SECOND},v1={signed}" == receiver.headers[0]["stripe-signature"]


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


async def test_what_happened_before_there_was_an_endpoint_is_not_delivered_by_itself() -> None:
    emulator = StripeEmulator(clock=Clock(NOW))
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    receiver = Receiver()
    emulator.add_endpoint(HOOK, app=receiver.app)
    assert await emulator.deliver() == ()
    assert event is not None
    await emulator.deliver(event)
    assert receiver.types == ["invoice.paid"]


@pytest.mark.parametrize("code", [302, 400, 404, 500])
async def test_whatever_is_no_2xx_is_tried_again(code: int) -> None:
    """A redirect is a failure too (https://docs.stripe.com/webhooks#automatic-retries)."""
    emulator, receiver, clock, _ = ready(code, 204)
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    assert event is not None
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
    event = emulator.emit("invoice.paid", {"id": "in_1", "livemode": livemode})
    assert event is not None
    for _ in range(24 * 6):
        await emulator.deliver()
        clock.advance(timedelta(hours=1))
    assert hours == [(delivery.at - SECOND) / 3_600 for delivery in emulator.deliveries]
    assert len(hours) == len(receiver.bodies)
    async with account(emulator) as client:
        missed = await client.v1.events.list_async({"delivery_success": False})
        assert [event.id] == [found.id for found in missed.data], "so that it can be found in the list"
        assert (await client.v1.events.list_async({"delivery_success": True})).data == []


async def test_nobody_there_is_tried_again() -> None:
    clock = Clock(NOW)
    emulator = StripeEmulator(clock=clock, automatic_webhooks=False)
    emulator.add_endpoint("http://127.0.0.1:1/none")
    emulator.emit("invoice.paid", {"id": "in_1"})
    (delivery,) = await emulator.deliver()
    assert (delivery.status, delivery.taken, bool(delivery.answer)) == (0, False, True)
    clock.advance(timedelta(hours=1))
    assert [delivery.attempt for delivery in await emulator.deliver()] == [2]


async def test_a_test_says_in_which_order_and_how_often() -> None:
    emulator, receiver, clock, secret = ready()
    names = ["customer.subscription.created", "invoice.paid", "customer.subscription.updated"]
    made = [emulator.emit(name, {"id": "x_1"}) for name in names]
    created, paid, updated = (event for event in made if event is not None)
    await emulator.deliver(updated, created, created)
    clock.advance(timedelta(hours=2))
    await emulator.deliver(paid.id)
    assert receiver.types == [names[2], names[0], names[0], names[1]]
    ids = [receiver.event(secret, index=index).id for index in range(4)]
    assert ids[1] == ids[2]
    assert await emulator.deliver() == (), "what was taken is not due any more"


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("wrong_secret", "No signatures found matching"),
        ("changed", "No signatures found matching"),
        ("truncated", "No signatures found matching"),
        ("unsigned", "No Stripe-Signature header value|Unable to extract timestamp"),
        ("old_scheme", "No signatures found with expected scheme"),
    ],
)
async def test_forgeries_are_refused_by_the_sdk(how: Forgery, refused: str) -> None:
    emulator, receiver, clock, secret = ready(400)
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    assert event is not None
    (delivery,) = await emulator.deliver(event, forge=how)
    assert (delivery.forged, delivery.status, delivery.attempt) == (how, 400, 0)
    with pytest.raises(stripe.SignatureVerificationError, match=refused):
        receiver.event(secret)
    clock.advance(timedelta(hours=1))
    (first,) = await emulator.deliver()
    assert first.attempt == 1, "a forgery is not Stripe's: it uses up no attempt, and its success is none"
    assert receiver.event(secret).type == "invoice.paid"


async def test_a_forgery_that_is_taken_counts_for_nothing() -> None:
    emulator, receiver, _, _ = ready()
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    assert event is not None
    (delivery,) = await emulator.deliver(event, forge="wrong_secret")
    assert (delivery.taken, event.to_json()["pending_webhooks"]) == (True, 1)
    assert [delivery.attempt for delivery in await emulator.deliver()] == [1]
    assert len(receiver.bodies) == 2


async def test_a_disabled_endpoint_misses_what_falls_due_meanwhile() -> None:
    """And nothing where it is enabled again before (https://docs.stripe.com/webhooks#automatic-retries)."""
    emulator, receiver, clock, _ = ready(500, 500)
    async with account(emulator) as client:
        endpoints = client.v1.webhook_endpoints
        (hook,) = (await endpoints.list_async()).data
        emulator.emit("invoice.paid", {"id": "in_1"})
        await emulator.deliver()
        await endpoints.update_async(hook.id, {"disabled": True})
        assert await emulator.deliver() == ()
        await endpoints.update_async(hook.id, {"disabled": False})
        clock.advance(timedelta(hours=1))
        assert [delivery.attempt for delivery in await emulator.deliver()] == [2]
        await endpoints.update_async(hook.id, {"disabled": True})
        clock.advance(timedelta(hours=2))
        assert await emulator.deliver() == ()
        await endpoints.update_async(hook.id, {"disabled": False})
        assert await emulator.deliver() == ()
    assert len(receiver.bodies) == 2


@pytest.mark.parametrize(("how", "day"), [("stale", -1), ("early", 1)])
async def test_a_day_off_is_rightly_signed(how: Forgery, day: int) -> None:
    emulator, receiver, _, secret = ready()
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    assert event is not None
    await emulator.deliver(event, forge=how)
    assert receiver.headers[0]["stripe-signature"].startswith(f"t={SECOND + day * 86_400},v1=")
    assert receiver.event(secret).id == event.id


async def test_what_cannot_be_delivered_is_said() -> None:
    emulator, _, _, _ = ready()
    event = emulator.emit("invoice.paid", {"id": "in_1"})
    assert event is not None
    calls: list[tuple[list[Any], dict[str, Any], str]] = [
        (["evt_none"], {}, "there is no event evt_none"),
        ([event], {"to": "http://none"}, "there is no webhook endpoint http://none"),
        ([event], {"forge": "sabotaged"}, "forge is 'sabotaged'; it must be one of wrong_secret, changed"),
        ([], {"forge": "stale"}, "with the events to forge"),
    ]
    for arguments, options, message in calls:
        with pytest.raises(ValueError, match=message):
            await emulator.deliver(*arguments, **options)


async def test_endpoints_live_and_die_over_the_api() -> None:
    """The secret is told once, at creation (https://docs.stripe.com/api/webhook_endpoints)."""
    emulator = StripeEmulator(clock=Clock(NOW), automatic_webhooks=False)
    receiver = Receiver(500, 500)
    async with account(emulator) as client, serve(receiver.app, host="127.0.0.1", port=0) as url:
        endpoints = client.v1.webhook_endpoints
        made = await endpoints.create_async(
            {"url": f"{url}/webhooks/stripe", "enabled_events": ["customer.created"], "metadata": {"a": "1"}}
        )
        assert made.secret is not None
        assert (made.status, made.enabled_events) == ("enabled", ["customer.created"])
        assert getattr(await endpoints.retrieve_async(made.id), "secret", None) is None
        await client.v1.customers.create_async({"name": "Ada"})
        await emulator.deliver()
        assert receiver.event(made.secret).data.object["name"] == "Ada"
        changed = await endpoints.update_async(made.id, {"disabled": True, "description": "off"})
        assert (changed.status, changed.description) == ("disabled", "off")
        await client.v1.customers.create_async({"name": "Bob"})
        assert await emulator.deliver() == ()
        await endpoints.update_async(made.id, {"disabled": False})
        await client.v1.customers.create_async({"name": "Cid"})
        assert (await endpoints.delete_async(made.id)).deleted
        assert await emulator.deliver() == ()
        assert (await endpoints.list_async()).data == []
        for params, message in (({"url": "x"}, "enabled_events"), ({"enabled_events": ["*"]}, "url")):
            wrong: Any = params
            with pytest.raises(stripe.InvalidRequestError, match=f"Missing required param: {message}"):
                await endpoints.create_async(wrong)
        with pytest.raises(stripe.InvalidRequestError, match=f"No such webhook endpoint: '{made.id}'"):
            await endpoints.retrieve_async(made.id)


async def test_while_it_is_served_events_are_delivered_by_themselves() -> None:
    clock, receiver = Clock(NOW), Receiver(500)
    emulator = StripeEmulator(clock=clock)
    arrived = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receiver.app(scope, receive, send)
        arrived.set()

    emulator.add_endpoint(HOOK, app=receiver.app)
    with anyio.fail_after(240):
        async with serve(app, host="127.0.0.1", port=0) as url, account(emulator) as client:
            emulator.add_endpoint(f"{url}/webhooks/stripe")
            await client.v1.customers.create_async({"name": "Ada"})
            await arrived.wait()
            arrived = anyio.Event()
            clock.advance(timedelta(hours=1))
            await arrived.wait()
    assert receiver.types == ["customer.created"] * 2, "an app waits until a test delivers to it"
    assert [delivery.status for delivery in emulator.deliveries] == [500, 200]
    assert [delivery.url for delivery in await emulator.deliver()] == [HOOK]


def test_served_in_a_thread_they_come_too() -> None:
    arrived: list[str] = []
    emulator = StripeEmulator()
    with StripeEmulator().running() as other, emulator.running():
        emulator.add_endpoint(f"{other}/_emulator/faults")
        emulator.emit("invoice.paid", {"id": "in_1"})
        with httpx.Client() as client:
            while not emulator.deliveries:
                client.get(f"{other}/_emulator/faults")
        arrived = [delivery.type for delivery in emulator.deliveries]
    assert arrived == ["invoice.paid"]


async def test_meter_errors_are_told_by_thin_events() -> None:
    """The notification has no data; it is fetched (https://docs.stripe.com/api/v2/core/events/object)."""
    receiver, everything = Receiver(), Receiver()
    emulator = StripeEmulator(refuse_unknown_customers=False)
    meter = emulator.add_meter("calls")
    secret = emulator.add_endpoint(HOOK, app=receiver.app, thin=True)
    emulator.add_endpoint("http://app.test/webhooks/stripe?all", app=everything.app)
    async with account(emulator) as client:
        await client.v1.billing.meter_events.create_async(
            {
                "event_name": "calls",
                "identifier": "i1",
                "payload": {"stripe_customer_id": "cus_none", "value": "1"},
            }
        )
        emulator.report_meter_errors("nothing", code="no_meter", identifiers=["a"] * 12, count=500)
        await emulator.deliver(*emulator.thin_events)
        first, second = receiver.bodies[-2:]
        headers = [header["stripe-signature"] for header in receiver.headers[-2:]]
        unknown = client.parse_event_notification(first, headers[0], secret)
        missing = client.parse_event_notification(second, headers[1], secret)
        assert isinstance(unknown, stripe.events.V1BillingMeterErrorReportTriggeredEventNotification)
        assert isinstance(missing, stripe.events.V1BillingMeterNoMeterFoundEventNotification)
        assert (unknown.related_object.id, b'"data"' in first) == (meter, False)
        # fetch_related_object_async of SDK 16.1 sends a parameter "usage" of its own, which no API has.
        found = await client.v1.billing.meters.retrieve_async(unknown.related_object.id)
        assert found.event_name == "calls"
        data = (await unknown.fetch_event_async()).data
        (kind,) = data.reason.error_types
        assert (data.reason.error_count, kind.code) == (1, "meter_event_customer_not_found")
        assert kind.sample_errors[0]["request"]["identifier"] == "i1"
        lost = (await missing.fetch_event_async()).data
        assert lost.developer_message_summary == "There are 500 invalid events"
        assert (lost.reason.error_count, len(lost.reason.error_types[0].sample_errors)) == (500, 10)
        with pytest.raises(ValueError, match="thin event notification"):
            stripe.Webhook.construct_event(first, headers[0], secret)
        with pytest.raises(stripe.InvalidRequestError, match="No such event"):
            await client.v2.core.events.retrieve_async("evt_none")
    assert everything.bodies == []


async def test_other_processes_script_webhooks_over_http() -> None:
    receiver = Receiver()
    emulator = StripeEmulator(clock=Clock(NOW), automatic_webhooks=False)
    async with (
        serve(receiver.app, host="127.0.0.1", port=0) as app,
        emulator.serve() as url,
        httpx.AsyncClient(base_url=f"{url}/_emulator") as client,
    ):
        hook = f"{app}/webhooks/stripe"
        secret = (await client.post("/endpoints", json={"url": hook, "events": ["invoice.*"]})).json()[
            "secret"
        ]
        assert [hook] == [each["url"] for each in (await client.get("/endpoints")).json()["endpoints"]]
        told = {"type": "invoice.paid", "object": {"id": "in_1"}}
        event = (await client.post("/emit", json=told)).json()["event"]
        again = {"type": "invoice.updated", "object": {"id": "in_1"}, "previous": {"id": "in_1"}}
        assert (await client.post("/emit", json=again)).json() == {"event": None}
        made = (await client.post("/deliver")).json()["deliveries"]
        assert [(event["id"], 200)] == [(delivery["event"], delivery["status"]) for delivery in made]
        assert receiver.event(secret).id == event["id"]
        forged = {"events": [event["id"]], "forge": "unsigned", "to": hook}
        assert (await client.post("/deliver", json=forged)).json()["deliveries"][0]["forged"] == "unsigned"
        assert len((await client.get("/deliveries")).json()["deliveries"]) == 2
        wrong: list[tuple[str, object]] = [
            ("/endpoints", {"secret": "x"}),
            ("/endpoints", {"url": "x", "colour": "red"}),
            ("/emit", {}),
            ("/emit", []),
            ("/deliver", {"events": ["evt_none"]}),
        ]
        for path, body in wrong:
            answer = await client.post(path, json=body)
            assert (answer.status_code, bool(answer.json()["error"])) == (400, True), (path, body)
        assert (await client.post("/deliver", content=b"{")).status_code == 400
