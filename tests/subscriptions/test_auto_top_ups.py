"""Automatic top-ups: with the saved card, one at a time, bounded by the month, stopped by a declined card."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.top_ups import AUTO, DOLLAR, balance, bought, cut_off, dying, night, opened, parts_of, with_card
from drivers.webhooks import hooked, hooked_kit
from faults.refusals import eventually
from meterkit import MeterkitError, StripeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from drivers.webhooks import Hooked
    from meterkit import CreditsLow

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def stocked(store_url: str, *, spent: int = 6, **settings: Any) -> AsyncGenerator[Hooked]:
    """The balance was ten dollars, bought with a saved card, and some are spent."""
    async with hooked(store_url, catalog=AUTO, **settings) as at:
        await opened(at)
        await with_card(at)
        await bought(at)
        await spend(at, spent)
        yield at


def selling(store_url: str) -> AbstractAsyncContextManager[Hooked]:
    return stocked(store_url, spent=0, flush=True)


async def has(at: Hooked, dollars: int) -> None:
    async def found() -> bool:
        return await balance(at) == dollars * DOLLAR

    await eventually(found)


async def spend(at: Hooked, dollars: int) -> None:
    await at.kit.record("acme", "usd_charged", dollars * DOLLAR)


async def payments(at: Hooked) -> int:
    found = await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "paid"})
    return len(found.data)


async def refund(at: Hooked, cents: int = 1000) -> None:
    """Give back what was bought first."""
    invoices = await at.client.v1.invoices.list_async({"customer": "cus_acme"})
    paid = await at.client.v1.invoice_payments.list_async({"invoice": str(invoices.data[-1].id)})
    intent = str(paid.data[0].payment.payment_intent)
    await at.client.v1.refunds.create_async({"payment_intent": intent, "amount": cents})


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with stocked(store_url) as opened:
        yield opened


async def test_no_more_than_the_bound_are_bought_in_a_month(store_url: str) -> None:
    async with selling(store_url) as at:
        for left in (24, 23):
            await spend(at, await balance(at) // DOLLAR - left + 20)
            await has(at, left)
        await spend(at, 22)
        await night(at)
        assert (await balance(at), await payments(at)) == (1 * DOLLAR, 3)
        at.clock.advance(timedelta(days=31))
        await night(at)
        await night(at)
        assert (await balance(at), await payments(at)) == (21 * DOLLAR, 4)


async def test_a_declined_card_stops_it_until_one_is_paid(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with selling(store_url) as at:
        told: list[Any] = []
        at.kit.on("top_up.failed")(told.append)
        at.emulator.fail_payments("cus_acme")
        await spend(at, 6)

        async def is_told() -> bool:
            return bool(told)

        await eventually(is_told)
        (event,) = told
        assert (event.credit, event.amount_cents, event.declined) == ("usd", 2000, "card_declined")
        assert event.url.startswith("https://")
        at.emulator.mend_payments("cus_acme")
        (paid,) = [one for one in at.emulator.webhook_events if one.type == "invoice.paid"]
        assert await at.bring(paid) == [200]  # Of the first one, told again: it restarts nothing.
        await at.kit.webhooks.work_off()
        await night(at)
        assert (await balance(at), await payments(at)) == (4 * DOLLAR, 1)
        at.emulator.confirm_payment(event.invoice)
        await at.settle()
        await has(at, 24)
        await spend(at, 20)
        await has(at, 24)
        assert len(told) == 1
        lines = [one for one in caplog.messages if "automatic top-up" in one]
        reason = "was declined (card_declined): the next follows a paid one"
        assert lines == [f"customer 'acme': an automatic top-up of usd {reason}"]


async def test_a_declined_card_is_logged_once_a_day_for_each_reason(
    at: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    at.emulator.fail_payments("cus_acme")
    api, _, auto = dying(at)
    for event in ("1", "2"):
        await auto.on_low("acme", "usd", event)
        await at.kit.credits.set_auto("acme", True)
    assert len([one for one in caplog.messages if "was declined (card_declined)" in one]) == 1
    await api.close()


async def test_a_customer_can_turn_it_off(store_url: str) -> None:
    async with stocked(store_url) as at:
        await at.kit.credits.set_auto("acme", False)
        await bought(at)
        await spend(at, 10)
        await night(at)
        assert await balance(at) == 4 * DOLLAR
        await at.kit.credits.set_auto("acme", True)
        await night(at)
        assert await balance(at) == 24 * DOLLAR
    async with hooked(store_url) as at:
        with pytest.raises(MeterkitError, match="has no automatic top-ups"):
            await at.kit.credits.set_auto("acme", True)


async def test_without_a_saved_card_it_waits_for_one(at: Hooked) -> None:
    (method,) = (await at.client.v1.customers.payment_methods.list_async("cus_acme")).data
    await at.client.v1.payment_methods.detach_async(method.id)
    asked: Any = {"invoice_settings": {"default_payment_method": ""}}
    await at.client.v1.customers.update_async("cus_acme", asked)
    await night(at)
    assert await balance(at) == 4 * DOLLAR
    at.emulator.add_payment_method("cus_acme")
    at.clock.advance(timedelta(days=1))
    await night(at)
    assert await balance(at) == 24 * DOLLAR


@asynccontextmanager
async def workers_of(
    at: Hooked, store_url: str, first: Callable[[], Awaitable[object]]
) -> AsyncGenerator[list[Any]]:
    """Four workers, each with a kit of its own.

    Args:
        at: the account.
        store_url: their store.
        first: what each waits for before it first changes something at Stripe.
    """
    async with AsyncExitStack() as stack:
        found: list[Any] = []
        for _ in range(4):
            kit = await stack.enter_async_context(hooked_kit(store_url, at.url, at.clock, catalog=AUTO))
            api, _, auto = parts_of(kit)
            stack.push_async_callback(api.close)
            _wait_first(api, first)
            found.append(auto)
        yield found


def _wait_first(api: Any, first: Callable[[], Awaitable[object]]) -> None:
    post, waits = api.post, [first]

    async def posts(*asked: Any, **how: Any) -> Any:
        while waits:
            await waits.pop()()
        return await post(*asked, **how)

    api.post = posts


async def entries(at: Hooked) -> list[tuple[str, int]]:
    return [(line.entry, line.quantity // DOLLAR) for line in await at.kit.grants.ledger("acme")]


async def test_i4_workers_that_hear_of_one_event_at_once_buy_one(at: Hooked, store_url: str) -> None:
    """I4: each goes on with the top-up that has begun, and all make one payment of it, and one grant."""
    all_there = asyncio.Barrier(4)
    async with workers_of(at, store_url, all_there.wait) as workers, asyncio.timeout(60):
        # Stripe may refuse a request whose key another one has in use: that worker hears of it again.
        raised = await asyncio.gather(
            *(auto.on_low("acme", "usd", "1") for auto in workers), return_exceptions=True
        )
        assert [error for error in raised if not isinstance(error, StripeError | None)] == []
        for auto in workers:
            await auto.on_low("acme", "usd", "1")
        await at.settle()
        await night(at)
        assert (await balance(at), await payments(at)) == (24 * DOLLAR, 2)
        found = await at.client.v1.invoices.list_async({"customer": "cus_acme"})
        assert len(found.data) == 2
        assert sorted(await entries(at)) == [("burn", -6), ("grant", 10), ("grant", 20)]
        # It counts as one of the two of this month.
        for event, paid in (("2", 3), ("3", 3)):
            for auto in workers:
                await auto.on_low("acme", "usd", event)
            assert await payments(at) == paid
    assert await balance(at) == 44 * DOLLAR


@pytest.mark.parametrize("step", range(1, 5))
async def test_i4_one_that_is_cut_off_is_charged_and_granted_once(at: Hooked, step: int) -> None:
    """I4: the event comes again; what had begun goes on."""
    api, _, auto = dying(at)
    with cut_off(api, after=step):
        await auto.on_low("acme", "usd", "1")
    await auto.on_low("acme", "usd", "2")  # One at a time.
    await auto.on_low("acme", "usd", "1")
    await at.settle()
    await night(at)
    await api.close()
    assert (await balance(at), await payments(at)) == (24 * DOLLAR, 2)


async def test_i4_an_abandoned_top_up_is_taken_over_unchanged(at: Hooked) -> None:
    """I4: its process never came back, and Stripe has an invoice of it that is paid or not."""
    api, _, auto = dying(at)
    with cut_off(api, after=3):  # Nothing is paid yet.
        await auto.on_low("acme", "usd", "1")
    for minutes, paid in ((59, 1), (1, 2)):
        at.clock.advance(timedelta(minutes=minutes))
        await auto.on_low("acme", "usd", "2")
        assert await payments(at) == paid
    found = await at.client.v1.invoices.list_async({"customer": "cus_acme"})
    assert len(found.data) == 2
    assert await balance(at) == 24 * DOLLAR
    await api.close()


@pytest.mark.parametrize(("cents", "dollars"), [(1000, 0), (400, 22)])
async def test_who_gets_all_the_money_back_is_not_charged_again(
    store_url: str, cents: int, dollars: int
) -> None:
    async with stocked(store_url, spent=4) as at:
        await refund(at, cents)
        await at.settle()
        await night(at)
        assert await balance(at) == dollars * DOLLAR
        await bought(at)
        await spend(at, await balance(at) // DOLLAR - 4)
        at.clock.advance(timedelta(days=1))
        await night(at)
        assert await balance(at) == 24 * DOLLAR


@pytest.mark.parametrize(("step", "dollars"), [(3, 0), (4, 20)])
async def test_a_refund_stops_one_that_has_begun(at: Hooked, step: int, dollars: int) -> None:
    """Cut off before the card is charged, nothing is charged later; cut off after that, it is granted."""
    api, _, auto = dying(at)
    with cut_off(api, after=step):
        await auto.on_low("acme", "usd", "1")
    await refund(at)
    (back,) = [one for one in at.emulator.webhook_events if one.type == "charge.refunded"]
    assert await at.bring(back) == [200]
    await at.kit.webhooks.work_off()
    at.clock.advance(timedelta(hours=2))
    for event in ("1", "2"):
        await auto.on_low("acme", "usd", event)
    await at.settle()
    await night(at)
    await api.close()
    assert (await balance(at), await payments(at)) == (dollars * DOLLAR, 1 + (dollars > 0))


async def test_a_separate_worker_tops_up_beside_the_apps_handlers(store_url: str) -> None:
    # With METERKIT_FLUSH=off in the app and `meterkit worker`, only the nightly sync topped up.
    low: list[str] = []
    async with hooked(store_url, catalog=AUTO) as at:
        await opened(at)
        await with_card(at)
        await bought(at)

        @at.kit.on("credits.low")
        def note(event: CreditsLow) -> None:
            low.append(event.customer)

        await spend(at, 6)
        worker = hooked_kit(store_url, at.url, at.clock, catalog=AUTO)
        working = asyncio.create_task(worker.webhooks.tasks["webhooks"]())
        await asyncio.sleep(0)
        async with worker:
            await has(at, 24)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await eventually(lambda: low == ["acme"])


async def test_top_ups_go_on_until_a_debt_is_repaid(store_url: str) -> None:
    async with selling(store_url) as at:
        await spend(at, 30)
        await has(at, 20)
        assert await payments(at) == 3
