"""Renewal invoices wait for their usage and the audit root; later usage is late; books against lines."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.audit_database import ROOT, ROWS, read_root
from drivers.audited_kit import rows_in, sqlite_in
from drivers.delivery import Caplog, alerts
from drivers.period_ends import (
    EVENTS,
    HELD,
    HOUR,
    JULY,
    JUNE,
    MAY,
    MINUTE,
    UNHELD,
    Ending,
    assert_books,
    ending,
    paying,
)
from meterkit import Reconciled

pytestmark = pytest.mark.anyio

ITEMS: Any = [{"price": price} for price in ("price_pro", "price_pro_requests")]


@pytest.fixture
async def at(any_store_url: str) -> AsyncGenerator[Ending]:
    async with ending(any_store_url) as opened:
        yield opened


async def books(at: Ending, meter: str = "requests") -> Reconciled:
    """What reconcile says of May."""
    found = await at.kit.reconcile("acme", at=JUNE - HOUR)
    return next(one for one in found if one.meter == meter)


async def subscription(at: Ending) -> Any:
    return (await at.found.client.v1.subscriptions.list_async()).data[0]


async def cancel(at: Ending, **how: Any) -> None:
    params: Any = how
    await at.found.client.v1.subscriptions.cancel_async((await subscription(at)).id, params)


async def test_counted_units_on_no_invoice_are_told(at: Ending, caplog: Caplog) -> None:
    """F-101: recorded = delivered = counted, and nothing is billed."""
    await at.kit.record("acme", "requests", 1_010)
    for item in (await subscription(at))["items"]["data"]:
        if item["price"]["id"] == "price_pro_requests":
            await at.found.client.v1.subscription_items.delete_async(item["id"])
    await at.flush()
    at.go(JUNE + 3 * HOUR)
    one = await books(at)
    assert (one.delivered, one.confirmed, one.difference, one.invoiced) == (1000, 1000, 0, 0)
    assert "1000 of 1000 units that Stripe has counted at $0.05 each are on no invoice" in one.advice
    await late_is_told_once(at, caplog, one)


async def late_is_told_once(at: Ending, caplog: Caplog, before: Reconciled) -> None:
    """The close counts what no invoice has as late, confirms the rest, and tells of it once."""
    looked = await at.look()
    assert (looked.open, looked.late) == (0, [])
    one = await books(at)
    assert (one.recorded, one.confirmed) == (before.recorded, before.confirmed)
    assert (one.delivered, one.difference, one.late, one.advice) == (0, 0, 1000, "")
    told = "Stripe has counted it in the period from 2031-05-10T12:00:00Z and has it on no invoice"
    price = "1000 of requests at $0.05 each"
    assert alerts(caplog) == [f"late usage of customer 'acme': {told}; {price}: no invoice bills it"]
    (entry,) = [one for one in await at.kit.customers.history("acme") if one.kind == "late"]
    assert entry.before == f"{price}, of the period from 2031-05-10 12:00 UTC"
    assert entry.after == "not billed"
    await assert_books(at)


async def end_after_use(at: Ending) -> None:
    """Deliver 1,000 units of overage, and have Stripe end the subscription without an invoice."""
    await at.kit.record("acme", "requests", 1_010)
    await at.flush()
    at.clock.advance(10 * MINUTE)
    await cancel(at)


@pytest.mark.parametrize("days", [0, 3], ids=["told at once", "told days later"])
async def test_usage_of_an_end_without_an_invoice_is_late(at: Ending, caplog: Caplog, days: int) -> None:
    """F-101: as after failed payments. Delivered usage was on no invoice, and was not late."""
    await end_after_use(at)
    at.go(JUNE + timedelta(days=days))
    await at.found.settle()
    at.go(JUNE + timedelta(days=days, hours=3))
    one = await books(at)
    assert (one.delivered, one.confirmed, one.invoiced, one.invoice) == (1000, 1000, 0, "none")
    await late_is_told_once(at, caplog, one)


@pytest.mark.parametrize("days", [0, 3], ids=["told at once", "told days later"])
async def test_an_earlier_subscriptions_last_period_is_compared(
    at: Ending, caplog: Caplog, days: int
) -> None:
    """F-101: the customer had another subscription before the end of the first one was known."""
    await end_after_use(at)
    at.clock.advance(10 * MINUTE)
    await at.found.client.v1.subscriptions.create_async({"customer": "cus_acme", "items": ITEMS})
    at.clock.advance(timedelta(days=days))
    await at.found.settle()
    one = await books(at)
    assert (one.delivered, one.invoiced, one.invoice) == (1000, 0, "none")
    await at.look()
    at.go(JUNE + timedelta(days=days, hours=3))
    await late_is_told_once(at, caplog, one)


@pytest.mark.parametrize("days_without", [0, 5], ids=["at once", "after days on the default plan"])
async def test_an_idle_period_begins_with_its_subscription(any_store_url: str, days_without: int) -> None:
    """It began where the former one would have ended, and reconcile told people to credit its invoice."""
    async with paying(any_store_url) as at:
        begun = MAY + timedelta(days=10)
        at.go(begun - timedelta(days=days_without) - HOUR)
        await at.kit.record("acme", "requests", 1)
        at.go(begun - timedelta(days=days_without))
        await cancel(at, invoice_now=True)
        await at.found.settle()
        if days_without:
            await at.kit.record("acme", "requests", 1)
            at.go(begun)
        await at.found.subscribe(items=ITEMS, metadata={"number": "2"})
        await at.found.settle()
        await at.reach(JUNE + timedelta(days=4))
        assert (await at.kit.usage("acme"))["period"]["start"] == begun
        await at.kit.record("acme", "requests", 30)
        await at.flush()
        assert (await at.kit.usage("acme"))["period"]["start"] == begun
        await at.reach(JUNE + timedelta(days=10, hours=3))
        (one,) = await at.kit.reconcile("acme", at=JUNE)
        assert (one.period_start, one.delivered, one.confirmed) == (begun, 20, 20)
        assert (one.invoiced, one.invoice, one.advice) == (20, "final", "")
        assert [former.advice for former in await at.kit.reconcile("acme", at=begun - MINUTE)] in ([], [""])


@pytest.mark.parametrize("is_due", [False, True], ids=["amid its period", "with its period"])
async def test_an_end_with_an_unpaid_sign_up_keeps_its_invoice(any_store_url: str, *, is_due: bool) -> None:
    """Its period seemed to end where the month began, and no invoice of that was found."""
    async with paying(any_store_url) as at:
        if is_due:
            await at.kit.subscriptions.cancel("acme")
        at.go(MAY + timedelta(days=20))
        await at.kit.record("acme", "requests", 30)
        await at.flush()
        ended = JUNE if is_due else JUNE - timedelta(days=2)
        at.go(ended)
        if not is_due:
            await cancel(at, invoice_now=True)
        at.go(ended + 2 * HOUR)
        await at.found.subscribe(payment_behavior="default_incomplete", metadata={"number": "2"})
        await at.found.settle()
        await at.kit.record("acme", "requests", 1)
        assert (await at.kit.usage("acme"))["period"]["start"] == ended
        (one,) = await at.kit.reconcile("acme", at=MAY)
        assert (one.period_end, one.delivered, one.confirmed) == (ended, 20, 20)
        assert (one.invoiced, one.invoice, one.advice) == (20, "final", "")


async def test_an_invoice_may_still_come_within_two_hours_of_an_end(at: Ending) -> None:
    await end_after_use(at)
    at.clock.advance(10 * MINUTE)
    await at.found.settle()
    await at.look()
    one = await books(at)
    assert (one.late, one.delivered) == (0, 1000)
    assert one.advice.startswith("1000 are on no invoice yet")


@pytest.mark.parametrize(
    ("cents", "do"),
    [
        (3, "; that is $12.00 less, and the customer's own price gives no more"),
        (7, ", and credit $12.00"),
    ],
)
async def test_usage_billed_at_another_price_is_named(
    at: Ending, caplog: Caplog, cents: int, do: str
) -> None:
    """F-100: recorded = delivered = counted = invoiced, and 600 units have a price that no plan has."""
    await at.kit.record("acme", "requests", 410)
    await at.flush()
    at.clock.advance(10 * MINUTE)
    await switched(at, cents)
    at.clock.advance(10 * MINUTE)
    await at.kit.record("acme", "requests", 600)
    await at.flush()
    at.go(JUNE + 3 * HOUR)
    one = await books(at)
    assert (one.delivered, one.confirmed, one.invoiced, one.mispriced) == (1000, 1000, 1000, 600)
    said = f"600 units were recorded at $0.05 each and are billed at $0.0{cents} each (in_"
    assert one.advice.startswith(said)
    assert one.advice.endswith(f"): check who changed the price{do}")
    looked = await at.look()
    assert ([said in why for why in looked.late], (await at.look()).late) == ([True], [])
    assert len([line for line in caplog.messages if said in line]) == 1


async def switched(at: Ending, cents: int, **how: Any) -> None:
    """A person gives the item another price, and no webhook comes."""
    items = (await subscription(at))["items"]["data"]
    item = next(one for one in items if one["price"]["id"] == "price_pro_requests")
    recurring = {"interval": "month", "usage_type": "metered", "meter": item["price"]["recurring"]["meter"]}
    made: Any = {
        "currency": "usd",
        "unit_amount": cents,
        "product": item["price"]["product"],
        "recurring": recurring,
    }
    price = await at.found.client.v1.prices.create_async(made)
    changed: Any = {"price": price.id, **how}
    await at.found.client.v1.subscription_items.update_async(item["id"], changed)


async def send_invoices(at: Ending) -> None:
    """Have invoices sent, not charged: they stay open, so a person can void them."""
    sent: Any = {"collection_method": "send_invoice", "days_until_due": 30}
    await at.found.client.v1.subscriptions.update_async((await subscription(at)).id, sent)


async def void_invoice(at: Ending) -> str:
    """Void the newest invoice, as a person does; its id."""
    invoice = (await at.found.client.v1.invoices.list_async()).data[0]
    await at.found.client.v1.invoices.void_invoice_async(invoice.id)
    return invoice.id


async def test_units_of_a_void_invoice_are_named(at: Ending) -> None:
    await send_invoices(at)
    await at.kit.record("acme", "requests", 110)
    await at.flush()
    at.go(JUNE + 3 * HOUR)
    assert (await books(at)).advice == ""
    voided = await void_invoice(at)
    one = await books(at)
    assert (one.confirmed, one.invoiced, one.invoice) == (100, 0, "none")
    assert f"; {voided} had 100 and is void): check who voided it, and why" in one.advice


async def test_late_units_of_two_looks_at_a_close_add_up(at: Ending) -> None:
    """Without proration a switch of prices drops 600 units, and a person voids the invoice of the others."""
    await send_invoices(at)
    await at.kit.record("acme", "requests", 610)
    await at.flush()
    at.clock.advance(10 * MINUTE)
    await switched(at, 5, proration_behavior="none")
    at.clock.advance(10 * MINUTE)
    await at.kit.record("acme", "requests", 400)
    await at.flush()
    await at.reach(JUNE + 3 * HOUR)
    await at.look()
    one = await books(at)
    assert (one.late, one.delivered, one.invoiced, one.advice) == (600, 400, 400, "")
    await void_invoice(at)
    await at.found.settle()
    await at.look()
    one = await books(at)
    assert (one.late, one.delivered, one.invoiced, one.advice) == (1000, 0, 0, "")


async def test_f_227_foreign_units_are_found_in_past_periods(store_url: str) -> None:
    """A period in which nothing was recorded was compared as a calendar month, or not at all."""
    async with paying(store_url, UNHELD) as at:
        for end in (JUNE, JULY):
            await at.reach(end - 3 * HOUR)
            fields: Any = {
                "event_name": "requests",
                "timestamp": int((end - 5 * HOUR).timestamp()),
                "payload": {"stripe_customer_id": "cus_acme", "value": "7"},
            }
            await at.found.client.v1.billing.meter_events.create_async(fields)
            await at.reach(end + 3 * HOUR)
        assert at.billed() == [7, 7]
        for start, end in ((MAY, JUNE), (JUNE, JULY)):
            for instant in (start, start + 20 * HOUR, end - HOUR):
                (found,) = await at.kit.reconcile("acme", at=instant)
                assert (found.period_start, found.period_end, found.invoiced) == (start, end, 7)
                assert not found.agrees
                assert "something else sends to this meter" in found.advice


DAY = timedelta(days=1)


async def use(at: Ending) -> None:
    """Units of two meters, of which 1,000 and 300 are overage."""
    await at.kit.record("acme", "requests", 1_010)
    await at.kit.record("acme", "tokens", 400)


def writes(at: Ending) -> list[str]:
    posted = [one.path for one in at.stripe.requests if one.method == "POST"]
    changed = [path.rpartition("/")[2] for path in posted if path.startswith("/v1/invoices/")]
    return ["update" if name.startswith("in_") else name for name in changed]


def fail_events(at: Ending, status: int = 503) -> None:
    """Stripe takes no meter events, and for a while it says so."""
    at.stripe.fail_next("error", status=status, times=None, path=EVENTS)


async def test_units_on_no_invoice_hide_no_other_difference(at: Ending) -> None:
    await use(at)
    for item in (await subscription(at))["items"]["data"]:
        if item["price"]["id"] == "price_pro_requests":
            await at.found.client.v1.subscription_items.delete_async(item["id"])
    fields: Any = {
        "event_name": "tokens",
        "timestamp": int(at.clock()),
        "payload": {"stripe_customer_id": "cus_acme", "value": "7"},
    }
    await at.found.client.v1.billing.meter_events.create_async(fields)
    await at.flush()
    at.go(JUNE + 3 * HOUR)
    (late,) = (await at.look()).late
    assert "tokens: Stripe has 7 more than was delivered" in late
    assert (await books(at)).late == 1000


@pytest.mark.parametrize(("status", "asked"), [(402, 4), (503, 3)])
async def test_a_hold_refused_for_one_customer_delays_no_other(
    store_url: str, status: int, asked: int
) -> None:
    async with ending(store_url) as at:
        others = ("beta", "gamma", "zeta")
        for name in others:
            at.found.customer(name)
            await at.found.subscribe(name, items=ITEMS, billing_cycle_anchor=int(JUNE.timestamp()))
        await at.found.settle()
        fail_events(at)
        for name in ("acme", *others):
            await at.kit.record(name, "requests", 1_010)
        await at.flush()
        await at.reach(JUNE + 3 * MINUTE)
        for draft in at.invoices():
            at.stripe.fail_next("error", status=status, times=None, path=f"/v1/invoices/{draft['id']}")
        before = len(at.stripe.requests)
        assert (await at.look()).open == 4
        posted = {one.path for one in at.stripe.requests[before:] if one.method == "POST"}
        assert len(posted) == asked


async def test_usage_away_over_a_periods_end_is_on_its_own_invoice(at: Ending) -> None:
    """F-101."""
    await use(at)
    fail_events(at)
    await at.hourly(JUNE - MINUTE, 2)
    (invoice,) = at.invoices()
    assert (invoice["status"], invoice["auto_advance"]) == ("draft", True)
    assert invoice["automatically_finalizes_at"] == int((JUNE + DAY).timestamp())
    at.stripe.clear_faults()
    reports = await at.hourly(JUNE + 2 * HOUR, 2)
    assert sum(len(report.late) for report in reports) == 0
    assert (at.billed(), at.billed("price_pro_tokens")) == ([1000], [300])
    (invoice,) = at.invoices()
    assert invoice["status"] in {"open", "paid"}
    at.go(JUNE + 6 * HOUR)
    assert (at.invoices()[0]["status"], writes(at)) == ("paid", ["update", "finalize"])
    await assert_books(at)


async def test_a_draft_that_was_given_back_is_held_again(at: Ending) -> None:
    """Stripe does not say what it has counted; it does; usage makes us look again, and it does not."""
    await use(at)
    ends = list[int]()
    for minutes, is_told in ((11, False), (17, True), (23, False)):
        if not is_told:
            at.stripe.fail_next("error", status=403, times=None, path="/v1/billing/meters")
        await at.reach(JUNE + minutes * MINUTE)
        await at.kit.record("acme", "requests", 20)
        await at.flush()
        await at.look()
        at.stripe.clear_faults()
        (invoice,) = at.invoices()
        ends.append(invoice["automatically_finalizes_at"] - int(JUNE.timestamp()))
    assert ends == [86_400, 3_600, 86_400]


async def test_a_renewal_that_is_known_has_its_close_looked_at(any_store_url: str) -> None:
    unreported = HELD.replace("meters:\n  requests:", "meters:\n  notes: {unit: note}\n  requests:", 1)
    async with ending(any_store_url, unreported) as at:
        await use(at)
        await at.flush()
        await at.reach(JUNE + MINUTE)
        assert await at.look() == (0, 0, [])
        await at.reach(JUNE + 3 * MINUTE)
        looked = await at.look()
        assert looked.confirmed + looked.open == 1


async def test_f_30j_a_pass_of_cron_keeps_the_promises_of_a_worker(store_url: str) -> None:
    """Nothing but ``kit.flush()`` runs: it held no invoice, checked no close, and read no webhook."""
    async with ending(store_url) as at:
        await use(at)
        fail_events(at)
        for quarter in range(16):
            at.go(JUNE - MINUTE + quarter * 15 * MINUTE)
            if quarter == 6:
                at.stripe.clear_faults()
            await at.found.bring()
            await at.kit.flush()
        assert (at.billed(), at.billed("price_pro_tokens")) == ([1000], [300])
        assert (await at.kit.webhooks.backlog()).entries == 0
        assert (await at.look()) == (0, 0, [])
        await assert_books(at)


async def test_f_30j_the_page_names_each_task_of_a_pass(store_url: str) -> None:
    page = (Path(__file__).parents[2] / "docs/background-jobs.md").read_text("utf-8")
    named = re.findall(r"^\| `([a-z ]+)` \|", page[page.index("| task |") :], re.MULTILINE)
    async with ending(store_url) as at:
        assert named == [*at.kit.delivery_tasks(), "audit"]


async def test_without_a_hold_what_is_late_is_on_the_next_invoice(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD) as at:
        fail_events(at, 429)
        await use(at)
        reports = await at.hourly(JUNE - MINUTE, 2)
        at.stripe.clear_faults()
        reports += await at.hourly(JUNE + 2 * HOUR, 2)
        late = {one.meter: one.quantity for report in reports for one in report.late}
        assert (late, writes(at)) == ({"requests": 1000, "tokens": 300}, [])
        at.go(JULY + 2 * HOUR)
        assert (at.billed(), at.billed("price_pro_tokens")) == ([0, 1000], [0, 300])
        await assert_books(at)


@pytest.mark.parametrize(("when", "call"), [("after", ""), ("before", "/finalize")])
async def test_an_answer_that_is_lost_costs_nothing(store_url: str, when: Any, call: str) -> None:
    """As if the process had died there: three tries, then nothing more in that look."""
    async with ending(store_url) as at:
        await use(at)
        fail_events(at)
        at.go(JUNE + MINUTE)
        (invoice,) = at.invoices()
        path = f"/v1/invoices/{invoice['id']}{call}"
        at.stripe.fail_next("drop", when=when, times=3, path=path)
        await at.hourly(JUNE + 11 * MINUTE, 3)
        at.stripe.clear_faults()
        if call:
            at.stripe.fail_next("drop", when=when, times=3, path=path)
        await at.hourly(JUNE + 4 * HOUR, 3)
        at.go(JUNE + 9 * HOUR)
        assert (at.billed(), at.invoices()[0]["status"]) == ([1000], "paid")
        await assert_books(at)


@pytest.mark.parametrize("collects", [True, False])
async def test_the_last_invoice_after_an_end_is_collected(any_store_url: str, *, collects: bool) -> None:
    """Stripe may leave it a draft that nobody collects."""
    async with ending(any_store_url, collects_after_cancel=collects) as at:
        at.clock.advance(MINUTE / 2)  # A meter event is of a whole minute, which must have begun.
        await at.kit.record("acme", "requests", 1_010)
        await at.kit.subscriptions.cancel("acme", immediately=True)
        await at.found.settle()
        ended = at.clock.now()
        await at.hourly(ended + 3 * MINUTE, 4)
        at.go(ended + 9 * HOUR)
        (invoice,) = at.invoices()
        assert (at.billed(), invoice["status"]) == ([1000], "paid")
        (one,) = await at.kit.reconcile("acme", at=ended - HOUR)
        assert (one.invoiced, one.advice) == (1000, "")


async def test_a_last_invoice_stopped_by_a_person_is_left_alone(any_store_url: str) -> None:
    async with ending(any_store_url, collects_after_cancel=False) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        subscription = (await at.found.client.v1.subscriptions.list_async()).data[0].id
        at.clock.advance(2 * MINUTE)
        await at.found.client.v1.subscriptions.cancel_async(subscription, {"invoice_now": True})
        await at.found.settle()
        await at.hourly(at.clock.now() + 3 * MINUTE, 4)
        assert at.invoices()[0]["status"] == "draft"


async def test_the_invoice_has_the_root_before_it_is_final(any_store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with ending(any_store_url, audit_url=url) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        assert (await at.look()).confirmed == 1
        (invoice,) = at.invoices()
        (row,) = rows_in(url)
        assert invoice["status"] == "draft"
        assert (invoice["metadata"][ROOT], invoice["metadata"][ROWS]) == (row["hash"], "1")
        # Webhooks, also repeated ones, and later looks leave it as it is.
        await at.kit.record("acme", "requests", 5)
        await at.found.settle()
        await at.found.bring(*at.stripe.webhook_events)
        await at.hourly(JUNE + 15 * MINUTE, 3)
        (later,) = at.invoices()
        assert (later["status"], read_root(later)) == ("paid", read_root(invoice))
        assert writes(at).count("update") == 1


async def test_a_database_that_is_away_holds_up_no_invoice(
    any_store_url: str, tmp_path: Path, caplog: Caplog
) -> None:
    async with ending(any_store_url, audit_url=f"sqlite:///{tmp_path}/none/audit.db") as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        with caplog.at_level(logging.WARNING, "meterkit.audit"):
            at.go(JUNE + 11 * MINUTE)
            assert (await at.look()).confirmed == 1
        at.go(JUNE + 3 * HOUR)
        (invoice,) = at.invoices()
        assert (invoice["status"], read_root(invoice), at.billed()) == ("paid", None, [1000])
        assert caplog.text.count("the journal of deliveries is not written; usage is still delivered") == 1
        told = [one.getMessage() for one in caplog.records if one.name == "meterkit.audit"]
        assert len(told) == 1
        assert told[0].startswith("invoices go out without the root of the audit log: the database")


async def test_late_overage_is_invoiced_next(any_store_url: str, caplog: Caplog) -> None:
    """F-101."""
    async with ending(any_store_url, UNHELD) as at:
        await at.kit.record("acme", "requests", 1_010)
        at.go(JUNE + 2 * HOUR)
        (late,) = (await at.flush()).late
        assert (late.customer, late.meter, late.quantity, late.is_billed) == ("acme", "requests", 1000, True)
        assert late.period == "2031-05-10T12:00:00Z"
        may, june = await at.counts(JUNE - HOUR), await at.counts(JUNE + HOUR)
        assert (may["late"], may["delivered"], may["pending"]) == (1000, 0, 0)
        assert (june["overage"], june["delivered"], june["recorded"]) == (1000, 1000, 1000)
        assert (await at.flush()).late == []
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 1000]
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len([line for line in lines if "late usage of customer 'acme'" in line]) == 1
        (entry,) = [one for one in await at.kit.customers.history("acme") if one.kind == "late"]
        assert entry.before == "1000 of requests at $0.05 each, of the period from 2031-05-10 12:00 UTC"
        assert entry.after == "billed in the period that is open"
        await assert_books(at)


@pytest.mark.parametrize(
    ("used", "overage", "june"), [(8, 0, 10), (14, 4, 10), (14, 4, 0)], ids=["included", "both", "idle"]
)
async def test_i13_late_included_units_cost_nothing(
    any_store_url: str, used: int, overage: int, june: int
) -> None:
    """Stripe gets them, too. As the next free tier is for its own units, an invoice item bills overage."""
    plans = UNHELD.replace("event_name: requests", "event_name: requests, report: usage")
    async with ending(any_store_url, plans) as at:
        await at.kit.record("acme", "requests", used)
        at.go(JUNE + 2 * HOUR)
        late = {(one.quantity, one.by_item) for one in (await at.flush()).late}
        assert late == {(used - overage, False), (overage, True)} - {(0, True)}
        await at.kit.record("acme", "requests", june)
        may, now = await at.counts(JUNE - HOUR), await at.counts(JUNE + 3 * HOUR)
        assert (may["recorded"], may["late"], now["recorded"]) == (used, used, june)
        await at.flush()
        at.go(JULY + 2 * HOUR)
        renewals = [[line["amount"] for line in one["lines"]["data"]] for one in at.invoices()]
        assert [sum(amounts) - 1000 for amounts in renewals] == [0, overage * 5]


async def test_late_usage_that_is_not_to_be_billed_is_said(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD.replace("0}", "0, late_usage: dead_letter}")) as at:
        await at.kit.record("acme", "requests", 1_010)
        at.go(JUNE + 2 * HOUR)
        (late,) = (await at.flush()).late
        assert (late.quantity, late.is_billed) == (1000, False)
        may, june = await at.counts(JUNE - HOUR), await at.counts(JUNE + HOUR)
        assert (may["late"], may["overage"], june["recorded"]) == (1000, 1000, 0)
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 0]
        await assert_books(at)


async def test_intents_that_were_never_sent_are_late_too(any_store_url: str) -> None:
    async with ending(any_store_url, UNHELD) as at:
        fail_events(at, 429)
        for _ in range(3):
            await at.kit.record("acme", "requests", 1_010)
            at.clock.advance(timedelta(minutes=5))
            await at.flush()
        at.go(JUNE + 2 * HOUR)
        at.stripe.clear_faults()
        report = await at.flush()
        assert (sum(one.quantity for one in report.late), report.parked) == (3_020, 0)
        await at.flush()
        at.go(JULY + 2 * HOUR)
        assert at.billed() == [0, 3_020]
        await assert_books(at)
