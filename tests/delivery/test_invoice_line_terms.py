"""Usage lines (`billing: {usage: lines}`): dropped as late, taxed, of former links, after a restore."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from drivers.audited_kit import sqlite_in
from drivers.delivery import Caplog, deliver
from drivers.plans import plans_text
from drivers.restorable_kit import drained, recover
from drivers.shop import END, HALF, START, Shop, sell_nothing, shop
from drivers.usage_lines import CATALOG, arrive_late, end_period, ended, shop_of_lines, usage_lines
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

PLANS = plans_text("invoice_lines")
DEAD_LETTER = loads(PLANS.replace("usage: lines", "usage: lines, late_usage: dead_letter"))


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop_of_lines(store_url) as opened:
        yield opened


async def without_subscription(at: Shop) -> None:
    """Have bob be billed without a subscription, for 26 words of the period that has ended."""
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.kit.customers.set_plan("bob", "pro")
    await at.kit.record("bob", "words", 126)
    at.go(END + timedelta(seconds=3))


async def fates(at: Shop, customer: str = "acme") -> tuple[int, int, int]:
    """Words of the first period that are queued, on an invoice, and late."""
    words = (await at.kit.usage(customer, period=START))["meters"]["words"]
    return words["queued"], words["delivered"], words["late"]


async def test_a_dead_letter_is_on_no_invoice(at: Shop) -> None:
    at.kit.store.use(DEAD_LETTER)
    await at.kit.record("acme", "words", 126)
    at.go(END + timedelta(minutes=3))
    at.go(timedelta(hours=3))
    await at.kit.subscriptions.sync("acme")
    report = await deliver(at.kit, everything=True)
    (late,) = report.late
    assert (late.quantity, late.is_billed, report.lines) == (26, False, 0)
    assert (await deliver(at.kit, everything=True)).late == []
    at.go(END + timedelta(days=31, minutes=3))
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    assert (await usage_lines(at), await fates(at)) == ([], (0, 0, 26))
    entries = [entry for entry in await at.kit.customers.history("acme") if entry.kind == "late"]
    assert [str(entry.after)[:40] for entry in entries] == ["not billed: the invoice of its period is"]
    assert [one.advice for one in await at.kit.reconcile("acme", at=HALF)] == [""]


async def test_a_line_that_a_dead_letter_follows_stays(at: Shop) -> None:
    at.kit.store.use(DEAD_LETTER)
    await ended(at)
    assert (await deliver(at.kit, everything=True)).lines == 1
    at.go(timedelta(hours=3))
    await arrive_late(at, 5)
    await deliver(at.kit, everything=True)
    assert (await usage_lines(at), await fates(at)) == ([("Words", "26", "4", 104)], (0, 26, 5))


async def test_a_dead_letter_gets_no_invoice_of_its_own(at: Shop) -> None:
    at.kit.store.use(DEAD_LETTER)
    await without_subscription(at)
    await deliver(at.kit, everything=True)
    before = [one["id"] for one in await at.invoices()]
    at.go(timedelta(hours=3))
    await arrive_late(at, 5, "bob")
    await deliver(at.kit, everything=True)
    assert [one["id"] for one in await at.invoices()] == before
    assert await fates(at, "bob") == (0, 26, 5)


async def test_a_month_without_a_renewal_is_no_dead_letter(store_url: str) -> None:
    """The eleventh month of a yearly plan: the renewal is near, but this usage is not late."""
    price, yearly = "amount_cents: 2900, interval: month", "amount_cents: 2900, interval: year"
    text = PLANS.replace(price, f"{yearly}, included_per: month")
    catalog = loads(text.replace("usage: lines", "usage: lines, late_usage: dead_letter"))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.set(START + timedelta(days=320))
        await at.kit.record("acme", "words", 126)
        at.go(START + timedelta(days=335, minutes=3))
        report = await deliver(at.kit, everything=True)
        assert (await usage_lines(at), report.late) == ([("Words", "26", "4", 104)], [])


async def test_a_dead_letter_after_the_last_invoice_gets_none(at: Shop) -> None:
    at.kit.store.use(DEAD_LETTER)
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    await at.kit.subscriptions.sync("acme")
    await deliver(at.kit, everything=True)
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    at.go(timedelta(hours=2))
    before = [one["id"] for one in await at.invoices()]
    await arrive_late(at, 5)
    await deliver(at.kit, everything=True)
    assert [one["id"] for one in await at.invoices()] == before
    assert await fates(at) == (0, 26, 5)


async def test_late_lines_are_reported_once(at: Shop, caplog: Caplog) -> None:
    await at.kit.record("acme", {"words": 126, "pages": 1_010})
    at.go(END + timedelta(minutes=3))
    at.go(timedelta(hours=3))
    await at.kit.subscriptions.sync("acme")
    report = await deliver(at.kit, everything=True)
    assert sorted((one.quantity, one.is_billed) for one in report.late) == [(26, True), (1_000, True)]
    assert (await deliver(at.kit, everything=True)).late == []
    (error,) = [one for one in caplog.records if "'acme'" in one.getMessage()]
    assert error.levelname == "ERROR"
    for units in ("26 of words", "1000 of pages"):
        assert units in error.getMessage()


async def test_an_invoice_without_a_subscription_is_taxed_as_checkout(at: Shop) -> None:
    taxed = PLANS.replace("usage: lines", "usage: lines, checkout: {automatic_tax: {enabled: true}}")
    at.kit.store.use(loads(taxed))
    at.emulator.tax_percent = Decimal(20)
    await without_subscription(at)
    await at.stripe_change("/v1/customers/cus_bob", **{"address[country]": "DE"})
    await deliver(at.kit, everything=True)
    assert (await at.invoices())[-1]["total"] == 125


@pytest.mark.parametrize("is_queued", [True, False])
async def test_usage_of_a_former_link_is_billed_once(at: Shop, is_queued: bool) -> None:
    await without_subscription(at)
    if is_queued:
        at.emulator.fail_next("error", status=403, path="*")
        assert (await deliver(at.kit)).left == 1
    await at.kit.customers.unlink("bob")
    await deliver(at.kit, everything=True)
    at.emulator.add_customer("cus_new")
    await at.kit.customers.link("bob", "cus_new")
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]
    assert (await at.invoices())[-1]["customer"] == ("cus_bob" if is_queued else "cus_new")
    assert await fates(at, "bob") == (0, 26, 0)
    assert [one.advice for one in await at.kit.reconcile("bob", at=HALF)] == [""]


async def test_a_first_link_bills_no_months_long_past(at: Shop) -> None:
    await at.kit.customers.set_plan("bob", "pro")
    for days in (0, 31, 50):
        at.clock.advance(timedelta(days=days))
        await at.kit.record("bob", "words", 126)
    at.emulator.add_customer("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await deliver(at.kit, everything=True)
    (line,) = [one for one in await at.stripe_list("/v1/invoiceitems") if one["customer"] == "cus_bob"]
    assert (line["amount"], line["period"]["start"]) == (104, int(END.timestamp()))
    assert await fates(at, "bob") == (0, 0, 26)
    known = [one for one in await at.kit.customers.history("bob") if one.kind == "late"]
    assert [str(one.after) for one in known] == ["not billed: no link came within 35 days of its period"]


async def test_pending_usage_keeps_its_price_through_a_new_link(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(END + timedelta(seconds=3))
    await at.kit.customers.unlink("acme")
    at.emulator.add_customer("cus_new")
    await at.kit.customers.link("acme", "cus_new")
    await end_period(at)
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_i11_lost_usage_of_the_open_period_is_pending_again(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "words", 126)
        await drained(at.kit)
        admin, keys = await at.kit.store.admin(), at.kit.store.keys.customer("acme")
        await admin.ask(admin.client.delete(keys.counters, keys.dirty))
        before = len(at.emulator.requests)
        (rebuilt,) = (await recover(at.kit)).rebuilt
        assert (rebuilt.raised, rebuilt.parked, rebuilt.advice) == (126, 0, "")
        assert not [one for one in at.emulator.requests[before:] if "/billing/meter" in one.path]
        assert (await recover(at.kit)).rebuilt == []
        await end_period(at)
        await deliver(at.kit, everything=True)
        assert await usage_lines(at) == [("Words", "26", "4", 104)]


async def test_lost_books_of_a_period_with_lines_are_said(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing, audit_url=url) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        await ended(at)
        await deliver(at.kit, everything=True)
        await drained(at.kit)
        admin, keys = await at.kit.store.admin(), at.kit.store.keys.customer("acme")
        await admin.ask(admin.client.delete(keys.totals))
        (lost,) = (await recover(at.kit)).rebuilt
        assert lost.advice.endswith("compare the 26 units that were to be billed with its invoice")


async def test_an_imported_subscriber_keeps_the_price_of_that_day(at: Shop) -> None:
    linked = (await at.kit.customers.get("acme")).stripe_customer
    await at.kit.customers.unlink("acme")
    at.go(timedelta(hours=1))
    found = await at.kit.subscriptions.import_from_stripe(ids={f"{linked}": "zed"})
    assert [(one.customer, one.plan) for one in found.customers] == [("zed", "pro")]
    at.kit.store.use(loads(PLANS.replace("amount_cents: 4}", "amount_cents: 9}")))
    await at.kit.record("zed", "words", 126)
    at.go(END + timedelta(minutes=3))
    await at.kit.subscriptions.sync("zed")
    await deliver(at.kit, everything=True)
    assert await usage_lines(at) == [("Words", "26", "4", 104)]


@pytest.mark.parametrize(("replaced", "total"), [(HALF, 65), (END, 65 + 2900 // 2 * 5 // 4 + 1)])
async def test_f_30b_usage_of_a_replaced_subscription_has_its_terms(
    at: Shop, replaced: datetime, total: int
) -> None:
    """Replaced before the next flush, its usage had neither coupon nor tax nor card: 104 for 65."""
    rate = await at.post("/v1/tax_rates", {"display_name": "VAT", "percentage": 25, "inclusive": False})
    await at.stripe_change("/v1/coupons", id="half", duration="forever", percent_off="50")
    former = await at.kit.subscriptions.get("acme")
    assert former is not None
    terms = {"default_tax_rates": [rate["id"]], "discounts": [{"coupon": "half"}]}
    await at.post(f"/v1/subscriptions/{former.id}", terms)
    await at.kit.record("acme", "words", 126)
    at.go(replaced)
    shown = await at.stripe_subscription(former.id)
    await at.stripe_delete(f"/v1/subscriptions/{former.id}")
    (price,) = await at.items(former.id)
    payer = {name: shown[name] for name in ("customer", "default_payment_method")}
    await at.post("/v1/subscriptions", {**payer, "items": [{"price": price}]})
    await at.kit.subscriptions.sync("acme")
    now = await at.kit.subscriptions.get("acme")
    assert now is not None
    assert now.id != former.id
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    at.go(timedelta(hours=2))
    bills = [one for one in await at.invoices() if "meterkit_line" in str(one["lines"])]
    found = [(bill["total"], bill["status"]) for bill in bills]
    assert (await usage_lines(at), found) == ([("Words", "26", "4", 104)], [(total, "paid")])


async def test_f_30b_also_if_its_beginning_was_heard_of_later(at: Shop) -> None:
    """Each webhook comes later: all usage of a first period lost the terms, 104 for 52."""
    at.emulator.add_customer("cus_bob")
    at.emulator.add_payment_method("cus_bob")
    await at.kit.customers.link("bob", "cus_bob")
    await at.stripe_change("/v1/coupons", id="half", duration="forever", percent_off="50")
    former = await at.kit.subscriptions.get("acme")
    assert former is not None
    (price,) = await at.items(former.id)
    asked: dict[str, Any] = {"customer": "cus_bob", "items": [{"price": price}]}
    shown = await at.post("/v1/subscriptions", {**asked, "discounts": [{"coupon": "half"}]})
    at.clock.advance(timedelta(seconds=2))
    await at.kit.subscriptions.sync("bob")
    await at.kit.record("bob", "words", 126)
    at.go(HALF)
    await at.stripe_delete(f"/v1/subscriptions/{shown['id']}")
    await at.post("/v1/subscriptions", asked)
    await at.kit.subscriptions.sync("bob")
    at.go(timedelta(minutes=15))
    await deliver(at.kit, everything=True)
    at.go(timedelta(hours=2))
    bills = [one for one in await at.invoices() if "meterkit_line" in str(one["lines"])]
    assert [(one["total"], one["status"]) for one in bills] == [(52, "paid")]
