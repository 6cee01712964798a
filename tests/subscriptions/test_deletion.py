"""A customer who is deleted is not charged on, is brought back by no event, and leaves no id behind."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from drivers.app import answering
from drivers.audited_kit import sqlite_in
from drivers.customer_states import note_findings
from drivers.messages import SECRET, contact, courier
from drivers.plans import plans_text
from drivers.shop import PLANS as PLANS_OF_SHOP
from drivers.shop import START, Shop, sell_nothing, shop
from drivers.subscribed_customer import erase
from drivers.webhooks import NOW, Hooked, hooked
from faults.inner_steps import failing, wrapped
from meterkit import Caller, MeterMiddleware, record
from meterkit.catalog import loads
from meterkit.errors import CustomerError, StoreError, StripeUnavailableError
from servers.stores import Server
from storage.objects import Happened
from subscriptions.looks import linked_of

pytestmark = pytest.mark.anyio

URLS: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}


async def events_arrive(at: Shop, linked: str) -> None:
    """Have the Stripe customer looked at, as each of its events asks for."""
    await at.kit.webhooks.sync_later(linked)
    await at.kit.webhooks.work_off()


async def test_a_customer_with_a_subscription_is_not_deleted(at: Shop) -> None:
    """F-112: Stripe charged on without a word."""
    begun = await at.subscribed()
    with pytest.raises(CustomerError, match=f"{begun.id}, which is active.*cancel=True"):
        await at.kit.customers.delete("acme")
    assert (await at.kit.customers.get("acme")).plan == "team"
    await events_arrive(at, await linked_of(at))
    assert (await at.kit.customers.get("acme")).plan == "team"


@pytest.mark.parametrize(("price", "is_refused"), [("price_pro", True), ("price_other", False)])
async def test_a_plan_that_begins_later_is_not_charged(at: Shop, price: str, is_refused: bool) -> None:
    """A person sold it in the Dashboard from a day on: it began, and was charged to who had been deleted."""
    at.emulator.add_price(500, price_id="price_other")
    linked = at.emulator.add_customer("cus_acme")
    await at.kit.customers.link("acme", linked)
    begins = str(int((START + timedelta(days=3)).timestamp()))
    phase = {"phases[0][items][0][price]": price, "start_date": begins}
    await at.stripe_change("/v1/subscription_schedules", customer=linked, **phase)
    if is_refused:
        paid, plans = "https://app.example/paid", "https://app.example/plans"
        await at.kit.subscriptions.checkout("acme", "pro", success_url=paid, cancel_url=plans)
        with pytest.raises(CustomerError, match=r"sub_sched_\w+, which has not started.*cancel=True"):
            await at.kit.customers.delete("acme")
        assert await at.kit.customers.known("acme")
        (page,) = await at.stripe_list("/v1/checkout/sessions")
        assert page["status"] == "open"
    await at.kit.customers.delete("acme", cancel=is_refused)
    at.go(timedelta(days=4))
    assert len(await at.stripe_list("/v1/subscriptions")) == int(not is_refused)


async def test_a_subscription_unknown_to_the_store_is_looked_up(at: Shop) -> None:
    made = await at.kit.subscriptions.create("acme", "pro")
    await at.kit.subscriptions.cancel("acme")
    await at.stripe_change(
        "/v1/subscriptions",
        customer=await linked_of(at),
        default_payment_method=at.emulator.add_payment_method(await linked_of(at)),
        **{"items[0][price]": "price_team"},
    )
    assert made.subscription.status == "incomplete"
    with pytest.raises(CustomerError, match="which is active"):
        await at.kit.customers.delete("acme")


async def test_no_event_brings_a_deleted_customer_back(at: Shop) -> None:
    """F-112: the next webhook brought customer, link and plan back."""
    begun = await at.subscribed()
    linked = await linked_of(at)
    await at.kit.record("acme", "tokens", 1_100)
    at.clock.advance(timedelta(minutes=5, seconds=30))
    deleted = await at.kit.customers.delete("acme", cancel=True)
    assert (deleted.state, deleted.link) == (1, 1)
    assert (await at.stripe_subscription(begun.id))["status"] == "canceled"
    assert at.emulator.accepted(linked, "ai_tokens") == 1_000
    # An operator makes another subscription in the Dashboard.
    at.emulator.add_payment_method(linked)
    await at.stripe_change("/v1/subscriptions", customer=linked, **{"items[0][price]": "price_pro"})
    await events_arrive(at, linked)
    assert not await at.kit.customers.known("acme")
    assert [one async for one in at.kit.customers.list()] == []


async def test_a_look_before_the_deletion_stores_nothing(at: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await at.subscribed()
    linked = await linked_of(at)

    def deleting(keep: Any) -> Any:
        async def keep_after_deletion(queue: Any, entry: Any) -> bool:
            """The subscription is fetched by now, and not stored yet."""
            await erase(at.kit, "acme")
            found: bool = await keep(queue, entry)
            return found

        return keep_after_deletion

    wrapped(monkeypatch, "a webhook entry is kept", deleting)
    await events_arrive(at, linked)
    assert not await at.kit.customers.known("acme")


async def test_nothing_is_deleted_while_stripe_is_away(at: Shop) -> None:
    await at.subscribed()
    at.emulator.fail_next("error", status=503, path="*", times=None)
    with pytest.raises(StripeUnavailableError):
        await at.kit.customers.delete("acme", cancel=True)
    assert await at.kit.customers.known("acme")


async def test_the_pages_of_a_deleted_customer_are_closed(at: Shop) -> None:
    page = await at.kit.subscriptions.checkout("acme", "pro", **URLS)
    await at.kit.customers.delete("acme")
    with pytest.raises(ValueError, match="open"):
        at.emulator.complete_checkout(page.id)


@asynccontextmanager
async def sold_by_key(store_url: str) -> AsyncGenerator[tuple[Shop, str]]:
    """A shop whose plans name no price, and an open page of a customer there."""
    catalog = loads(re.sub(r", stripe_price: \w+", "", PLANS_OF_SHOP))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        page = await at.kit.subscriptions.checkout("acme", "pro", **URLS)
        yield at, page.id


async def test_who_has_paid_for_a_plan_without_an_id_is_not_deleted(store_url: str) -> None:
    async with sold_by_key(store_url) as (at, page):
        at.emulator.complete_checkout(page)  # No webhook of it has come.
        with pytest.raises(CustomerError, match="which is active"):
            await at.kit.customers.delete("acme")
        await at.kit.customers.delete("acme", cancel=True)
        (subscription,) = await at.stripe_list("/v1/subscriptions", status="all")
        assert subscription["status"] == "canceled"


async def test_a_page_for_a_plan_without_an_id_is_closed(store_url: str) -> None:
    async with sold_by_key(store_url) as (at, page):
        await at.kit.customers.delete("acme", cancel=True)
        with pytest.raises(ValueError, match="open"):
            at.emulator.complete_checkout(page)


async def test_a_page_that_is_paid_as_it_is_closed_is_seen(at: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    page = await at.kit.subscriptions.checkout("acme", "pro", **URLS)

    def paying(close: Any) -> Any:
        async def close_paid(*asked: Any) -> None:
            at.emulator.complete_checkout(page.id)
            await close(*asked)

        return close_paid

    wrapped(monkeypatch, "pages are closed", paying)
    with pytest.raises(CustomerError, match="which is active"):
        await at.kit.customers.delete("acme")
    assert (await at.kit.customers.get("acme")).plan == "pro"


async def test_who_is_deleted_at_stripe_can_be_deleted_here(at: Shop) -> None:
    await at.kit.subscriptions.checkout("acme", "pro", **URLS)
    await at.stripe_delete(f"/v1/customers/{await linked_of(at)}")
    assert (await at.kit.customers.delete("acme")).link == 1


async def test_a_customer_deleted_at_stripe_gets_a_new_one(at: Shop) -> None:
    """F-113: 502 until an operator unlinked."""
    await at.subscribed()
    first = await linked_of(at)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.customers.set_plan("acme", "pro")
    await at.kit.record("acme", "tokens", 1_300)
    await at.stripe_delete(f"/v1/customers/{first}")
    assert (await at.subscribed(plan="pro")).status == "active"
    second = await linked_of(at)
    assert second != first
    at.clock.advance(timedelta(minutes=10))
    await at.kit.flush(everything=True)
    assert at.emulator.accepted(second, "ai_tokens") == 300
    await events_arrive(at, first)
    assert await linked_of(at) == second


WHO: Final = "zoe@example.org"
PAGE: Final = Path(__file__).parents[2] / "docs" / "redis-keys.md"
PLANS: Final = plans_text("deletion_traces")
JOB: Final[dict[str, Any]] = {
    "id": "resp_1",
    "object": "response",
    "background": True,
    "status": "queued",
    "usage": None,
    "output": [],
}
USED: Final = {"input_tokens": 600, "output_tokens": 400, "total_tokens": 1000}
DONE: Final = JOB | {"status": "completed", "usage": USED}

LEFT: Final = {
    "mk:{s}:closes": "a period of which it is still to be confirmed that Stripe has all of it",
    "mk:{s}:unclosed": "the same, overdue",
    "mk:{s}:delivered:DAY": "what Stripe accepted, to be compared with Stripe's books for 36 days",
    "mk:{s}:audit": "entries on their way to the audit log, which keeps the customer",
    "mk:{s}:x:DIGEST": "an event that was found and not queued before the process was killed; 2 days",
    "mk:{s}:b:CUSTOMER": "a lock of a minute",
}
"""Keys that may still have the id after a deletion, and why."""
REFUSED: Final = {
    *("mk:{s}:intents", "mk:{s}:outbox", "mk:{s}:parked", "mk:{s}:dead", "mk:{s}:compare"),
    "mk:{s}:items",
}
"""Keys of usage on its way to Stripe: with any of it a deletion is refused."""
WITHOUT_ID: Final = re.compile(
    r"mk:(meta|events|plans)|mk:\{[s0]\}:(e:|y:|w:|r:|batches:|storage$|tried|life|hints:|hooks:(entries|dead|due|cursor|"
    r"swept|night|sweep)|messages:CHANNEL:(due|dead|event|text)|period|overview|degraded|excess|doctor|lease|closing|"
    r"recover|audit:lease|unpriced|revenue|usage.spike|storage|a:IP|av:|ai:)"
)
"""Keys of digests, Stripe customers, addresses and the store; further states of keys that are filled."""


async def scan(server: Server, text: str = WHO) -> dict[str, str]:
    """By key, the content of each key whose name or content has a text."""
    found: dict[str, str] = {}
    with server.client() as client:
        each: Any = client
        reads: Mapping[str, Any] = {
            "string": each.get,
            "hash": each.hgetall,
            "list": partial(each.lrange, start=0, end=-1),
            "set": each.smembers,
            "zset": partial(each.zrange, start=0, end=-1),
            "stream": each.xrange,
        }
        for key in each.keys("*"):
            content = repr(reads[each.type(key).decode()](key))
            if text in key.decode() or text in content:
                found[key.decode()] = content
    return found


def pattern_of(name: str) -> re.Pattern[str]:
    """A key of the page as a pattern of keys."""
    return re.compile(re.sub(r"[A-Z_]{2,}", ".+", re.escape(name).replace(r"\{s\}", r"\{\d+\}")) + "$")


def keys_of_the_page() -> list[str]:
    rows = re.findall(r"^\| (`mk:[^|]+`) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


async def leaked(server: Server) -> list[str]:
    """Keys that have the id, and may not after a deletion."""
    allowed = [pattern_of(name) for name in LEFT]
    return [key for key in await scan(server) if not any(one.match(key) for one in allowed)]


@asynccontextmanager
async def at_work(store_url: str, directory: Path) -> AsyncGenerator[Hooked]:
    async with hooked(
        store_url,
        catalog=loads(PLANS),
        notify_secret=SECRET,
        smtp_url="smtp://127.0.0.1:9",
        contact=contact,
        audit_url=sqlite_in(directory),
        storage_endpoint="http://127.0.0.1:9",
    ) as at:
        at.emulator.add_meter("requests")
        yield at


async def live(at: Hooked) -> None:
    """Do everything for a customer that leaves something in the store."""
    kit, store = at.kit, at.kit.store
    at.emulator.add_customer("cus_former")
    await kit.customers.link(WHO, "cus_former")
    await kit.customers.unlink(WHO)
    linked = at.emulator.add_customer("cus_zoe")
    at.emulator.add_payment_method(linked)
    await at.subscribe("zoe", metadata={"meterkit_customer": WHO})
    await at.settle()
    app = MeterMiddleware(answering(200), kit=kit, identify=who)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        for nth in range(6):
            assert (await client.get("/", headers={"Idempotency-Key": f"k{nth}"})).status_code == 200
    await kit.grants.add(WHO, {"ai": 5}, grant_id="gift")
    for nth in range(3):
        await kit.record(WHO, {"words": 2}, event_id=f"job-{nth}")
    await kit.gauges.set(WHO, "seats", 4, event_id="job-1")
    await kit.customers.override(WHO, {"words": {"included": 1}}, until=at.clock.now() + timedelta(days=9))
    await kit.correct(WHO, {"words": 1}, reason="broken", correction_id="ticket-1")
    await kit.record_usage(WHO, JOB)
    await kit.notify.preferences(WHO, {"credits.low": False})
    await kit.storage.presign(WHO, f"{WHO}/a", 700)
    stored = Happened.put(f"{WHO}/b", 5, int(NOW.timestamp() * 1000))
    await kit.storage.count(stored.as_body("s3", "uploads").decode())
    for channel in ("webhook", "email"):
        await courier(kit, channel).collect()
    await kit.webhooks.sync_later(linked)
    # What a night finds.
    await note_findings(kit, WHO, "words")
    admin, shard = await store.admin(), store.keys.customer(WHO).shard
    hooks = (store.keys.hooks("changes"), store.keys.hooks("prices"))
    for key in (*hooks, store.keys.relist(shard), store.keys.shard(shard, "unclosed")):
        await admin.ask(admin.client.zadd(key, {WHO: store.now_ms()}))
        await admin.ask(admin.client.pexpire(key, 9_000))
    await admin.ask(admin.client.set(store.keys.watched(WHO, "0a"), f'{{"customer":"{WHO}"}}', px=9_000))
    await admin.ask(admin.client.set(store.keys.beginning(WHO), "process", px=9_000))
    await admin.ask(admin.client.hset(store.keys.audit_sums(shard), f"7|abcd1|{WHO}", 1))


def who(_scope: Scope) -> Caller:
    return Caller(WHO, {"user": "u_7"})


@pytest.fixture(autouse=True)
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


async def test_a_deleted_customers_id_stays_only_where_listed(
    valkey: Server, store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(store_url, tmp_path) as at:
        await at.kit.record(WHO, "requests", 1)
        filled = {*await scan(valkey)}  # Not linked yet.
        await live(at)
        filled |= {*await scan(valkey)}
        at.clock.advance(timedelta(minutes=6))
        await at.kit.flush(everything=True)
        filled |= {*await scan(valkey)}
        page = keys_of_the_page()
        # Every kind of key that may name a customer is tried: a new one fails here until it is.
        kinds = [name for name in page if not (WITHOUT_ID.match(name) or name in REFUSED)]
        assert [name for name in kinds if not any(pattern_of(name).match(key) for key in filled)] == []
        deleted = await at.kit.customers.delete(WHO, cancel=True)
        assert (deleted.state, deleted.link, deleted.jobs, deleted.subjects) == (1, 1, 1, 1)
        await at.settle()
        caplog.clear()
        with caplog.at_level(logging.WARNING, "meterkit"):
            for customer in (None, None, "yan"):
                assert await at.kit.record_usage(customer, DONE) is None
            await at.kit.record_usage(None, JOB | {"status": "in_progress"})
        told = [line.getMessage() for line in caplog.records if "'resp_1' is dropped" in line.getMessage()]
        assert len(told) == 1
        assert WHO not in told[0]
        assert (await at.kit.usage("yan"))["meters"]["input_tokens"]["recorded"] == 0
        assert not await at.kit.customers.known(WHO)
        assert await leaked(valkey) == []
        told_by_page = PAGE.read_text("utf-8").partition("## Customers")[0]
        assert [name for name in LEFT if f"`{name.partition('}:')[2]}`" not in told_by_page] == []


async def test_a_repeat_erases_what_a_failed_deletion_left(
    valkey: Server, store_url: str, tmp_path: Path
) -> None:
    async with at_work(store_url, tmp_path) as at:
        await live(at)
        at.clock.advance(timedelta(minutes=6))
        await at.kit.flush(everything=True)
        with failing("a deletion goes on behind its script"), pytest.raises(StoreError):
            await at.kit.customers.delete(WHO, cancel=True)
        deleted = await at.kit.customers.delete(WHO)
        assert (deleted.state, deleted.link, deleted.corrections) == (0, 1, 1)
        await at.settle()
        assert await leaked(valkey) == []
        assert not await at.kit.customers.known(WHO)


async def test_no_request_in_flight_brings_a_customer_back(
    valkey: Server, store_url: str, tmp_path: Path
) -> None:
    """An app's own `DELETE /account` counted for the customer that it had just deleted."""
    async with at_work(store_url, tmp_path) as at:
        kit, ends = at.kit, answering(200)

        async def delete(scope: Scope, receive: Receive, send: Send) -> None:
            await kit.customers.delete(WHO)
            record(words=3)
            await ends(scope, receive, send)

        apps = [MeterMiddleware(app, kit=kit, identify=who) for app in (ends, delete)]
        served, deleting = (
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") for app in apps
        )
        async with served, deleting:
            for _ in range(2):
                assert (await served.get("/")).status_code == 200
                assert (await deleting.delete("/account")).status_code == 200
                assert not await kit.customers.known(WHO)
                assert await leaked(valkey) == []
            assert (await served.get("/")).status_code == 200
        assert (await kit.usage(WHO))["meters"]["requests"]["recorded"] == 1
