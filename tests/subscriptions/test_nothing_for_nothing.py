"""What a customer who knows the rules could try to have without paying for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.shop import END, HALF, PLANS, shop
from meterkit import PaymentMethodMissingError, SubscriptionError
from meterkit.catalog import loads
from subscriptions.looks import linked_of, synced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from drivers.shop import Shop

pytestmark = pytest.mark.anyio

FREE = 10


MINUTES = timedelta(minutes=5)


async def admitted(at: Shop, requests: int) -> int:
    return sum([(await at.kit.consume("acme", "requests")).allowed for _ in range(requests)])


async def test_an_unpaid_subscription_includes_nothing_anew(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        assert await admitted(at, FREE + 1) == FREE
        for plan in ("pro", "team", "pro"):  # Each gives way to the next.
            await at.kit.subscriptions.create("acme", plan)
            at.clock.advance(MINUTES)
            assert await admitted(at, 1) == 0
        await at.kit.subscriptions.cancel("acme")
        at.clock.advance(MINUTES)
        assert await admitted(at, 1) == 0
        made = await at.kit.subscriptions.create("acme", "team")
        at.clock.advance(timedelta(hours=24))
        assert await at.kit.subscriptions.sync("acme")
        assert (await at.stripe_subscription(made.subscription.id))["status"] == "incomplete_expired"
        assert await admitted(at, 1) == 0
        found = await at.subscribed(plan="team")
        assert found.status == "active"
        at.clock.advance(MINUTES)
        assert await admitted(at, 101) == 100


async def test_a_new_subscription_after_an_end_is_paid_too(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        for _ in range(3):
            await at.subscribed(plan="team")
            at.clock.advance(MINUTES)
            assert await admitted(at, 101) == 100
            await at.kit.subscriptions.cancel("acme", immediately=True)
            at.clock.advance(timedelta(hours=2))  # A last invoice would be final by then.
        at.emulator.advance()
        assert sum(invoice["amount_paid"] for invoice in await at.invoices()) == 3 * 1500
        assert await balance(at) == 0


async def test_what_was_never_paid_is_not_given_back(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:
        made = await at.kit.subscriptions.create("acme", "pro", 20)
        assert made.subscription.status == "incomplete"
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        await at.subscribed(plan="pro")
        linked = await linked_of(at)
        at.emulator.fail_payments(linked)
        at.clock.advance(timedelta(days=31))
        found = await synced(at)
        assert (found.status, found.access) == ("past_due", "grace")
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        at.clock.advance(timedelta(hours=2))
        at.emulator.advance()
        assert await balance(at) == 0


async def test_one_subscribe_page_is_open_so_one_trial_is_given(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:

        async def page(number: int) -> str:
            return (await at.kit.subscriptions.checkout("acme", "tried", **urls_of(number))).id

        pages = [await page(number) for number in (0, 1, 0, 1)]
        assert len(set(pages)) == 4
        assert await page(1) == pages[-1]
        for closed in pages[:3]:
            with pytest.raises(ValueError, match="open"):
                at.emulator.complete_checkout(closed)
        await at.kit.subscriptions.create("acme", "tried")
        await at.kit.subscriptions.cancel("acme", immediately=True)
        with pytest.raises(ValueError, match="open"):
            at.emulator.complete_checkout(pages[3])
        at.emulator.complete_checkout(await page(1))
        found = await synced(at)
        assert (found.status, found.trial_end) == ("active", None)


async def test_a_plan_without_a_trial_has_none_by_way_of_another(at: Shop) -> None:
    service = at.kit.subscriptions
    begun = (await service.create("acme", "tried")).subscription
    assert begun.status == "trialing"
    at.clock.advance(timedelta(days=3))
    preview = await service.preview("acme", plan="pro")
    with pytest.raises(PaymentMethodMissingError):  # Nothing to pay with yet.
        await service.change_plan("acme", "pro")
    found = await service.sync("acme")
    assert found is not None
    assert (found.plan, found.status) == ("tried", "trialing")
    linked = await linked_of(at)
    at.emulator.add_payment_method(linked, "pm_card_visa")
    changed = await service.change_plan("acme", "pro")
    assert changed.proration == preview.proration
    cost, now = changed.proration, changed.subscription
    assert (cost.credit_cents, cost.charge_cents, cost.effective_at) == (0, 2900, at.clock.now())
    assert cost.description.startswith("tried to pro, 0 to 10 seats now, prorated to 2031-07-04 ")
    assert (now.plan, now.status, now.current_period_start) == ("pro", "active", at.clock.now())
    assert [invoice["amount_paid"] for invoice in await at.invoices()] == [0, 2900]
    assert (await service.change_plan("acme", "pro")).subscription == now


@pytest.mark.parametrize("seats", [6, 3])
async def test_seats_are_not_changed_while_a_payment_is_overdue(at: Shop, seats: int) -> None:
    """Fewer seats would be credited for a month that was never paid; more would end the dunning once paid."""
    await at.subscribed(plan="team", seats=5)
    linked = await linked_of(at)
    at.emulator.fail_payments(linked)
    at.clock.advance(timedelta(days=32))
    at.emulator.advance()
    overdue = await at.kit.subscriptions.sync("acme")
    before = len(at.changes())
    for _ in range(2):
        with pytest.raises(SubscriptionError, match="past_due: it has to be paid for first"):
            await at.kit.subscriptions.set_seats("acme", seats)
    assert len(at.changes()) == before
    assert await at.kit.subscriptions.sync("acme") == overdue
    assert overdue is not None
    assert (overdue.status, overdue.access, overdue.seats) == ("past_due", "grace", 5)
    at.emulator.mend_payments(linked)
    at.clock.advance(timedelta(days=8))  # Stripe tries again.
    at.emulator.advance()
    paid = await synced(at)
    assert paid.status == "active"
    assert (await at.kit.subscriptions.set_seats("acme", seats)).proration is not None


def urls_of(number: int) -> Any:
    return {"success_url": f"https://app.example/{number}", "cancel_url": "https://app.example/"}


async def balance(at: Shop) -> int:
    """What a customer has at Stripe: below 0 is a credit."""
    linked = await linked_of(at)
    (found,) = [one for one in await at.stripe_list("/v1/customers") if one["id"] == linked]
    owed: int = found["balance"]
    return owed


def add_draft(at: Shop) -> None:
    """Let the renewal be made, which stays a draft for an hour."""
    at.clock.set(END + MINUTES)
    at.emulator.advance()


async def test_a_renewal_that_is_still_a_draft_is_not_credited(at: Shop) -> None:
    """F-22f: the month was credited as paid, its payment failed, and the credit bought the next plan."""
    await at.subscribed(plan="pro", seats=20)
    linked = await linked_of(at)
    add_draft(at)
    assert [invoice["status"] for invoice in await at.invoices()] == ["paid", "draft"]
    at.emulator.fail_payments(linked)
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    at.clock.advance(timedelta(hours=2))
    at.emulator.advance()
    assert await balance(at) == 0


async def void_renewal(at: Shop) -> None:
    """Let the renewal fail, and void it: the subscription is active again."""
    at.emulator.fail_payments(await linked_of(at))
    at.clock.set(END + timedelta(hours=2))
    at.emulator.advance()
    at.emulator.mend_payments(await linked_of(at))
    await at.stripe_change(f"/v1/invoices/{(await at.invoices())[-1]['id']}/void")


async def add_credit_note(at: Shop) -> None:
    """Pay the month back by bank, with a credit note, as a person does in the Dashboard."""
    paid = (await at.invoices())[-1]
    await at.stripe_change("/v1/credit_notes", invoice=paid["id"], amount="2900", out_of_band_amount="2900")


async def refund(at: Shop) -> None:
    """Refund the payment of the month in the Dashboard, without a credit note."""
    (paid,) = await at.stripe_list("/v1/invoice_payments", invoice=(await at.invoices())[-1]["id"])
    await at.stripe_change("/v1/refunds", payment_intent=paid["payment"]["payment_intent"])


@pytest.mark.parametrize("undo", [void_renewal, add_credit_note, refund])
async def test_money_that_went_back_or_never_came_is_not_credited(
    at: Shop, undo: Callable[[Shop], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    await at.subscribed(plan="pro")
    at.clock.advance(timedelta(days=2))
    await undo(at)
    found = await synced(at)
    assert found.status == "active"
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    at.clock.advance(timedelta(hours=2))
    at.emulator.advance()
    assert await balance(at) == 0
    assert "ends without a credit for the rest of its period: " in caplog.text


@pytest.mark.parametrize("reduce", ["seats", "plan"])
@pytest.mark.parametrize("leave", [add_draft, void_renewal])
async def test_an_unpaid_period_is_not_credited_by_a_reduction(
    store_url: str, reduce: str, leave: Callable[[Shop], Awaitable[None] | None]
) -> None:
    """Fewer seats in a month that was never paid, and then the end: the credit bought the next plan."""
    catalog = loads(PLANS + "billing: {changes: {downgrade: now}}\n")
    async with shop(store_url, catalog=catalog) as at:
        await at.subscribed(plan="pro", seats=30)
        if (waits := leave(at)) is not None:
            await waits
        service = at.kit.subscriptions
        with pytest.raises(SubscriptionError, match=r"gives back a part .* is (draft|void)\. Ask again"):
            await (
                service.set_seats("acme", 12) if reduce == "seats" else service.change_plan("acme", "team")
            )
        at.emulator.fail_payments(await linked_of(at))
        await service.cancel("acme", immediately=True)
        at.clock.advance(timedelta(hours=2))
        at.emulator.advance()
        assert await balance(at) == 0


async def pay_out_of_band(at: Shop) -> None:
    """The renewal is paid outside of Stripe, which a person notes there."""
    at.emulator.fail_payments(await linked_of(at))
    at.clock.set(END + timedelta(hours=2))
    at.emulator.advance()
    renewal = (await at.invoices())[-1]["id"]
    await at.stripe_change(f"/v1/invoices/{renewal}/pay", paid_out_of_band="true")


async def pay_from_balance(at: Shop) -> None:
    linked = await linked_of(at)
    await at.stripe_change(f"/v1/customers/{linked}/balance_transactions", amount="-2900", currency="usd")
    at.clock.set(END + timedelta(hours=2))
    at.emulator.advance()


@pytest.mark.parametrize("pay", [pay_out_of_band, pay_from_balance])
async def test_a_month_that_is_paid_without_a_charge_is_credited(
    at: Shop, pay: Callable[[Shop], Awaitable[None]]
) -> None:
    """The end failed with HTTP 404 where an invoice was paid without a charge at Stripe."""
    await at.subscribed(plan="pro")
    await pay(at)
    await at.kit.subscriptions.sync("acme")
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    at.clock.advance(timedelta(hours=2))
    at.emulator.advance()
    assert await balance(at) == -2892  # 29.00 less two hours.
