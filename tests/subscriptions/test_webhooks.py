"""The way of an event: taken, queued, worked off. What is stored is what Stripe has then, debts included."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from time import time
from typing import Any

import anyio
import httpx
import pytest

from drivers.billing_browser import browser
from drivers.delivery import STRIPE_KEY, kit_for
from drivers.emulated_account import reached
from drivers.health_findings import findings
from drivers.kit_parts import BackgroundTasks
from drivers.near_stripe import served
from drivers.payment_process import Paying
from drivers.plans import free_plan, plans_text
from drivers.sampled import whole
from drivers.subscribed_customer import INSTANT
from drivers.sync_queue import FORGERIES, LEASE_MS
from drivers.webhooks import CATALOG, DAY, HOOK, NOW, PLANS, SECRET, Hooked, hooked, hooked_kit, shop
from drivers.workers import start
from faults.inner_steps import replaced
from faults.proxy import TcpProxy
from faults.refusals import eventually
from meterkit import MeterKit, PaymentFailed, PaymentSucceeded, StripeError, SubscriptionChanged, TrialEnding
from meterkit.catalog import loads
from meterkit.errors import InvoiceOpenError, StoreError
from meterkit.starlette import stripe_webhook
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

BODY_BYTES_MAX = 524_288

SUBSCRIPTIONS = "/v1/subscriptions"


def client_of(kit: MeterKit) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=stripe_webhook(kit)), base_url="http://app")


def signed(event: dict[str, Any], *, secret: str = SECRET, at: Any = NOW) -> dict[str, Any]:
    body = json.dumps(event).encode()
    at_s = int(at.timestamp())
    mac = hmac.new(secret.encode(), b"%d.%b" % (at_s, body), "sha256").hexdigest()
    return {"content": body, "headers": {"Stripe-Signature": f"t={at_s},v1={mac}"}}


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
    assert (set(await at.bring()), (await at.kit.customers.get("acme")).plan) == ({200}, "free")
    await at.kit.webhooks.work_off()
    found = await at.kit.customers.get("acme")
    assert (found.plan, found.stripe_customer) == ("pro", "cus_acme")
    known = (await at.state()).subscription
    assert known is not None
    assert (known.id, known.seats) == (subscription, 3)
    assert (await at.kit.check("acme", "requests", 100)).allowed
    assert at.asked() == 1  # Five events, one look.
    # What an event says counts for nothing.
    lie: dict[str, object] = {"id": subscription, "customer": "cus_acme", "status": "canceled"}
    at.emulator.emit("customer.subscription.deleted", lie)
    await at.settle()
    known = (await at.state()).subscription
    assert known is not None
    assert known.status == "active"


async def test_an_unsigned_event_is_refused(at: Hooked) -> None:
    at.customer()
    await at.subscribe()
    (first, *_) = [told for told in at.emulator.webhook_events if "subscription" in told.type]
    for how in FORGERIES:
        assert await at.bring(first, forge=how) == [400], how
    assert (await waiting(at), await at.bring(first), await waiting(at)) == (0, [200], 1)


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

    padded = {**event(1), "x": "x" * (BODY_BYTES_MAX - len(json.dumps({**event(1), "x": ""})))}
    assert (await client.post("/", **signed(padded))).status_code == 200
    assert (await client.post("/", **signed({**padded, "y": 1}))).status_code == 413
    length = {"content-length": str(10**30)}
    assert (await client.post("/", content=endless(), headers=length)).status_code == 413
    assert (pieces, (await client.post("/", content=endless())).status_code) == (0, 413)
    assert pieces <= BODY_BYTES_MAX / 65_536 + 2


async def test_without_a_secret_stripe_retries(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with hooked(store_url, stripe_webhook_secret=()) as at, client_of(at.kit) as client:
        for _ in range(3):
            assert (await client.post("/", **signed(event(1)))).status_code == 503
        (found,) = await findings(at.kit, "webhooks")
    said = [record.message for record in caplog.records if record.name == "meterkit.subscriptions"]
    at_request = said[-1]
    assert {*said[:-1]} == {f"the webhook endpoint refuses all events of Stripe: {at_request}"}
    assert "set METERKIT_STRIPE_WEBHOOK_SECRET to " in at_request
    assert found.cure.startswith("set METERKIT_STRIPE_WEBHOOK_SECRET")


async def test_a_missing_secret_is_found_where_it_is_needed() -> None:
    top = 'routes: [{match: "POST /webhooks/stripe", exempt: true}]'
    free = free_plan("{}", top=top)
    sold = free.replace("amount_cents: 0", "amount_cents: 2900")

    async def is_missed(text: str, **settings: Any) -> bool:
        given: dict[str, Any] = {"stripe_api_key": STRIPE_KEY, "stripe_api_base": "http://127.0.0.1:1"}
        kit = MeterKit(loads(text), redis_url="memory://", flush=False, **given | settings)
        return bool(await findings(kit, "webhooks"))

    assert await is_missed(sold)
    assert await is_missed(plans_text("top_ups"))
    assert not await is_missed(sold, stripe_webhook_secret=SECRET)
    assert not await is_missed(sold, stripe_api_key=None)
    assert not await is_missed(sold.replace("/webhooks/stripe", "/other"))
    assert not await is_missed(free)


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
        await eventually(lambda: all(lane.connected for lane in at.kit.store.lanes.values()))
        at.clock.advance(timedelta(hours=1))  # Stripe tries again.
        assert set(await at.bring()) == {200}
        await at.kit.webhooks.work_off()
        assert (await at.kit.customers.get("acme")).plan == "pro"


async def test_a_moved_emulator_serves_an_app_in_real_time() -> None:
    clock = Clock()
    emulator = shop(clock)
    async with (
        served(emulator) as url,
        kit_for("memory://", url, clock=time, catalog=CATALOG, stripe_webhook_secret=SECRET) as kit,
        reached(url, key=STRIPE_KEY, timeout_s=300.0) as client,
    ):
        emulator.add_endpoint(HOOK, secret=SECRET, app=stripe_webhook(kit), has_real_time=True)
        emulator.add_endpoint(f"{HOOK}/of-a-test", secret=SECRET, app=stripe_webhook(kit))
        at = Hooked(kit=kit, emulator=emulator, clock=clock, client=client, url=url)
        at.customer()
        await at.subscribe()
        await at.settle()
        began = (await kit.usage("acme"))["period"]
        emulator.fail_payments("cus_acme")
        clock.advance(timedelta(days=32))
        emulator.advance()
        statuses = {(delivery.url, delivery.status) for delivery in await emulator.deliver()}
        await kit.webhooks.work_off()
        used = await kit.usage("acme")
    assert statuses == {(HOOK, 200), (f"{HOOK}/of-a-test", 400)}
    assert (used["status"], used["period"]) == ("past_due", began)


async def test_secrets_roll_without_a_gap(store_url: str) -> None:
    both = f"{SECRET},whsec_new,whsec_thin"
    async with hooked(store_url, stripe_webhook_secret=both) as at, client_of(at.kit) as client:
        for number, secret in enumerate(both.split(",")):
            assert (await client.post("/", **signed(event(number), secret=secret))).status_code == 200
        assert (await client.post("/", **signed(event(9), secret="whsec_old"))).status_code == 400


async def test_usage_that_stripe_does_not_bill_is_an_alarm_once(
    at: Hooked, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "v1.billing.meter.error_report_triggered"
    notice = {"id": "evt_t", "object": "v2.core.event", "type": kind, "related_object": {"id": "mtr_1"}}
    for _ in range(3):
        assert (await client.post("/", **signed(notice))).status_code == 200
    backlog = await at.kit.webhooks.backlog()
    assert (backlog.entries, backlog.alarms) == (1, {kind: 1})
    assert [record.levelno for record in caplog.records if "mtr_1" in record.message] == [logging.ERROR]


async def test_events_are_queued_while_stripe_is_down(at: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    for customer in ("c0", "c1"):
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
    assert [(await at.kit.customers.get(customer)).plan for customer in ("c0", "c1")] == ["pro"] * 2
    assert await waiting(at) == 0
    alarms = [record for record in caplog.records if record.levelno == logging.ERROR]
    # One an hour, not one a customer.
    assert 1 <= len([record for record in alarms if "none is lost" in record.message]) <= 5


async def test_a_right_that_the_key_lacks_delays_no_other_sync(
    at: Hooked, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    at.customer()
    await at.settle()
    at.emulator.fail_next("error", status=403, path="/v2/core/events/evt_t", times=None)
    notice = {"id": "evt_t", "object": "v2.core.event", "type": "v1.billing.meter.error_report_triggered"}
    await client.post("/", **signed(notice))
    await at.kit.webhooks.work_off()
    await at.subscribe()
    await at.settle()
    assert (await at.kit.customers.get("acme")).plan == "pro"
    for _ in range(20):
        at.clock.advance(timedelta(hours=1))
        await at.kit.webhooks.work_off()
    assert (await waiting(at), await at.kit.webhooks.dead()) == (1, [])
    assert "the sync of evt_t is tried again later" in caplog.text


async def test_a_damaged_customer_is_logged_and_given_up(
    at: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    at.customer()
    await at.settle()
    keys, admin = at.kit.store.keys.customer("acme"), await at.kit.store.admin()
    await admin.ask(admin.client.set(keys.state, "of another program", px=10**9))
    await at.subscribe()
    await at.settle()
    assert "the sync of cus_acme is tried again later: the store at " in caplog.text
    for _ in range(20):
        at.clock.advance(timedelta(hours=1))
        await at.kit.webhooks.work_off()
    (given_up,) = await at.kit.webhooks.dead()
    assert (given_up.stripe_customer, "WRONGTYPE" in given_up.why) == ("cus_acme", True)


async def test_without_a_right_that_all_need_few_syncs_are_tried(
    at: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30):
        at.customer(f"c{number}")
        await at.subscribe(f"c{number}")
    at.emulator.fail_next("error", status=403, path=SUBSCRIPTIONS, times=None)
    await at.bring()
    for _ in range(5):
        await at.kit.webhooks.work_off()
        at.clock.advance(timedelta(minutes=11))
    assert at.asked() == 10 + 4
    assert caplog.text.count("none is lost") == 1
    at.emulator.clear_faults()
    at.clock.advance(timedelta(minutes=11))
    await at.kit.webhooks.work_off()
    assert await waiting(at) == 0


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
    assert (await at.kit.webhooks.redrive("cus_else"), await at.kit.webhooks.redrive()) == (0, 1)
    await at.kit.webhooks.work_off()
    assert (await at.kit.customers.get("acme")).plan == "pro"
    assert await at.kit.webhooks.dead() == []


async def complete_session(at: Hooked, *, mode: str = "subscription") -> None:
    """Have Stripe report a checkout session of cus_acme that names customer acme."""
    sold: Any = {"mode": mode, "line_items": [{"price": "price_pro", "quantity": 1}]}
    if mode == "payment":
        at.emulator.add_price(700, price_id="price_once", product="prod_pro", interval=None)
        sold["line_items"][0]["price"] = "price_once"
    named = {"customer": "cus_acme", "client_reference_id": "acme", "success_url": "http://app/"}
    session = await at.client.v1.checkout.sessions.create_async(sold | named)
    at.emulator.emit("checkout.session.completed", json.loads(str(session)))


@pytest.mark.parametrize("where", ["subscription", "customer", "session"])
async def test_whom_stripe_names_is_linked(at: Hooked, where: str) -> None:
    linked = at.customer()
    if where == "customer":
        await at.client.v1.customers.update_async(linked, {"metadata": {"meterkit_customer": "acme"}})
    await at.subscribe(metadata={"meterkit_customer": "acme"} if where == "subscription" else {})
    if where == "session":
        await complete_session(at)
    await at.settle()
    found = await at.kit.customers.get("acme")
    assert (found.stripe_customer, found.plan) == ("cus_acme", "pro")
    (cause,) = (one.cause for one in await at.kit.customers.history("acme") if one.kind == "link")
    assert cause.startswith("evt_")


async def test_the_reference_of_a_single_payment_links_nothing(at: Hooked) -> None:
    """A shop's order has a reference of its own, and each of them was a webhook that failed."""
    at.emulator.add_customer("cus_before")
    await at.kit.customers.link("acme", "cus_before", force=True)
    at.customer()
    await complete_session(at, mode="payment")
    await at.settle()
    assert await at.kit.webhooks.dead() == []
    assert (await at.kit.customers.get("acme")).stripe_customer == "cus_before"


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
    # The visitor of a Payment Link writes the id: acme's Stripe customer is not replaced by the payer's.
    for words in (
        f"its subscription {subscription} of plan 'max' is active without effect",
        "`meterkit customers unlink acme`, then `meterkit webhooks redrive cus_acme`",
        "the payer wrote that id",
    ):
        assert (words in dead.why) == (status == "active")
    assert (await at.kit.customers.get("acme")).stripe_customer == "cus_before"
    assert (await at.kit.customers.get("acme")).plan == "free"
    (finding,) = await findings(at.kit, "webhooks")
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
        with pytest.raises(StripeError, match="which Stripe does not know"):
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
    assert (await at.state(), await waiting(at)) == (known, 0)


