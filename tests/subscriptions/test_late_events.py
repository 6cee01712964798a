"""Events of Stripe that are delivered late: what no longer holds is not sent to handlers (CONTRACT §9)."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.top_ups import bought, opened, sold, with_card
from drivers.webhooks import DAY, NOW, PLANS, Hooked, hooked, shop
from meterkit import PaymentSucceeded
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio


async def bring_late(at: Hooked, kind: str) -> None:
    """Have Stripe deliver what waits, the events of one type last; work each off, and call handlers."""
    events = at.emulator.webhook_events
    late = [event for event in events if event.type == kind]
    assert late
    for group in ([event for event in events if event not in late], late):
        assert set(await at.bring(*group)) == {200}
        await at.kit.webhooks.work_off()
    await at.kit.stop()
    await at.kit.start()


def payment_events(at: Hooked) -> list[Any]:
    """The events of payments that the app gets from now on."""
    told: list[Any] = []
    for kind in ("payment.failed", "payment.succeeded"):
        at.kit.on(kind)(told.append)
    return told


async def test_a_failed_payment_is_sent_while_it_is_unpaid(store_url: str) -> None:
    async with hooked(store_url) as at:
        told = payment_events(at)
        at.customer()
        await at.subscribe()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(31 * DAY)
        at.emulator.advance()
        (invoice,) = (await at.client.v1.invoices.list_async({"status": "open"})).data
        at.emulator.mend_payments("cus_acme")
        await at.client.v1.invoices.pay_async(str(invoice.id))
        await bring_late(at, "invoice.payment_failed")
        assert [type(event) for event in told] == [PaymentSucceeded] * 2


async def test_the_failed_payment_of_a_top_up_is_no_exception(store_url: str) -> None:
    async with sold(store_url) as at:
        told: list[Any] = []
        at.kit.on("payment.failed")(told.append)
        await opened(at)
        await with_card(at, "pm_card_chargeCustomerFail")
        first, second = [str((await bought(at)).invoice) for _ in range(2)]
        at.emulator.confirm_payment(first)
        await bring_late(at, "invoice.payment_failed")
        assert [event.invoice for event in told] == [second]


@pytest.mark.parametrize("change", ["canceled", "another end", "another product", "none"])
async def test_a_trials_end_is_sent_while_it_is_ahead(store_url: str, change: str) -> None:
    async with hooked(store_url) as at:
        told: list[Any] = []
        at.kit.on("trial.ending")(told.append)
        at.customer()
        trial: Any = {"trial_end": int((NOW + 10 * DAY).timestamp())}
        if change == "another product":
            await at.subscribe()
        price = "price_other" if change == "another product" else "price_pro"
        subscription = await at.subscribe(price=price, **trial)
        await at.settle()
        at.clock.advance(8 * DAY)
        at.emulator.advance()
        if change == "canceled":
            await at.client.v1.subscriptions.cancel_async(subscription)
        elif change == "another end":
            later: Any = {"trial_end": int((NOW + 20 * DAY).timestamp())}
            await at.client.v1.subscriptions.update_async(subscription, later)
        await bring_late(at, "customer.subscription.trial_will_end")
        assert len(told) == (change == "none")


async def test_payments_for_another_product_are_not_told(store_url: str) -> None:
    """E-mails that cannot be declined said that the payment of its invoice failed."""
    async with hooked(store_url) as at:
        told = payment_events(at)
        at.customer()
        await at.subscribe()
        await at.subscribe(price="price_other")
        at.emulator.fail_payments("cus_acme")
        at.clock.advance(31 * DAY)
        at.emulator.advance()
        await bring_late(at, "invoice.payment_failed")
        assert sorted((type(one).__name__, one.amount_cents) for one in told) == [
            ("PaymentFailed", 1000),
            ("PaymentSucceeded", 1000),
        ]


async def test_payments_for_a_former_plan_are_told(store_url: str) -> None:
    """The plan of the subscription before has left the plans file, and its last invoice is paid late."""
    async with hooked(store_url) as at:
        told: list[Any] = []
        at.kit.on("payment.succeeded")(told.append)
        at.customer()
        former = await at.subscribe()
        await at.settle()
        at.emulator.fail_payments("cus_acme")
        await at.live(31 * DAY)
        (invoice,) = (await at.client.v1.invoices.list_async({"status": "open"})).data
        at.emulator.mend_payments("cus_acme")
        at.kit.store.use(loads(PLANS.replace("stripe_price: price_pro", "stripe_price: price_new")))
        at.emulator.add_price(2000, price_id="price_new", product=at.emulator.add_product("New"))
        await at.client.v1.subscriptions.cancel_async(former)
        current = await at.subscribe(price="price_new")
        await at.settle()
        assert (await at.kit.customers.get("acme")).subscription == current
        told.clear()
        await at.client.v1.invoices.pay_async(str(invoice.id))
        await at.settle()
        await at.kit.stop()
        await at.kit.start()
        assert [one.invoice for one in told] == [invoice.id]


@pytest.mark.parametrize("first_is", ["paid", "open", "followed by a draft"])
async def test_grace_counts_from_the_first_invoice_left_unpaid(store_url: str, first_is: str) -> None:
    """One is paid and the next declined before meterkit hears of either."""
    clock, paid = Clock(NOW), first_is == "paid"
    emulator = shop(clock, after_retries="past_due")
    async with hooked(store_url, clock=clock, emulator=emulator) as at:
        at.customer()
        await at.subscribe()
        emulator.fail_payments("cus_acme")
        await at.live(31 * DAY)
        (first,) = await open_invoices(at)
        clock.advance(29 * DAY)
        emulator.advance()
        if paid:
            emulator.mend_payments("cus_acme")
            emulator.confirm_payment(str(first.id))
            emulator.fail_payments("cus_acme")
        clock.advance(DAY if first_is == "followed by a draft" else 2 * DAY)
        emulator.advance()
        await at.settle()
        owed = (await open_invoices(at))[-1]
        state = await at.state()
        assert state.subscription is not None
        assert (owed.id == first.id, state.subscription.status) == (not paid, "past_due")
        assert state.subscription.failed_at_ms == 1000 * owed.status_transitions.finalized_at
        found = await at.kit.customers.get("acme")
        assert found.access == ("grace" if paid else "suspended")


async def open_invoices(at: Hooked) -> list[Any]:
    """Open invoices at Stripe, the newest first."""
    return (await at.client.v1.invoices.list_async({"status": "open"})).data


async def test_an_invoice_of_nothing_pays_no_older_one(store_url: str) -> None:
    """It ends a trial that an operator gave; then an invoice that was sent before is overdue."""
    clock = Clock(NOW)
    emulator = shop(clock, after_retries="past_due")
    async with hooked(store_url, clock=clock, emulator=emulator) as at:
        at.customer()
        sent: Any = {"collection_method": "send_invoice", "days_until_due": 60}
        subscription = await at.subscribe(**sent)
        await at.live(31 * DAY)
        trial: Any = {"trial_end": int((NOW + 50 * DAY).timestamp())}
        await at.client.v1.subscriptions.update_async(subscription, trial)
        await at.live(30 * DAY)
        state = await at.state()
        assert state.subscription is not None
        assert (state.subscription.status, state.subscription.failed_at_ms) == (
            "past_due",
            int((NOW + 60 * DAY).timestamp()) * 1000,
        )
