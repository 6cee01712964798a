"""I13: invoice items bill late usage at its price; they are listed, counted, steered and corrected."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.delivery import Caplog, deliver, kit_for, said_late
from drivers.health_findings import findings, looked_at
from drivers.operator_pages import JSON, pages_of
from drivers.priced_shop import SWITCHED as CATALOG
from drivers.priced_shop import SWITCHED_DEAD_LETTER as DEAD_LETTER
from drivers.priced_shop import SWITCHED_PLANS as PLANS
from drivers.priced_shop import (
    PriceScheme,
    PricingTier,
    begin,
    item_lines,
    metered_lines,
    renewed,
    sell,
    switch,
)
from drivers.shop import END, HALF, Shop, shop
from faults.inner_steps import failing
from meterkit import Corrected, MeterUsage, QueuedItem, Reconciled
from meterkit.catalog import loads
from meterkit.errors import CustomerError, MeterkitError
from meterkit.testing import StripeEmulator
from servers.stores import Server

pytestmark = pytest.mark.anyio

ITEMS: Final = "/v1/invoiceitems"
UNHELD: Final = loads(PLANS + "billing: {hold_invoice: 0}\n")


@asynccontextmanager
async def begun(
    store_url: str, plan: str = "four", *, selling: Any = sell, **more: Any
) -> AsyncGenerator[Shop]:
    """A shop with a subscriber in mid-period, whose included words are used up."""
    async with shop(store_url, selling=selling, **more) as opened:
        await begin(opened, plan)
        yield opened


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with begun(store_url, catalog=CATALOG) as opened:
        yield opened


async def switch_and_sync(at: Shop, plan: str) -> None:
    await switch(at, plan)
    await at.kit.subscriptions.sync("acme")


async def use_before_a_switch(at: Shop) -> None:
    """Record 26 words at $0.04, and switch to a plan with words at $0.07."""
    await at.kit.record("acme", "words", 26)
    await switch_and_sync(at, "seven")


def sell_exactly(emulator: Any, catalog: Any) -> None:
    """Sell the plans; a price of many units is exact by the unit."""
    sell(emulator, catalog)
    price = emulator._account.prices.find("price_third_words")
    price.pricing = type(price.pricing)(unit_amount=price.pricing.unit_amount / 1_000)


@pytest.mark.parametrize(
    ("before", "after", "cents"), [("seven", "four", 7), ("third", "two", 0.015), ("four", "none", 4)]
)
async def test_i13_pending_units_keep_their_price_on_another_plan(
    store_url: str, before: str, after: str, cents: float
) -> None:
    async with begun(store_url, before, catalog=CATALOG, selling=sell_exactly) as at:
        await at.kit.record("acme", "words", 1_000)
        await switch_and_sync(at, after)
        await deliver(at.kit, everything=True)
        assert (await words(at))["overage_cents"] in {1_000 * cents, None if after == "none" else 0}
        await renewed(at)
        assert await items_of(at) == [(1_000, 1_000 * cents)]
        assert (await metered_lines(at), (await compared(at)).advice) == ([], "")


async def words(at: Shop) -> MeterUsage:
    """The counts of the first period."""
    return (await at.kit.usage("acme", period=HALF))["meters"]["words"]


async def items_of(at: Shop) -> list[tuple[int, int]]:
    """Units and cents of the invoice items on invoices."""
    return [(units, cents) for _, units, cents in await item_lines(at)]


async def waiting(at: Shop) -> list[dict[str, Any]]:
    """Invoice items of late usage at Stripe that no invoice has yet."""
    found = await at.stripe_list(ITEMS, pending="true")
    return [item for item in found if "meterkit_late_item" in item["metadata"]]


async def compared(at: Shop) -> Reconciled:
    (found,) = await at.kit.reconcile("acme", at=HALF)
    return found


async def charged(at: Shop) -> int:
    """Cents for usage on all invoices."""
    lines = [units * cents for _, units, cents in await metered_lines(at)]
    return sum(lines) + sum(cents for _, cents in await items_of(at))


async def next_renewal(at: Shop) -> None:
    """A month after the first period its successor is invoiced, too."""
    at.go(END + timedelta(days=31))
    at.go(timedelta(hours=2))


async def use_before_the_end(at: Shop) -> None:
    """Record 26 words two minutes before the end of the first period."""
    await deliver(at.kit, everything=True)
    at.clock.set(END - timedelta(minutes=2))
    await at.kit.record("acme", "words", 26)


async def test_i13_pending_units_keep_their_price_on_a_dearer_plan(at: Shop) -> None:
    """F-226."""
    await use_before_a_switch(at)
    await at.kit.record("acme", "words", 5)
    assert (await words(at))["overage_cents"] == 26 * 4 + 5 * 7
    report = await deliver(at.kit, everything=True)
    assert (report.items, report.left) == (1, 0)
    counts = await words(at)
    assert (counts["late"], counts["delivered"], counts["recorded"], counts["overage"]) == (26, 5, 41, 31)
    assert counts["overage_cents"] == 26 * 4 + 5 * 7
    await renewed(at)
    assert await item_lines(at) == [("Words, 26 units of 1\N{EN DASH}16 Jun 2031", 26, 104)]
    assert await metered_lines(at) == [("price_seven_words", 5, 7)]
    found = await compared(at)
    assert (found.late, found.by_item, found.invoiced, found.mispriced, found.advice) == (26, 26, 5, 0, "")
    first, second = [one for one in await at.kit.customers.history("acme") if one.kind == "late"]
    assert first.before == "26 of words at $0.04 each, of the period from 2031-06-01 00:00 UTC"
    assert first.after == "billed by an invoice item"
    assert "billed by the invoice item ii_" in str(second.after)


async def test_f_30m_a_closed_period_costs_what_the_open_one_did(at: Shop) -> None:
    await use_before_a_switch(at)
    await at.kit.record("acme", "words", 5)
    await renewed(at)
    await at.kit.subscriptions.sync("acme")
    counts = await words(at)
    assert (counts["late"], counts["overage_cents"]) == (26, 26 * 4 + 5 * 7)
    assert (await at.kit.usage("acme", period=HALF - timedelta(days=90)))["meters"]["words"]["used"] == 0


@pytest.mark.parametrize("is_billed", [True, False])
async def test_f_227_a_flush_reports_late_usage_its_own_sync_finds(
    store_url: str, is_billed: bool, caplog: Caplog
) -> None:
    catalog = CATALOG if is_billed else DEAD_LETTER
    async with begun(store_url, catalog=catalog) as at:
        await deliver(at.kit, everything=True)
        await at.kit.record("acme", "words", 26)
        await switch(at, "seven")
        at.clock.advance(timedelta(minutes=10))
        (late,) = (await deliver(at.kit)).late
        assert (late.customer, late.meter, late.quantity) == ("acme", "words", 26)
        assert (late.is_billed, late.by_item) == (is_billed, is_billed)
        start = (await at.kit.usage("acme"))["period"]["start"]
        assert late.period == start.isoformat().replace("+00:00", "Z")
        (line,) = [one for one in caplog.records if "26 units of words" in one.getMessage()]
        assert hasattr(line, "is_reported")
        assert (await deliver(at.kit, everything=True)).late == []


async def test_i13_an_item_has_the_product_and_the_period_of_its_usage(at: Shop) -> None:
    await use_before_a_switch(at)
    await deliver(at.kit, everything=True)
    (item,) = await waiting(at)
    (subscription,) = await at.stripe_list("/v1/subscriptions")
    assert item["pricing"]["price_details"]["product"] == "prod_four"
    assert (item["quantity_decimal"], item["pricing"]["unit_amount_decimal"]) == ("26", "4")
    assert item["period"]["start"] == subscription["items"]["data"][0]["current_period_start"]
    assert item["period"]["end"] == int(at.clock())
    assert item["parent"]["subscription_details"]["subscription"] == subscription["id"]


async def test_i13_each_switch_in_a_period_has_its_own_items(at: Shop) -> None:
    for nth, plan in enumerate(("seven", "four", "seven", "two"), start=1):
        await at.kit.record("acme", "words", 10 * nth)
        at.clock.advance(timedelta(minutes=3))
        await switch_and_sync(at, plan)
        if nth % 2:
            await deliver(at.kit, everything=True)
    await at.kit.record("acme", "words", 1)
    shown = (await words(at))["overage_cents"]
    assert shown == (10 + 30) * 4 + (20 + 40) * 7 + 2
    await renewed(at)
    assert sorted(await items_of(at)) == [(10, 40), (20, 140), (30, 120), (40, 280)]
    assert (await charged(at), (await compared(at)).advice) == (shown, "")


@pytest.mark.parametrize("lost", ["the note", "before", "after"])
async def test_i13_an_item_whose_reply_or_note_is_lost_is_made_once(at: Shop, lost: Any) -> None:
    await use_before_a_switch(at)
    if lost == "the note":
        with failing("a late item is noted"):
            assert (await deliver(at.kit)).items == 0
        assert len(await waiting(at)) == 1
        at.clock.advance(timedelta(hours=25))  # Stripe has forgotten the idempotency key.
    else:
        at.emulator.fail_next("drop", when=lost, skip=1, times=3, path=ITEMS)
        await deliver(at.kit)
        at.emulator.clear_faults()
        at.clock.advance(timedelta(minutes=2))
    await renewed(at)
    assert (await items_of(at), (await words(at))["late"]) == ([(26, 104)], 26)


async def test_items_and_closes_wait_while_stripe_fails(at: Shop, caplog: Caplog) -> None:
    await use_before_a_switch(at)
    at.emulator.fail_next("error", status=503, times=None, path=ITEMS)
    report = await deliver(at.kit, everything=True, timeout_s=0)
    assert (report.items, report.left, report.is_complete) == (0, 1, False)
    assert "invoice items for late usage are made later" in caplog.text
    at.emulator.clear_faults()
    assert "26 late units wait for their invoice item" in (await compared(at)).advice
    at.clock.advance(timedelta(minutes=2))
    assert (await deliver(at.kit)).is_complete
    await renewed(at)
    assert await items_of(at) == [(26, 104)]


async def test_i13_two_workers_make_an_item_once(at: Shop, store_url: str) -> None:
    await use_before_a_switch(at)
    at.emulator.fail_next("delay", delay_s=0.05, times=None, path=ITEMS)
    async with kit_for(store_url, at.url, clock=at.clock, catalog=CATALOG) as other:
        await asyncio.gather(*(kit.flush(everything=True, timeout_s=0) for kit in (at.kit, other)))
    at.emulator.clear_faults()
    await renewed(at)
    assert (await items_of(at), (await words(at))["late"]) == ([(26, 104)], 26)


async def test_i13_an_item_is_in_the_currency_of_its_customer(store_url: str) -> None:
    text = re.sub(r"amount_cents: (\d+)", r"amount_cents: {usd: \1, eur: \g<1>0}", PLANS)
    text = text.replace("currency: usd", "currency: [usd, eur]") + "billing: {hold_invoice: 0}\n"
    async with shop(store_url, catalog=loads(text), selling=StripeEmulator.add_plans) as at:
        made = await at.kit.subscriptions.create("acme", "two", currency="eur")
        at.emulator.confirm_payment(made.client_secret or "")
        await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "words", 10)
        await at.kit.subscriptions.change_plan("acme", "seven")
        await use_before_the_end(at)
        at.go(END + timedelta(hours=2))
        await at.kit.subscriptions.sync("acme")
        await deliver(at.kit, everything=True)
        (item,) = await waiting(at)
        assert (item["currency"], item["amount"]) == ("eur", 26 * 20)


async def test_i13_late_usage_that_is_not_to_be_billed_has_no_item(store_url: str) -> None:
    async with begun(store_url, catalog=DEAD_LETTER) as at:
        await use_before_a_switch(at)
        assert (await deliver(at.kit, everything=True)).items == 0
        await renewed(at)
        assert (await items_of(at), await metered_lines(at), (await words(at))["late"]) == ([], [], 26)


async def test_a_deleted_item_is_named_by_reconcile_and_not_made_again(at: Shop) -> None:
    await use_before_a_switch(at)
    await deliver(at.kit, everything=True)
    (item,) = await waiting(at)
    await at.stripe_delete(f"{ITEMS}/{item['id']}")
    await deliver(at.kit, everything=True)
    assert await waiting(at) == []
    assert "have 0 of 26 late units: one was deleted there" in (await compared(at)).advice


async def test_an_item_on_a_voided_invoice_is_named_by_reconcile(at: Shop) -> None:
    await use_before_a_switch(at)
    await deliver(at.kit, everything=True)
    await at.fail_payments()
    await renewed(at)
    assert (await compared(at)).advice == ""
    (item,) = [one for one in await at.stripe_list(ITEMS) if "meterkit_late_item" in one["metadata"]]
    await at.stripe_change(f"/v1/invoices/{item['invoice']}/void")
    assert f"26 late units are on {item['invoice']}, which is void" in (await compared(at)).advice


@pytest.mark.parametrize(("more", "items"), [(0, [(26, 104)]), (10, [(10, 40), (26, 104)])])
async def test_i13_a_forgotten_item_is_not_billed_again(
    at: Shop, more: int, items: list[tuple[int, int]]
) -> None:
    await at.kit.record("acme", "words", 26)
    await switch(at, "seven")
    keys = at.kit.store.keys.customer("acme")
    admin = await at.kit.store.admin()
    names = (keys.counters, keys.state, keys.totals, keys.dirty)
    kept = {name: await admin.ask(admin.client.dump(name)) for name in names}
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    for name, dumped in kept.items():  # A backup of before the look is restored.
        await admin.ask(admin.client.delete(name))
        if dumped is not None:
            await admin.ask(admin.client.restore(name, 0, dumped))
    if more:
        await at.kit.record("acme", "words", more)
    await at.kit.subscriptions.sync("acme")
    at.clock.advance(timedelta(minutes=2))
    await renewed(at)
    assert sorted(await items_of(at)) == items


async def test_i13_late_units_of_a_closed_period_keep_its_price(store_url: str) -> None:
    async with begun(store_url, catalog=UNHELD) as at:
        await use_before_the_end(at)
        at.go(END + timedelta(minutes=2))
        await at.kit.record("acme", "words", 1)
        at.go(END + timedelta(hours=2))
        await switch(at, "seven")
        (late,) = (await deliver(at.kit, everything=True)).late  # It looks at the subscription first.
        assert (late.quantity, late.is_billed, late.by_item) == (26, True, True)
        await at.kit.record("acme", "words", 14)
        await deliver(at.kit, everything=True)
        assert (await at.kit.usage("acme"))["meters"]["words"]["overage"] == 5
        await next_renewal(at)
        assert (await items_of(at), await metered_lines(at)) == ([(26, 104)], [("price_seven_words", 5, 7)])
        described = [str(one["description"]) for one in await at.stripe_list("/v1/invoiceitems")]
        assert "Words, 26 units of 1\N{EN DASH}30 Jun 2031" in described
        found = await compared(at)
        assert (found.late, found.by_item, found.advice) == (26, 26, "")
        later = await at.kit.reconcile("acme", at=END + timedelta(days=3))
        assert [(one.delivered, one.advice) for one in later] == [(5, "")]


async def test_i13_late_units_at_the_same_price_are_sent_as_events(store_url: str) -> None:
    async with begun(store_url, catalog=UNHELD) as at:
        await use_before_the_end(at)
        at.go(END + timedelta(hours=2))
        report = await deliver(at.kit, everything=True)
        assert [(one.quantity, one.by_item) for one in report.late] == [(26, False)]
        assert (report.items, (await at.kit.usage("acme"))["meters"]["words"]["delivered"]) == (0, 26)


@pytest.mark.parametrize(
    ("to", "items", "lines"),
    [("", [], [("price_four_words", 26, 4)]), ("seven", [(26, 104)], []), ("two", [(26, 104)], [])],
)
async def test_i13_late_units_of_a_renamed_meter_are_billed(
    store_url: str, to: str, items: list[tuple[int, int]], lines: list[tuple[str, int, int]]
) -> None:
    """Also where others have changed the price since."""
    renamed = loads(PLANS.replace("words:", "terms:"))
    async with begun(store_url, catalog=UNHELD) as at:
        await use_before_the_end(at)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=renamed) as kit:
            at.go(END + timedelta(hours=2))
            if to:
                await switch(at, to)
            (late,) = (await deliver(kit, everything=True)).late
            assert (late.meter, late.quantity, late.is_billed) == ("words", 26, True)
            await next_renewal(at)
            assert (await items_of(at), await metered_lines(at)) == (items, lines)


async def test_i13_late_units_keep_their_price_after_a_downgrade(store_url: str, caplog: Caplog) -> None:
    async with begun(store_url, "two", catalog=UNHELD) as at:
        await at.kit.subscriptions.change_plan("acme", "seven")
        await use_before_the_end(at)
        at.go(END + timedelta(hours=2))
        await at.kit.subscriptions.sync("acme")
        # The sync has found the final invoice, and said what is late; the flush does not say it again.
        said = "26 of words: an invoice item bills it at the price at which it was recorded"
        assert said_late(caplog) == [said]
        assert ((await at.kit.usage("acme"))["plan"], (await words(at))["late"]) == ("seven", 26)
        await at.kit.record("acme", "words", 15)
        report = await deliver(at.kit, everything=True)
        assert (report.late, report.items, len(said_late(caplog))) == ([], 1, 1)
        await next_renewal(at)
        assert (await items_of(at), await metered_lines(at)) == ([(26, 52)], [("price_seven_words", 5, 7)])


async def test_i13_an_item_is_made_before_a_subscription_is_canceled(at: Shop) -> None:
    await use_before_a_switch(at)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    at.go(timedelta(hours=2))
    assert await items_of(at) == [(26, 104)]


async def test_a_customer_with_an_item_that_waits_is_not_deleted(at: Shop) -> None:
    await use_before_a_switch(at)
    (begun,) = await at.stripe_list("/v1/subscriptions")
    await at.stripe_delete(f"/v1/subscriptions/{begun['id']}")
    await at.kit.subscriptions.sync("acme")
    with pytest.raises(CustomerError, match="not delivered yet"):
        await at.kit.customers.delete("acme")
    await deliver(at.kit, everything=True)
    assert (await at.kit.customers.delete("acme")).state == 1


TIERS: Final = loads(PLANS.replace("translated_words}", "translated_words, report: usage}"))


@pytest.mark.parametrize("kind", ["usage", "packages", "tiers"])
async def test_i13_units_without_one_price_are_not_billed(store_url: str, kind: str, caplog: Caplog) -> None:
    """In doubt less is billed, and the log says so."""
    catalog = TIERS if kind == "usage" else CATALOG

    def sell_oddly(emulator: Any, of: Any) -> None:
        sell(emulator, of)
        price = emulator._account.prices.find("price_four_words")
        if kind == "packages":
            price.pricing = PriceScheme(unit_amount=price.pricing.unit_amount, divide_by=10, round_up=True)
        elif kind == "tiers":
            tiers = (
                PricingTier(up_to=100, unit_amount=Decimal(4)),
                PricingTier(up_to=None, unit_amount=Decimal(3)),
            )
            price.pricing = PriceScheme(tiers=tiers, tiers_mode="graduated")

    async with begun(store_url, catalog=catalog, selling=sell_oddly) as at:
        await deliver(at.kit, everything=True)
        at.clock.advance(timedelta(minutes=5))
        await use_before_a_switch(at)
        assert "no invoice bills them" in caplog.text
        assert (await deliver(at.kit, everything=True)).items == 0
        await renewed(at)
        assert (await items_of(at), (await words(at))["late"]) == ([], 26)
        assert [line for line in await metered_lines(at) if line[0] == "price_seven_words"] == []


TRIAL: Final = loads(PLANS.replace("  four:\n    rank: 1\n", "  four:\n    rank: 1\n    trial: 14d\n"))


@pytest.mark.parametrize("ends", [True, False])
async def test_i13_usage_of_a_trial_costs_nothing_after_a_switch(store_url: str, ends: bool) -> None:
    async with shop(store_url, catalog=TRIAL, selling=sell) as at:
        await at.subscribed(plan="four")
        at.clock.advance(timedelta(days=2))
        await at.kit.record("acme", "words", 36)
        (begun,) = await at.stripe_list("/v1/subscriptions")
        await switch(at, "seven")
        if ends:
            await at.stripe_change(f"/v1/subscriptions/{begun['id']}", trial_end="now")
        await at.kit.subscriptions.sync("acme")
        assert (await deliver(at.kit, everything=True)).items == 0
        for span in (timedelta(days=14), timedelta(hours=2), timedelta(days=32), timedelta(hours=2)):
            at.go(span)
        assert (await items_of(at), await metered_lines(at)) == ([], [])


async def test_i13_the_apps_own_change_finds_a_switch_before_it(at: Shop) -> None:
    await at.kit.record("acme", "words", 26)
    await switch(at, "seven")
    await at.kit.subscriptions.change_plan("acme", "two")
    await at.kit.record("acme", "words", 3)
    await renewed(at)
    assert (await items_of(at), await metered_lines(at)) == ([(26, 104)], [("price_two_words", 3, 2)])


async def test_i13_a_statement_explains_the_item_of_late_usage(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with begun(store_url, catalog=CATALOG, audit_url=url) as at:
        await use_before_a_switch(at)
        await at.kit.record("acme", "words", 5)
        await renewed(at)
        await drain_all(at.kit, url)
        found = await at.kit.statement("acme", period=HALF)
        usage = [line for line in found.lines if line.kind == "usage" and line.quantity]
        (item,) = [line for line in usage if line.late_since is not None]
        (line,) = [line for line in usage if line.late_since is None]
        assert (item.quantity, item.amount_cents, item.counted) == (26, 104, 26)
        assert (line.quantity, line.amount_cents, line.counted) == (5, 35, 31)
        assert line.note == f"26 of its units are on {item.id}"
        assert item.note == "late usage of the period from 2031-06-01, at the price it was recorded at"
        assert "difference" not in {line.kind for line in found.lines}


@pytest.fixture
async def sold(valkey: Server) -> AsyncGenerator[Shop]:
    """A shop with 26 words at 4 cents that an invoice item is to bill, and 5 at 7 cents."""
    async with begun(valkey.url, catalog=CATALOG) as opened:
        await deliver(opened.kit, everything=True)
        await opened.kit.record("acme", "words", 26)
        await switch_and_sync(opened, "seven")
        await opened.kit.record("acme", "words", 5)
        yield opened


async def queued(sold: Shop) -> QueuedItem:
    """The one item that waits."""
    (item,) = await sold.kit.outbox.items.list()
    return item


async def correct(sold: Shop, units: int, correction_id: str, **how: Any) -> Corrected:
    """Take words back."""
    (found,) = await sold.kit.correct(
        "acme", {"words": units}, reason="a bug", correction_id=correction_id, **how
    )
    return found


async def test_a_queued_item_is_listed_with_its_amount_and_its_invoice(sold: Shop) -> None:
    item, (sub,) = await queued(sold), await sold.stripe_list("/v1/subscriptions")
    assert (item.customer, item.meter, item.quantity) == ("acme", "words", 26)
    assert (item.cents, item.currency, item.subscription) == (104, "usd", sub["id"])
    assert item.period_start == (await sold.kit.usage("acme"))["period"]["start"]
    sold.clock.advance(timedelta(hours=2))
    assert ((await queued(sold)).age_s, await sold.kit.outbox.items.list(customer="another")) == (7200, [])
    await deliver(sold.kit, everything=True)
    assert await sold.kit.outbox.items.list() == []


async def test_a_queued_item_is_counted_by_health_metrics_and_pages(sold: Shop) -> None:
    assert await looked_at(sold.kit, "items") == ("1 wait", [])
    sold.clock.advance(timedelta(minutes=61))
    (finding,) = await findings(sold.kit, "items")
    assert "1 invoice item for late usage waits for more than an hour" in finding.problem
    assert "26 of words at $0.04 each of customer acme" in finding.problem
    async with pages_of(sold.kit) as client:
        assert (await client.get("/", headers=JSON)).json()["outbox"]["invoice_items"] == 1
        (row,) = (await client.get("/outbox.json")).json()
        assert row["why"] == "invoice item of $1.04 for late usage"


async def test_a_dropped_item_is_late_and_on_no_invoice(sold: Shop) -> None:
    item = await queued(sold)
    with pytest.raises(MeterkitError, match="reason: found none"):
        await sold.kit.outbox.items.drop(item.identifier, reason="")
    assert await sold.kit.outbox.items.drop(item.identifier, reason="a test", by="olga") == item
    with pytest.raises(MeterkitError, match="no queued invoice item has this identifier"):
        await sold.kit.outbox.items.drop(item.identifier, reason="a test")
    entry = (await sold.kit.customers.history("acme"))[-1]
    assert (entry.kind, entry.after, entry.cause) == ("late", "dropped: a test", "olga")
    assert (await sold.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 35
    await renewed(sold)
    assert (await item_lines(sold), await metered_lines(sold)) == ([], [("price_seven_words", 5, 7)])
    usage = (await sold.kit.usage("acme", period=HALF))["meters"]["words"]
    assert (usage["late"], [one.advice for one in await sold.kit.reconcile("acme", at=HALF)]) == (26, [""])


async def test_an_item_made_despite_a_drop_is_named(sold: Shop) -> None:
    item = await queued(sold)
    with failing("a late item is noted"):
        assert (await deliver(sold.kit)).items == 0
    await sold.kit.outbox.items.drop(item.identifier, reason="a test")
    (found,) = await sold.kit.reconcile("acme", at=HALF)
    assert "invoice items at Stripe have 26 late units, and 0 were billed" in found.advice


@pytest.mark.parametrize(
    "damaged", ["{", "[]", '{"id": "1"}', "\udcff"], ids=["text", "list", "part", "bytes"]
)
async def test_an_unreadable_item_hinders_no_other(at: Shop, damaged: str) -> None:
    await use_before_a_switch(at)
    keys, admin = at.kit.store.keys, await at.kit.store.admin()
    items = keys.shard(keys.customer("acme").shard, "items")
    await admin.client.zadd(items, {damaged.encode("utf-8", "surrogateescape"): 0})
    assert [item.quantity for item in await at.kit.outbox.items.list()] == [26]
    await deliver(at.kit, everything=True)
    assert await at.kit.outbox.items.list() == []
    await next_renewal(at)
    assert await items_of(at) == [(26, 104)]


async def test_a_redriven_item_is_made_by_the_next_flush(sold: Shop) -> None:
    sold.emulator.fail_next("error", status=503, times=None, path="/v1/invoiceitems")
    await deliver(sold.kit, timeout_s=0)
    sold.emulator.clear_faults()
    assert (await deliver(sold.kit)).items == 0
    item = await queued(sold)
    assert (await sold.kit.outbox.items.redrive(item.identifier)).due_at < item.due_at
    assert (await deliver(sold.kit)).items == 1


@pytest.mark.parametrize("when", ["queued", "final"])
async def test_a_correction_credits_late_items_to_the_cent(sold: Shop, when: str) -> None:
    if when != "queued":
        await deliver(sold.kit, everything=True)
    if when == "final":
        await renewed(sold)
    found = await correct(sold, 20, "t1", credit=True)
    assert (found.never_billed, found.beyond, found.by_hand_lines[-1].units) == (0, 0, 15)
    assert found.by_hand_lines[-1].cents == 60
    if when != "final":
        assert (found.taken_back, found.by_hand, found.by_hand_lines[0].invoice) == (5, 15, None)
        assert "no invoice has them yet: correct again with the same id" in found.not_credited
        await renewed(sold)
        found = await correct(sold, 20, "t1", credit=True)
    assert (sum(note.cents for note in found.credits), found.not_credited) == (
        60 + 35 * (when == "final"),
        "",
    )
    rest = await correct(sold, 30, "t2", credit=True)
    assert (sum(note.cents for note in rest.credits), rest.beyond) == (11 * 4, 19)
    charged = [cents for _, _, cents in await item_lines(sold)]
    charged += [units * cents for _, units, cents in await metered_lines(sold)]
    credited = [note["amount"] for note in await sold.stripe_list("/v1/credit_notes")]
    assert sum(charged) == sum(credited)


async def test_a_correction_skips_an_item_deleted_at_stripe(sold: Shop) -> None:
    await deliver(sold.kit, everything=True)
    (item,) = [one for one in await sold.stripe_list("/v1/invoiceitems") if one["metadata"]]
    await sold.stripe_delete(f"/v1/invoiceitems/{item['id']}")
    found = await correct(sold, 31, "t1")
    assert (found.taken_back, found.by_hand, found.never_billed) == (5, 0, 26)