async def test_a_worker_that_is_stopped_gives_back_what_it_has(at: Hooked) -> None:
    at.customer()
    await at.subscribe()
    await at.bring()
    at.emulator.fail_next("hang", path=SUBSCRIPTIONS, times=1)
    before = at.asked()
    running = asyncio.create_task(at.kit.webhooks.tasks["webhooks"].run())
    await eventually(lambda: not at.emulator.faults)  # Stripe has been asked.
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await at.kit.webhooks.work_off()  # At once: not when its lease is over.
    assert (await at.kit.customers.get("acme")).plan == "pro"
    assert at.asked() - before <= 2


async def test_no_secret_and_no_body_is_in_the_log_or_the_store(
    client: httpx.AsyncClient, valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = {"id": "in_1", "customer": "cus_a", "email": "ada@x.example"}
    request = signed({**event(1), "data": {"object": told}})
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
        await at.live(8 * DAY)
        at.emulator.fail_payments("cus_acme")
        for _ in range(8):
            await at.live(DAY)
        at.emulator.mend_payments("cus_acme")
        await at.live(7 * DAY)
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
    assert next(event for event in told if isinstance(event, SubscriptionChanged)).cause.startswith("evt_")


async def test_i7_tasks_end_after_a_cancellation(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
            beside.ensure_running(loop, name, work.run)
        with anyio.fail_after(240):
            await begun.wait()
            await beside.end(loop)
    assert len(swallowed) == 1


async def test_a_button_on_the_page_puts_the_customer_on_the_plan(store_url: str) -> None:
    async with hooked(store_url) as at, httpx.AsyncClient() as browser:
        page = await at.kit.subscriptions.checkout(
            "acme", "pro", success_url="https://app.example/done", cancel_url="https://app.example/plans"
        )
        assert (await browser.post(page.url, data={"payment": "fails"})).status_code == 200
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


PAGE = "https://app.example/"


@asynccontextmanager
async def paying(store_url: str, after_retries: str, **settings: Any) -> AsyncGenerator[Hooked]:
    """A subscriber; and what Stripe does after its last retry of a payment."""
    clock = Clock(NOW)
    emulator = shop(clock, after_retries=after_retries)
    async with hooked(store_url, clock=clock, emulator=emulator, **settings) as at:
        at.customer()
        await at.subscribe()
        await at.settle()
        yield at


@asynccontextmanager
async def debtor(store_url: str, dunning: str = "") -> AsyncGenerator[Hooked]:
    """A customer whose subscription Stripe has canceled after its last retry."""
    async with paying(store_url, "cancel", catalog=loads(PLANS + dunning)) as at:
        at.emulator.fail_payments("cus_acme")
        for _ in range(20):
            await at.live(3 * DAY)
        at.emulator.mend_payments("cus_acme")
        yield at


async def open_invoice(at: Hooked) -> tuple[str, str]:
    """The invoice that is owed: its id, and the page where it is paid."""
    (invoice,) = (await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "open"})).data
    assert invoice.id is not None
    assert invoice.hosted_invoice_url is not None
    return invoice.id, invoice.hosted_invoice_url


