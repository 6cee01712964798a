"""Lines for usage without meters, whatever fails: each unit is on exactly one line, or late and said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, Final

import pytest

from drivers.delivery import Caplog, kit_for
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import (
    CATALOG,
    ITEMS,
    arrive_late,
    end_period,
    ended,
    flushed,
    renewal,
    shop_of_lines,
    usage_lines,
)
from faults.inner_steps import failing
from meterkit import MeterUsage
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

ONE_LINE: Final = [("Words", "26", "4", 104)]


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def words(at: Shop, customer: str = "acme") -> MeterUsage:
    """The counts of the first period."""
    return (await at.kit.usage(customer, period=HALF))["meters"]["words"]


async def advices(at: Shop) -> list[str]:
    return [found.advice for found in await at.kit.reconcile("acme", at=HALF)]


FAULTS: Final[dict[str, dict[str, Any]]] = {
    "the request is lost": {"action": "drop", "when": "before"},
    "the answer is lost": {"action": "drop", "when": "after"},
    "Stripe fails": {"action": "error", "status": 500},
    "Stripe fails when it is done": {"action": "error", "status": 500, "when": "after"},
    "Stripe is busy": {"action": "error", "status": 429},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_i6_a_line_whose_answer_is_lost_is_written_once(at: Shop, fault: str) -> None:
    await ended(at)
    at.emulator.fail_next(times=3, path=ITEMS, **FAULTS[fault])
    await flushed(at)
    at.emulator.clear_faults()
    assert (await flushed(at)).left == 0
    assert (await usage_lines(at), (await words(at))["delivered"], await advices(at)) == (ONE_LINE, 26, [""])


async def test_i6_a_line_whose_note_is_lost_is_written_once(at: Shop) -> None:
    await ended(at)
    with failing("a late item is noted"):
        assert (await flushed(at)).left == 1
    at.go(timedelta(hours=25))  # Stripe has forgotten the idempotency key, and the invoice is final.
    assert (await flushed(at)).left == 0
    counts = await words(at)
    assert (await usage_lines(at), counts["delivered"], counts["late"]) == (ONE_LINE, 26, 0)


async def test_lines_of_a_period_share_what_was_read(at: Shop) -> None:
    await at.kit.record("acme", "pages", 2010)
    await ended(at)
    at.emulator.fail_next("drop", when="before", times=None, path=ITEMS)
    await flushed(at)
    at.emulator.clear_faults()
    since = len(at.emulator.requests)
    assert (await flushed(at)).lines == 2
    asked = [f"{one.method} {one.path.partition('?')[0]}" for one in at.emulator.requests[since:]]
    # Both were tried before: Stripe's items are listed.
    listed = [one for one in asked if one == f"GET {ITEMS}"]
    found = [one for one in asked if one.startswith("GET /v1/subscriptions/")]
    assert (len(listed), len(found)) == (1, 1), asked


@pytest.mark.parametrize("is_late", [False, True])
async def test_i6_two_workers_write_a_line_once(at: Shop, store_url: str, is_late: bool) -> None:
    await ended(at)
    if is_late:
        await flushed(at)
        await arrive_late(at, 5)
    at.emulator.fail_next("delay", delay_s=0.05, times=None, path=ITEMS)
    async with kit_for(store_url, at.url, clock=at.clock, catalog=CATALOG) as other:
        await asyncio.gather(*(kit.flush(everything=True, timeout_s=0) for kit in (at.kit, other)))
    at.emulator.clear_faults()
    assert (await flushed(at)).left == 0
    units = 31 if is_late else 26
    assert await usage_lines(at) == [("Words", str(units), "4", 4 * units)]
    assert ((await words(at))["delivered"], await advices(at)) == (units, [""])


async def test_i13_units_that_come_later_are_added_to_their_line(at: Shop) -> None:
    await ended(at)
    assert (await flushed(at)).lines == 1
    for units in (5, 3):
        await arrive_late(at, units)
        assert (await flushed(at)).lines == 1
    assert await usage_lines(at) == [("Words", "34", "4", 136)]
    counts = await words(at)
    assert (counts["delivered"], counts["late"], await advices(at)) == (34, 0, [""])
    at.go(timedelta(hours=2))
    assert (await renewal(at))["total"] == 2900 + 136


@pytest.mark.parametrize("fault", [*FAULTS, "the note"])
async def test_i13_units_are_added_to_their_line_once(at: Shop, fault: str) -> None:
    await ended(at)
    await flushed(at)
    await arrive_late(at, 5)
    if fault == "the note":
        with failing("a late item is noted"):
            await flushed(at)
    else:
        (item,) = [one for one in await at.stripe_list(ITEMS) if "meterkit_line" in one["metadata"]]
        at.emulator.fail_next(times=3, path=f"{ITEMS}/{item['id']}", **FAULTS[fault])
        await flushed(at)
        at.emulator.clear_faults()
    await arrive_late(at, 3)
    assert (await flushed(at)).left == 0
    assert await usage_lines(at) == [("Words", "34", "4", 136)]


async def test_i13_units_after_the_invoice_is_final_are_late(at: Shop, caplog: Caplog) -> None:
    await ended(at)
    await flushed(at)
    at.go(timedelta(hours=25))
    await arrive_late(at, 5)
    assert (await flushed(at)).left == 0
    counts = await words(at)
    assert (counts["delivered"], counts["late"]) == (26, 5)
    assert caplog.text.count("the next invoice bills 5 of words") == 1
    assert "more lines" not in caplog.text
    at.go(END + timedelta(days=31, minutes=3))
    assert await usage_lines(at) == [*ONE_LINE, ("Words", "5", "4", 20)]
    assert await advices(at) == [""]


async def test_i13_a_draft_that_a_person_finalizes_before_the_post(at: Shop) -> None:
    """The line is on the next invoice, as late, though the draft was there when it was looked for."""
    await ended(at)
    draft = await renewal(at)
    at.emulator.fail_next("delay", delay_s=0.5, path=ITEMS)
    flush = asyncio.create_task(flushed(at))
    await asyncio.sleep(0.25)
    await at.stripe_change(f"/v1/invoices/{draft['id']}/finalize")
    assert ((await flush).lines, (await words(at))["late"]) == (1, 26)
    assert await usage_lines(at) == []
    at.go(END + timedelta(days=31, minutes=3))
    assert await usage_lines(at) == ONE_LINE


async def test_i13_reconcile_names_the_line_of_a_voided_invoice(at: Shop) -> None:
    await ended(at)
    await flushed(at)
    draft = await renewal(at)
    await at.stripe_change(f"/v1/invoices/{draft['id']}/finalize", auto_advance="false")
    await at.stripe_change(f"/v1/invoices/{draft['id']}/void")
    assert (await flushed(at)).left == 0
    assert await usage_lines(at) == ONE_LINE
    assert "and is void: check who voided it" in (await advices(at))[0]


@pytest.mark.parametrize("way", ["removed", "lowered", "raised", "cheaper"])
async def test_reconcile_names_a_line_that_a_person_has_changed(at: Shop, way: str) -> None:
    await ended(at)
    await flushed(at)
    (item,) = [one for one in await at.stripe_list(ITEMS) if "meterkit_line" in one["metadata"]]
    path = f"{ITEMS}/{item['id']}"
    if way == "removed":
        await at.stripe_delete(path)
    elif way == "cheaper":
        await at.stripe_change(path, unit_amount_decimal="3")
    else:
        await at.stripe_change(path, quantity_decimal="20" if way == "lowered" else "30")
    said = {
        "removed": "0 of 26 units",
        "lowered": "20 of 26 units",
        "raised": "30 units, and 26 were billed: credit the rest",
        "cheaper": "$0.78, and their units and prices come to another amount",
    }
    assert said[way] in (await advices(at))[0]
    await arrive_late(at, 5)
    await flushed(at)
    units = {"removed": 5, "lowered": 25, "raised": 31, "cheaper": 31}[way]
    assert [int(line[1]) for line in await usage_lines(at)] == [units]


async def test_i9_stripe_is_away_until_the_invoice_is_final(at: Shop, caplog: Caplog) -> None:
    await ended(at)
    at.emulator.fail_next("drop", when="before", times=None, path="*")
    for _ in range(3):
        assert (await flushed(at)).left == 1
    at.emulator.clear_faults()
    at.go(timedelta(hours=25))
    assert (await flushed(at)).left == 0
    assert ((await words(at))["late"], caplog.text.count("late usage of customer 'acme'")) == (26, 1)
    at.go(END + timedelta(days=31, minutes=3))
    assert (await usage_lines(at), await advices(at)) == (ONE_LINE, [""])


async def test_a_flush_of_unreadable_usage_is_incomplete(at: Shop) -> None:
    """It is set aside for longer than lines are looked for, so nothing is left."""
    await ended(at)
    admin, keys = await at.kit.store.admin(), at.kit.store.keys.customer("acme")
    await admin.ask(admin.client.delete(keys.counters))
    await admin.ask(admin.client.set(keys.counters, "of another program", px=600_000))
    report = await flushed(at)
    assert ([one.customer for one in report.unsealed], report.left) == (["acme"], 0)
    assert not report.is_complete


async def test_usage_of_a_customer_deleted_at_stripe_is_late(at: Shop, caplog: Caplog) -> None:
    await ended(at)
    linked = (await at.kit.customers.get("acme")).stripe_customer
    await at.stripe_delete(f"/v1/customers/{linked}")
    report = await flushed(at)
    assert (report.left, report.lines) == (0, 0)
    assert ((await words(at))["late"], caplog.text.count("Stripe has no such customer")) == (26, 1)


async def test_another_subscriptions_invoice_has_no_line(at: Shop) -> None:
    """A customer buys another product of the account, with a subscription that meterkit does not know."""
    linked = (await at.kit.customers.get("acme")).stripe_customer
    assert linked is not None
    product = at.emulator.add_product("Support")
    price = at.emulator.add_price(700, product=product)
    by_invoice = {"collection_method": "send_invoice", "days_until_due": 30}
    other = await at.post(
        "/v1/subscriptions", {"customer": linked, "items": [{"price": price}], **by_invoice}
    )
    await ended(at)
    await flushed(at)
    assert await usage_lines(at) == ONE_LINE
    (billed,) = [
        one
        for one in await at.invoices()
        if any("meterkit_line" in line["metadata"] for line in one["lines"]["data"])
    ]
    assert billed["parent"]["subscription_details"]["subscription"] != other["id"]


@pytest.mark.parametrize("loses", ["the line", "the note"])
async def test_i11_a_restored_store_writes_no_line_again(at: Shop, loses: str) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.record("acme", "words", 10)
    await end_period(at)
    keys = at.kit.store.keys.customer("acme")
    admin = await at.kit.store.admin()
    names = (keys.counters, keys.state, keys.totals, keys.dirty, at.kit.store.keys.shard(keys.shard, "items"))
    if loses == "the note":
        with failing("a late item is noted"):
            await flushed(at)
    kept = {name: await admin.ask(admin.client.dump(name)) for name in names}
    await flushed(at)
    for name, dumped in kept.items():
        await admin.ask(admin.client.delete(name))
        if dumped is not None:
            await admin.ask(admin.client.restore(name, 0, dumped))
    assert (await flushed(at)).left == 0
    assert sorted(await usage_lines(at)) == [("Words", "10", "7", 70), *ONE_LINE]
    assert ((await words(at))["delivered"], await advices(at)) == (36, [""])


async def bob(at: Shop) -> None:
    """A customer without a subscription, whose period has ended."""
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.go(END + timedelta(minutes=3))


@pytest.mark.parametrize("fault", FAULTS)
async def test_i6_an_invoice_of_its_own_is_made_once(at: Shop, fault: str) -> None:
    await bob(at)
    at.emulator.fail_next(skip=1, times=3, path="/v1/invoices", **FAULTS[fault])
    await flushed(at)
    at.emulator.clear_faults()
    assert (await flushed(at)).left == 0
    assert await usage_lines(at) == ONE_LINE
    assert len([one for one in await at.invoices() if one["customer"] == "cus_bob"]) == 1


async def test_a_deleted_invoice_of_its_own_is_made_again(at: Shop) -> None:
    await bob(at)
    at.emulator.fail_next("drop", when="before", times=3, path=ITEMS)
    await flushed(at)
    at.emulator.clear_faults()
    (own,) = [one for one in await at.invoices() if one["customer"] == "cus_bob"]
    await at.stripe_delete(f"/v1/invoices/{own['id']}")
    assert (await flushed(at)).left == 0
    assert (await usage_lines(at), (await words(at, "bob"))["delivered"]) == (ONE_LINE, 26)


async def test_later_units_without_a_subscription_are_late(at: Shop) -> None:
    """Each time on an invoice of its own: within a day Stripe repeats its response to the same key."""
    await bob(at)
    await flushed(at)
    for units in (5, 3, 2):
        at.go(timedelta(hours=2))
        await arrive_late(at, units, "bob")
        assert (await flushed(at)).left == 0
    later = [("Words", f"{units}", "4", 4 * units) for units in (5, 3, 2)]
    assert await usage_lines(at) == [*ONE_LINE, *later]
    counts = await words(at, "bob")
    assert (counts["delivered"], counts["late"]) == (26, 10)


async def test_usage_of_a_trial_has_no_line(store_url: str) -> None:
    plans = plans_text("invoice_lines").replace("  pro:\n", "  pro:\n    trial: 14d\n")
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        linked = (await at.kit.customers.get("acme")).stripe_customer
        assert linked is not None
        at.emulator.add_payment_method(linked)
        await at.kit.record("acme", "words", 126)
        at.go(timedelta(days=14, minutes=3))
        await at.kit.subscriptions.sync("acme")
        assert ((await flushed(at)).left, await usage_lines(at)) == (0, [])
        await at.kit.record("acme", "words", 101)
        at.go(timedelta(days=30))
        await at.kit.subscriptions.sync("acme")
        await flushed(at)
        assert await usage_lines(at) == [("Words", "1", "4", 4)]


async def test_i13_usage_before_another_subscription_is_billed(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.subscribed(plan="team")
    await at.kit.record("acme", "words", 110)
    at.go(timedelta(minutes=15))
    await flushed(at)
    assert await usage_lines(at) == ONE_LINE
    at.go(HALF + timedelta(days=30, minutes=3))
    await at.kit.subscriptions.sync("acme")
    await flushed(at)
    assert await usage_lines(at) == [*ONE_LINE, ("Words", "10", "7", 70)]


async def test_usage_keeps_the_currency_of_its_subscription(store_url: str, caplog: Caplog) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await ended(at)
        in_euros = loads(plans_text("invoice_lines").replace("currency: usd", "currency: eur"))
        at.kit.store.use(in_euros)
        await flushed(at)
        assert await usage_lines(at) == ONE_LINE
        assert (await words(at))["late"] == 0
        assert "its price is in" not in caplog.text


@pytest.mark.parametrize("behavior", ["void", "mark_uncollectible", "keep_as_draft"])
async def test_usage_of_a_pause_is_not_paid(at: Shop, behavior: str, caplog: Caplog) -> None:
    await at.kit.record("acme", "words", 126)
    (found,) = await at.stripe_list("/v1/subscriptions")
    at.clock.set(HALF)
    await at.stripe_change(f"/v1/subscriptions/{found['id']}", **{"pause_collection[behavior]": behavior})
    await at.kit.subscriptions.sync("acme")
    await at.kit.record("acme", "words", 10)
    await end_period(at)
    await flushed(at)
    at.go(timedelta(hours=2))
    await flushed(at)
    at.go(END + timedelta(days=31, minutes=3))
    paid = sum(one["amount_paid"] for one in await at.invoices())
    assert paid == 2900
    counts, lines = await words(at), await usage_lines(at)
    said = "the invoice of its period is void or not to be collected"
    if behavior == "keep_as_draft":
        assert (lines, counts["delivered"]) == ([("Words", "36", "4", 144)], 36)
    else:
        assert (lines, counts["late"] + counts["delivered"]) == ([], 36)
        assert caplog.text.count(said) == (behavior == "mark_uncollectible")
