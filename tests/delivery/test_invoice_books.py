"""Books against invoice lines: delivered and counted is not enough."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.period_ends import HOUR, JULY, JUNE, MAY, MINUTE, UNHELD, assert_books, ending, paying

if TYPE_CHECKING:
    from drivers.period_ends import Ending
    from meterkit import Reconciled

pytestmark = pytest.mark.anyio


async def books(at: Ending, meter: str = "requests") -> Reconciled:
    """What reconcile says of May."""
    found = await at.kit.reconcile("acme", at=JUNE - HOUR)
    return next(one for one in found if one.meter == meter)


async def test_units_counted_and_on_no_invoice_are_reported(
    any_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-101: recorded = delivered = counted, and nothing is billed."""
    async with ending(any_store_url) as at:
        await at.kit.record("acme", "requests", 1_010)
        for item in (await at.found.client.v1.subscriptions.list_async()).data[0]["items"]["data"]:
            if item["price"]["id"] == "price_pro_requests":
                await at.found.client.v1.subscription_items.delete_async(item["id"])
        await at.flush()
        at.go(JUNE + 3 * HOUR)
        one = await books(at)
        assert (one.delivered, one.confirmed, one.difference, one.invoiced) == (1000, 1000, 0, 0)
        assert "1000 of 1000 units that Stripe has counted at USD 0.05 each are on no invoice" in one.advice
        await late_is_told_once(at, caplog, one)


async def late_is_told_once(at: Ending, caplog: pytest.LogCaptureFixture, before: Reconciled) -> None:
    """The close counts what no invoice has as late, confirms the rest, and tells of it once."""
    looked = await at.look()
    assert (looked.open, looked.late) == (0, [])
    one = await books(at)
    assert (before.recorded, 0, before.confirmed, 0, 1000, "") == (
        *(one.recorded, one.delivered, one.confirmed, one.difference, one.late, one.advice),
    )
    told = "Stripe has counted it in the period from 2031-05-10T12:00:00Z and has it on no invoice"
    assert [
        f"late usage of customer 'acme': {told}; 1000 of requests at USD 0.05 each: no invoice bills it"
    ] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    (entry,) = [one for one in await at.kit.customers.history("acme") if one.kind == "late"]
    assert entry.before == "1000 of requests at USD 0.05 each, of the period from 2031-05-10 12:00 UTC"
    assert entry.after == "not billed"
    await assert_books(at)


async def end_after_use(at: Ending) -> None:
    """Deliver 1,000 units of overage, and have Stripe end the subscription without an invoice."""
    await at.kit.record("acme", "requests", 1_010)
    await at.flush()
    at.clock.advance(10 * MINUTE)
    subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
    await at.found.client.v1.subscriptions.cancel_async(subscription.id)


@pytest.mark.parametrize("days", [0, 3], ids=["told at once", "told days later"])
async def test_usage_of_an_end_without_an_invoice_is_late(
    any_store_url: str, caplog: pytest.LogCaptureFixture, days: int
) -> None:
    """F-101: as after failed payments. Delivered usage was on no invoice, and was not late."""
    async with ending(any_store_url) as at:
        await end_after_use(at)
        at.go(JUNE + timedelta(days=days))
        await at.found.settle()
        at.go(JUNE + timedelta(days=days, hours=3))
        one = await books(at)
        assert (one.delivered, one.confirmed, one.invoiced, one.invoice) == (1000, 1000, 0, "none")
        await late_is_told_once(at, caplog, one)