async def test_a_debtor_pays_first_and_may_subscribe_then(store_url: str) -> None:
    """F-115: after Stripe's `cancel` a debtor could subscribe again with the debt open."""
    async with debtor(store_url) as at:
        known = await at.kit.customers.get("acme")
        assert (known.status, known.access, known.plan) == ("canceled", "full", "free")
        invoice, url = await open_invoice(at)
        before = at.asked(method="POST"), at.asked("/v1/checkout/sessions", "POST")
        for _ in range(2):
            with pytest.raises(InvoiceOpenError, match=invoice) as caught:
                await at.kit.subscriptions.create("acme", "pro")
            assert (caught.value.invoice, caught.value.url) == (invoice, url)
            with pytest.raises(InvoiceOpenError):
                await at.kit.subscriptions.checkout("acme", "max", success_url=PAGE, cancel_url=PAGE)
        assert (at.asked(method="POST"), at.asked("/v1/checkout/sessions", "POST")) == before
        await at.client.v1.invoices.pay_async(invoice)
        assert (await at.kit.subscriptions.create("acme", "pro")).subscription.status == "incomplete"


async def test_a_browser_is_told_where_to_pay(store_url: str) -> None:
    async with debtor(store_url) as at:
        invoice, url = await open_invoice(at)
        async with browser(at.kit) as client:
            pages = {"success_url": PAGE, "cancel_url": PAGE}
            for path, more in (("/subscription", {}), ("/checkout", pages)):
                answer = await client.post(path, json={"plan": "pro", "seats": 1, **more})
                found = answer.json()
                assert (answer.status_code, found["type"]) == (402, "urn:meterkit:problem:invoice-open")
                assert found["url"] == url
            await at.client.v1.invoices.void_invoice_async(invoice)  # It is let go.
            answer = await client.post("/checkout", json={"plan": "pro", "seats": 1, **pages})
            assert answer.status_code == 200


