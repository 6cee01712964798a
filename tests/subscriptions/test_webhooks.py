"""The way of an event: taken, queued, worked off; what is stored is what Stripe has then."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
import stripe

from drivers.kit_parts import BackgroundTasks
from drivers.payment_process import Paying
from drivers.sampled import whole
from drivers.sync_queue import FORGERIES, LEASE_MS
from drivers.webhooks import DAY, HOOK, NOW, SECRET, hooked, hooked_kit, shop
from drivers.workers import start
from faults.inner_steps import replaced
from faults.proxy import TcpProxy
from faults.refusals import eventually
from meterkit import (
    PaymentFailed,
    PaymentSucceeded,
    StripeError,
    SubscriptionChanged,
    TrialEnding,
)
from meterkit.errors import StoreError
from meterkit.starlette import stripe_webhook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from drivers.webhooks import Hooked
    from meterkit import MeterKit
    from servers.stores import Server

BODY_BYTES_MAX = 524_288
pytestmark = pytest.mark.anyio

SDK: Any = stripe
SUBSCRIPTIONS = "/v1/subscriptions"


def client_of(kit: MeterKit) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=stripe_webhook(kit))
    return httpx.AsyncClient(transport=transport, base_url="http://app")


def signed(event: dict[str, Any], *, secret: str = SECRET, at: Any = NOW) -> dict[str, Any]:
    body = json.dumps(event)
    header: str = SDK.WebhookSignature.generate_signature_header(body, secret, timestamp=int(at.timestamp()))
    return {"content": body.encode(), "headers": {"Stripe-Signature": header}}


def event(number: int, kind: str = "invoice.paid", customer: str = "cus_acme") -> dict[str, Any]:
    told = {"id": f"in_{number}", "customer": customer}
    return {"id": f"evt_{number}", "object": "event", "type": kind, "data": {"object": told}}


async def waiting(at: Hooked) -> int:
    return (await at.kit.webhooks.backlog()).entries


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with hooked(store_url) as opened:
        yield opened


@pytest.fixture
async def client(at: Hooked) -> AsyncGenerator[httpx.AsyncClient]:
    async with client_of(at.kit) as opened:
        yield opened


async def test_a_subscription_made_at_stripe_is_linked_and_binds(at: Hooked) -> None:
    at.customer()
    subscription = await at.subscribe()
    assert set(await at.bring()) == {200}
    assert (await at.kit.customers.get("acme")).plan == "free"
    await at.kit.webhooks.work_off()
    found = await at.kit.customers.get("acme")
    assert (found.plan, found.stripe_customer) == ("pro", "cus_acme")
    state = await at.state()
    assert state.subscription is not None
    assert (state.subscription.id, state.subscription.seats) == (subscription, 3)
    assert (await at.kit.check("acme", "requests", 100)).allowed
    assert at.asked() == 1  # Five events, one look.


async def test_an_unsigned_event_is_refused(at: Hooked) -> None:
    at.customer()
    await at.subscribe()
    (first, *_) = [told for told in at.emulator.webhook_events if "subscription" in told.type]
    for how in FORGERIES:
        assert await at.bring(first, forge=how) == [400], how
    assert await waiting(at) == 0
    assert await at.bring(first) == [200]
    assert await waiting(at) == 1


async def test_answers(client: httpx.AsyncClient) -> None:
    first = await client.post("/", **signed(event(1)))
    assert (first.status_code, first.json()) == (200, {"received": True})
    again = await client.post("/", **signed(event(1)))
    assert (again.status_code, again.json()) == (200, {"received": True, "duplicate": True})
    assert again.headers["content-type"] == "application/json"
    refused = await client.post("/", content=b"{}")
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert refused.json()["detail"] == "no Stripe-Signature header, or several"
    got = await client.get("/")
    assert (got.status_code, got.headers["allow"]) == (405, "POST")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: httpx.AsyncClient) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while True:
            pieces += 1
            yield b" " * 65_536

    largest = json.dumps({**event(1), "x": ""})
    padded = {**event(1), "x": "x" * (BODY_BYTES_MAX - len(largest))}
    assert (await client.post("/", **signed(padded))).status_code == 200
    assert (await client.post("/", **signed({**padded, "y": 1}))).status_code == 413
    length = {"content-length": str(10**30)}
    assert (await client.post("/", content=endless(), headers=length)).status_code == 413
    assert pieces == 0
    assert (await client.post("/", content=endless())).status_code == 413
    assert pieces <= BODY_BYTES_MAX / 65_536 + 2


async def test_without_a_signing_secret_stripe_is_asked_to_come_again(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with hooked(store_url, stripe_webhook_secret=()) as at, client_of(at.kit) as client:
        for _ in range(3):
            assert (await client.post("/", **signed(event(1)))).status_code == 503
    said = [record.message for record in caplog.records if record.name == "meterkit.subscriptions"]
    assert said == ["no signing secret is set: METERKIT_STRIPE_WEBHOOK_SECRET"]


async def test_while_the_store_is_away_stripe_is_asked_to_come_again(valkey: Server) -> None:
    async with (
        TcpProxy(valkey.port) as proxy,
        hooked(f"redis://127.0.0.1:{proxy.port}", store_timeout=0.2) as at,
    ):
        at.customer()
        await at.subscribe()
        await proxy.set("refuse")
        assert set(await at.bring()) == {503}
        await proxy.set("pass")
        async with asyncio.timeout(240):
            while not all(lane.connected for lane in at.kit.store.lanes.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # It connects by itself, and tells nobody.
        at.clock.advance(timedelta(hours=1))  # Stripe tries again.
        assert set(await at.bring()) == {200}
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"


async def test_secrets_roll_without_a_gap(store_url: str) -> None:
    both = f"{SECRET},whsec_new,whsec_thin"
    async with hooked(store_url, stripe_webhook_secret=both) as at, client_of(at.kit) as client:
        for number, secret in enumerate(both.split(",")):
            assert (await client.post("/", **signed(event(number), secret=secret))).status_code == 200
        assert (await client.post("/", **signed(event(9), secret="whsec_old"))).status_code == 400


async def test_usage_that_stripe_does_not_bill_is_an_alarm_once(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "v1.billing.meter.error_report_triggered"
    notice = {"id": "evt_t", "object": "v2.core.event", "type": kind, "related_object": {"id": "mtr_1"}}
    async with hooked(store_url) as at, client_of(at.kit) as client:
        for _ in range(3):
            assert (await client.post("/", **signed(notice))).status_code == 200
        backlog = await at.kit.webhooks.backlog()
    assert (backlog.entries, backlog.alarms) == (1, {kind: 1})
    assert [record.levelno for record in caplog.records if "mtr_1" in record.message] == [logging.ERROR]


async def test_what_an_event_says_counts_for_nothing(at: Hooked) -> None:
    at.customer()
    subscription = await at.subscribe()
    await at.settle()
    lie: dict[str, object] = {"id": subscription, "customer": "cus_acme", "status": "canceled"}
    at.emulator.emit("customer.subscription.deleted", lie)
    await at.settle()
    state = await at.state()
    assert state.subscription is not None
    assert state.subscription.status == "active"


async def test_events_are_queued_while_stripe_is_down(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with hooked(store_url) as at:
        customers = ("c0", "c1")
        for customer in customers:
            at.customer(customer)
            await at.subscribe(customer)
        at.emulator.fail_next("drop", path="*", times=None)
        assert set(await at.bring()) == {200}
        for _ in range(10):
            await at.kit.webhooks.work_off()
            at.clock.advance(timedelta(minutes=21))
        backlog = await at.kit.webhooks.backlog()
        assert (backlog.entries, backlog.dead) == (2, 0)
        at.emulator.clear_faults()
        at.clock.advance(timedelta(hours=1))
        await at.kit.webhooks.work_off()
        assert [(await at.kit.customers.get(customer)).plan for customer in customers] == ["pro"] * 2
        assert await waiting(at) == 0
    alarms = [record for record in caplog.records if record.levelno == logging.ERROR]
    # One an hour, not one a customer.
    assert 1 <= len([record for record in alarms if "none is lost" in record.message]) <= 5


async def test_a_repeated_refusal_is_given_up_and_kept(at: Hooked) -> None:
    at.customer()
    await at.subscribe()
    await at.bring()
    at.emulator.fail_next("error", status=400, path=SUBSCRIPTIONS, times=None)
    tried = [0]
    for _ in range(20):
        await at.kit.webhooks.work_off()
        if at.asked() != tried[-1]:
            tried.append(at.asked())
        at.clock.advance(timedelta(hours=1))
    assert tried[-1] == 12
    (dead,) = await at.kit.webhooks.dead()
    assert dead.stripe_customer == "cus_acme"
    assert dead.why.startswith("Stripe refuses: HTTP 400")
    at.emulator.clear_faults()
    assert await at.kit.webhooks.redrive("cus_else") == 0
    assert await at.kit.webhooks.redrive() == 1
    await at.kit.webhooks.work_off()
    assert (await at.kit.customers.get("acme")).plan == "pro"
    assert await at.kit.webhooks.dead() == []


async def complete_session(at: Hooked) -> None:
    """Have Stripe report a checkout session of cus_acme that names customer acme."""
    session = await at.client.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "customer": "cus_acme",
            "client_reference_id": "acme",
            "success_url": "http://app/",
            "line_items": [{"price": "price_pro", "quantity": 1}],
        }
    )
    at.emulator.emit("checkout.session.completed", json.loads(str(session)))


@pytest.mark.parametrize("where", ["subscription", "customer", "session"])
async def test_whom_stripe_names_is_linked(at: Hooked, where: str) -> None:
    linked = at.customer()
    if where == "customer":
        await at.client.v1.customers.update_async(linked, {"metadata": {"meterkit_customer": "acme"}})
    named = {"meterkit_customer": "acme"} if where == "subscription" else {}
    await at.subscribe(metadata=named)
    if where == "session":
        await complete_session(at)
    await at.settle()
    found = await at.kit.customers.get("acme")
    assert (found.stripe_customer, found.plan) == ("cus_acme", "pro")


@pytest.mark.parametrize("status", ["active", "canceled"])
@pytest.mark.usefixtures("valkey")
async def test_a_second_paying_stripe_customer_is_named(at: Hooked, status: str) -> None:
    # F-22a: a Payment Link makes a Stripe customer of its own; it said nothing of what is paid there.
    at.emulator.add_customer("cus_before")
    await at.kit.customers.link("acme", "cus_before", force=True)
    at.customer()
    subscription = await at.subscribe(price="price_max", metadata={})
    if status == "canceled":
        await at.client.v1.subscriptions.cancel_async(subscription)
    await complete_session(at)
    await at.settle()
    (dead,) = await at.kit.webhooks.dead()
    told = f"its subscription {subscription} of plan 'max' is active without effect"
    assert (told in dead.why) == (status == "active")
    cure = "`meterkit customers unlink acme`, then `meterkit webhooks redrive cus_acme`"
    assert (cure in dead.why) == (status == "active")
    # The visitor of a Payment Link writes the id: acme's Stripe customer is not replaced by the payer's.
    assert ("the payer wrote that id" in dead.why) == (status == "active")
    assert (await at.kit.customers.get("acme")).stripe_customer == "cus_before"
    assert (await at.kit.customers.get("acme")).plan == "free"
    (finding,) = [one for one in (await at.kit.health()).findings if one.check == "webhooks"]
    assert dead.why in finding.problem
    # The cure of the message, where the customer confirms the payment.
    await at.kit.customers.unlink("acme")
    assert await at.kit.webhooks.redrive("cus_acme") == 1
    await at.kit.webhooks.work_off()
    assert (await at.kit.customers.get("acme")).plan == ("max" if status == "active" else "free")


async def test_an_id_that_is_not_allowed_is_given_up_with_the_reason(at: Hooked) -> None:
    at.customer()
    await at.subscribe(metadata={"meterkit_customer": "a\nb"})
    await at.settle()
    (dead,) = await at.kit.webhooks.dead()
    assert "Stripe says that Stripe customer cus_acme is customer 'a\\nb'" in dead.why
    assert [customer async for customer in at.kit.customers.list()] == []


async def test_a_key_of_another_account_takes_nobodys_subscription(at: Hooked, store_url: str) -> None:
    """Whom Stripe does not know was not deleted there: the key is of another account, or of its sandbox."""
    at.customer()
    await at.subscribe()
    await at.settle()
    known = await at.state()
    assert known.subscription is not None
    other = shop(at.clock)
    async with other.serve() as url, hooked_kit(store_url, url, at.clock) as kit:
        with pytest.raises(StripeError, match="No such customer"):
            await kit.subscriptions.sync("acme")
        assert await at.state() == known
        assert (await kit.webhooks.backlog()).entries == 1  # It is synced again later.
        # Of whom nobody is linked to, nothing can be taken.
        other.add_endpoint(HOOK, secret=SECRET, app=stripe_webhook(kit))
        other.emit("customer.subscription.updated", {"id": "sub_9", "customer": "cus_9"})
        await other.deliver()
        await kit.webhooks.work_off()
        assert (await kit.webhooks.backlog()).entries == 1
    assert await at.kit.subscriptions.sync("acme") is not None
    assert await at.state() == known
    assert await waiting(at) == 0


async def test_a_worker_that_is_stopped_gives_back_what_it_has(at: Hooked) -> None:
    at.customer()
    await at.subscribe()
    await at.bring()
    at.emulator.fail_next("hang", path=SUBSCRIPTIONS, times=1)
    before = at.asked()
    running = asyncio.create_task(at.kit.webhooks.tasks["webhooks"]())
    async with asyncio.timeout(240):
        while at.emulator.faults:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # Stripe has been asked.
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await at.kit.webhooks.work_off()  # At once: not when its lease is over.
    assert (await at.kit.customers.get("acme")).plan == "pro"
    assert at.asked() - before <= 2


async def test_no_secret_and_no_body_is_in_the_log_or_the_store(
    client: httpx.AsyncClient, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    private = {
        **event(1),
        "data": {"object": {"id": "in_1", "customer": "cus_a", "email": "ada@x.example"}},
    }
    request = signed(private)
    await client.post("/", **request)
    await client.post("/", content=b"ada@x.example", headers=request["headers"])
    signature = request["headers"]["Stripe-Signature"].partition("v1=")[2]
    hashes = [key for part in ("entries", "dead") for key in valkey.command("KEYS", f"*:hints:{part}")]
    kept = [valkey.command("KEYS", "*"), *(valkey.command("HGETALL", key) for key in hashes)]
    for secret in (signature, SECRET, "ada@x.example"):
        assert secret not in caplog.text
        assert secret not in repr(kept)
    assert "cus_a" in repr(kept)


async def test_handlers_are_told_of_payments_and_of_the_end_of_a_trial(store_url: str) -> None:
    told: list[Any] = []
    async with hooked(store_url) as at:
        for kind in ("payment.failed", "payment.succeeded", "trial.ending", "subscription.changed"):
            at.kit.on(kind)(told.append)
        at.customer()
        trial: Any = {"trial_end": int((NOW + 10 * DAY).timestamp())}
        await at.subscribe(**trial)
        await at.settle()
        at.clock.advance(8 * DAY)
        at.emulator.advance()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        for _ in range(8):
            at.clock.advance(DAY)
            at.emulator.advance()
            await at.settle()
        at.emulator.mend_payments("cus_acme")
        at.clock.advance(7 * DAY)
        at.emulator.advance()
        await at.settle()
        for again in at.emulator.webhook_events:
            await at.bring(again)
        await at.kit.webhooks.work_off()
        await eventually(lambda: any(isinstance(event, PaymentSucceeded) for event in told))
    assert [event.trial_end for event in told if isinstance(event, TrialEnding)] == [NOW + 10 * DAY]
    failed = [event for event in told if isinstance(event, PaymentFailed)]
    assert [event.failures for event in failed] == [1, 2, 3][: len(failed)]
    assert (failed[0].amount_cents, failed[0].next_attempt is None) == (1000, False)
    (paid,) = [event for event in told if isinstance(event, PaymentSucceeded)]
    assert (paid.amount_cents, paid.currency, paid.customer) == (1000, "usd", "acme")
    assert paid.invoice == failed[0].invoice
    assert len({event.id for event in told}) == len(told)
    changes = [event for event in told if isinstance(event, SubscriptionChanged)]
    assert changes[0].cause.startswith("evt_")


async def test_i7_background_tasks_end_after_a_cancellation(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # redis-py does so while it connects.
    begun, swallowed = asyncio.Event(), list[int]()

    async def connecting(_queue: object, most: int) -> list[object]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallowed:
                raise
            swallowed.append(most)
        raise StoreError("the store cannot be reached")

    replaced(monkeypatch, "a webhook entry is taken", connecting)
    async with hooked(store_url) as at:
        loop, beside = asyncio.get_running_loop(), BackgroundTasks(Counter())
        for name, work in at.kit.webhooks.tasks.items():
            beside.keep(loop, name, work)
        with anyio.fail_after(240):
            await begun.wait()
            await beside.end(loop)
    assert len(swallowed) == 1


async def test_a_button_on_the_page_puts_the_customer_on_the_plan(store_url: str) -> None:
    async with hooked(store_url) as at, httpx.AsyncClient() as browser:
        page = await at.kit.subscriptions.checkout(
            "acme", "pro", success_url="https://app.example/done", cancel_url="https://app.example/plans"
        )
        declined = await browser.post(page.url, data={"payment": "fails"})
        assert declined.status_code == 200
        await at.settle()
        assert (await at.kit.consume("acme", "requests")).plan == "free"
        paid = await browser.post(page.url, data={"payment": "succeeds"})
        assert (paid.status_code, paid.headers["location"]) == (303, "https://app.example/done")
        await at.settle()
        assert (await at.kit.consume("acme", "requests")).plan == "pro"
    assert {delivery.status for delivery in at.emulator.deliveries} == {200}


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("point", [whole("taken"), whole("fetched"), whole("linked"), "told"])
async def test_what_a_killed_worker_had_is_finished_by_the_next(valkey: Server, point: str) -> None:
    async with hooked(valkey.url) as at:
        at.customer()
        await at.subscribe()
        await at.bring()
        options = {"store": valkey.url, "stripe": at.url, "now": at.clock.now().isoformat()}
        doomed = await start({**options, "crash": point, "sells": "plans"}, Paying)
        with pytest.raises(EOFError, match="-9"):
            await doomed.ask("work_off")
        await at.kit.webhooks.work_off()  # It is still the other's.
        assert (await at.kit.webhooks.backlog()).entries == 1
        assert (await at.kit.customers.get("acme")).plan == ("pro" if point == "told" else "free")
        at.clock.advance(timedelta(milliseconds=LEASE_MS))
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"
        assert (await at.kit.webhooks.backlog()).entries == 0