async def test_an_earlier_subscriptions_last_period_is_compared(
    any_store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """F-101: the customer had another subscription before the end of the first one was known."""
    async with ending(any_store_url) as at:
        await end_after_use(at)
        at.clock.advance(10 * MINUTE)
        items: Any = [{"price": price} for price in ("price_pro", "price_pro_requests")]
        await at.found.client.v1.subscriptions.create_async({"customer": "cus_acme", "items": items})
        await at.found.settle()
        await at.look()
        at.go(JUNE + 3 * HOUR)
        one = await books(at)
        assert (one.delivered, one.invoiced, one.invoice) == (1000, 0, "none")
        await late_is_told_once(at, caplog, one)


@pytest.mark.parametrize("days_without", [0, 5], ids=["at once", "after days on the default plan"])
async def test_an_idle_period_begins_with_its_subscription(any_store_url: str, days_without: int) -> None:
    """It began where the former one would have ended, and reconcile told people to credit its invoice."""
    async with paying(any_store_url) as at:
        begun = MAY + timedelta(days=10)
        at.go(begun - timedelta(days=days_without) - HOUR)
        await at.kit.record("acme", "requests", 1)
        at.go(begun - timedelta(days=days_without))
        subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
        await at.found.client.v1.subscriptions.cancel_async(subscription.id, {"invoice_now": True})
        await at.found.settle()
        if days_without:
            await at.kit.record("acme", "requests", 1)
            at.go(begun)
        await at.found.subscribe(
            items=[{"price": price} for price in ("price_pro", "price_pro_requests")],
            metadata={"number": "2"},
        )
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
async def test_an_end_learned_with_an_unpaid_sign_up_keeps_its_invoice(
    any_store_url: str, *, is_due: bool
) -> None:
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
            subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
            await at.found.client.v1.subscriptions.cancel_async(subscription.id, {"invoice_now": True})
        at.go(ended + 2 * HOUR)
        await at.found.subscribe(payment_behavior="default_incomplete", metadata={"number": "2"})
        await at.found.settle()
        await at.kit.record("acme", "requests", 1)
        assert (await at.kit.usage("acme"))["period"]["start"] == ended
        (one,) = await at.kit.reconcile("acme", at=MAY)
        assert (one.period_end, one.delivered, one.confirmed) == (ended, 20, 20)
        assert (one.invoiced, one.invoice, one.advice) == (20, "final", "")


async def test_an_invoice_may_still_come_within_two_hours_of_an_end(any_store_url: str) -> None:
    async with ending(any_store_url) as at:
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
        (3, "; that is USD 12.00 less, and the customer's own price gives no more"),
        (7, ", and credit USD 12.00"),
    ],
    ids=["cheaper", "dearer"],
)
async def test_usage_billed_at_another_price_is_named(
    any_store_url: str, caplog: pytest.LogCaptureFixture, cents: int, do: str
) -> None:
    """F-100: recorded = delivered = counted = invoiced, and 600 units have a price that no plan has."""
    async with ending(any_store_url) as at:
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
        said = f"600 units were recorded at USD 0.05 each and are billed at USD 0.0{cents} each (in_"
        assert one.advice.startswith(said)
        assert one.advice.endswith(f"): see who changed the price{do}")
        looked = await at.look()
        assert [said in why for why in looked.late] == [True]
        assert (await at.look()).late == []
        assert len([line for line in caplog.messages if said in line]) == 1


async def switched(at: Ending, cents: int) -> None:
    """A person gives the item another price, and no webhook comes."""
    subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
    item = next(one for one in subscription["items"]["data"] if one["price"]["id"] == "price_pro_requests")
    recurring = {"interval": "month", "usage_type": "metered", "meter": item["price"]["recurring"]["meter"]}
    made: Any = {
        "currency": "usd",
        "unit_amount": cents,
        "product": item["price"]["product"],
        "recurring": recurring,
    }
    price = await at.found.client.v1.prices.create_async(made)
    await at.found.client.v1.subscription_items.update_async(item["id"], {"price": price.id})


async def test_units_of_a_void_invoice_are_named(
    any_store_url: str,
) -> None:
    async with ending(any_store_url) as at:
        subscription = (await at.found.client.v1.subscriptions.list_async()).data[0]
        sent: Any = {"collection_method": "send_invoice", "days_until_due": 30}
        await at.found.client.v1.subscriptions.update_async(subscription.id, sent)
        await at.kit.record("acme", "requests", 110)
        await at.flush()
        at.go(JUNE + 3 * HOUR)
        assert (await books(at)).advice == ""
        invoice = (await at.found.client.v1.invoices.list_async()).data[0]
        await at.found.client.v1.invoices.void_invoice_async(invoice.id)
        one = await books(at)
        assert (one.confirmed, one.invoiced, one.invoice) == (100, 0, "none")
        assert f"; {invoice.id} had 100 and is void): see who voided it, and why" in one.advice


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