async def test_the_plans_file_may_allow_debts(store_url: str) -> None:
    async with debtor(store_url, "dunning: {debt: allow}\n") as at:
        assert (await at.kit.subscriptions.create("acme", "pro")).subscription.status == "incomplete"


async def days(at: Hooked, count: int) -> list[str]:
    """The access of each day from now on, with all webhooks worked off."""
    found: list[str] = []
    for _ in range(count):
        at.emulator.advance()
        await at.settle()
        found.append((await at.kit.customers.get("acme")).access)
        at.clock.advance(DAY)
    return found


async def test_the_invoice_of_another_period_begins_no_grace_anew(store_url: str) -> None:
    """Stripe can be set to leave a subscription past due, and then invoices it month after month."""
    async with paying(store_url, "past_due") as at:
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(30 * DAY)  # 10 June to 10 July.
        found = await days(at, 100)
        first = found.index("grace")
        assert found[first:] == ["grace"] * 7 + ["restricted"] * 7 + ["suspended"] * (100 - first - 14)
        at.emulator.mend_payments("cus_acme")
        assert (await days(at, 40))[-1] == "full"
        # Once it was paid for a while, the next failure is the first again.
        at.emulator.fail_payments("cus_acme")
        found = await days(at, 40)
        first = found.index("grace")
        assert found[first : first + 8] == ["grace"] * 7 + ["restricted"]


async def paused(at: Hooked, behavior: str, **more: Any) -> str:
    """A customer who pays for a month from 10 June, and whose collection is paused ten days later."""
    at.customer()
    subscription = await at.subscribe()
    await at.settle()
    at.clock.advance(10 * DAY)
    params: Any = {"pause_collection": {"behavior": behavior, **more}}
    await at.client.v1.subscriptions.update_async(subscription, params)
    await at.settle()
    return subscription


async def access(at: Hooked) -> tuple[str | None, str, str]:
    found = await at.kit.customers.get("acme")
    return found.status, found.access, found.plan


async def renewed_daily(at: Hooked, days: int = 32) -> None:
    """Let days pass, with all that Stripe does and tells in them."""
    for _ in range(days):
        await at.live(DAY)


async def test_voided_invoices_give_what_is_paid_and_no_more(at: Hooked) -> None:
    """F-115: `pause_collection: void` was free for ever."""
    subscription = await paused(at, "void")
    assert await access(at) == ("active", "full", "pro")
    state = (await at.state()).subscription
    assert state is not None
    at.clock.set(at.clock.now().fromtimestamp(state.end_ms / 1000, at.clock.now().tzinfo) - INSTANT)
    assert await access(at) == ("active", "full", "pro")
    at.clock.advance(INSTANT)
    assert await access(at) == ("active", "restricted", "free")  # By the clock, before Stripe tells.
    await renewed_daily(at, 70)
    assert await access(at) == ("active", "restricted", "free")
    # Resumed, it is as its status says; and the next invoice is collected.
    nothing: Any = {"pause_collection": ""}
    await at.client.v1.subscriptions.update_async(subscription, nothing)
    await at.settle()
    assert await access(at) == ("active", "full", "pro")


async def test_a_pause_that_ends_by_itself_ends_at_its_second(at: Hooked) -> None:
    resumes = at.clock.now() + 50 * DAY
    await paused(at, "void", resumes_at=int(resumes.timestamp()))
    await renewed_daily(at, 35)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes - INSTANT)
    assert await access(at) == ("active", "restricted", "free")
    at.clock.set(resumes)
    assert await access(at) == ("active", "full", "pro")
    await at.live(0 * DAY)
    assert await access(at) == ("active", "full", "pro")


@pytest.mark.parametrize("behavior", ["keep_as_draft", "mark_uncollectible"])
async def test_what_is_collected_later_or_given_away_is_served(at: Hooked, behavior: str) -> None:
    await paused(at, behavior)
    await renewed_daily(at, 70)
    assert await access(at) == ("active", "full", "pro")
