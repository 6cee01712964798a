"""Top-ups, bought or automatic: granted once, taken back if refunded, stopped by a declined card."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from drivers.billing_browser import browser
from drivers.top_ups import (
    AUTO,
    BACK,
    DOLLAR,
    PLANS,
    balance,
    bought,
    cut_off,
    dying,
    entries,
    invoiced,
    night,
    opened,
    refund,
    sold,
    with_card,
)
from drivers.webhooks import Hooked, hooked, hooked_kit
from faults.refusals import eventually
from meterkit import (
    CreditsLow,
    CustomerError,
    MeterkitError,
    PaymentMethodMissingError,
    QuantityError,
    StripeError,
)
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
FAILS = "pm_card_chargeCustomerFail"


@asynccontextmanager
async def shopping(store_url: str, card: str = "pm_card_visa", **settings: Any) -> AsyncGenerator[Hooked]:
    """The packs are at Stripe, and the customer has a saved card."""
    async with sold(store_url, **settings) as at:
        await opened(at)
        await with_card(at, card)
        yield at


@asynccontextmanager
async def stocked(store_url: str, *, spent: int = 6, **settings: Any) -> AsyncGenerator[Hooked]:
    """The balance was ten dollars, bought with a saved card, and some are spent; top-ups are automatic."""
    async with hooked(store_url, catalog=AUTO, **settings) as at:
        await opened(at)
        await with_card(at)
        await bought(at)
        await spend(at, spent)
        yield at


async def has(at: Hooked, dollars: int) -> None:
    async def found() -> bool:
        return await balance(at) == dollars * DOLLAR

    await eventually(found)


async def spend(at: Hooked, dollars: int) -> None:
    await at.kit.record("acme", "usd_charged", dollars * DOLLAR)


async def payments(at: Hooked) -> int:
    return len((await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "paid"})).data)


async def bring_refund(at: Hooked) -> None:
    """Work off the webhook of the refund alone."""
    (back,) = [one for one in at.emulator.webhook_events if one.type == "charge.refunded"]
    assert await at.bring(back) == [200]
    await at.kit.webhooks.work_off()


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with shopping(store_url) as opened:
        yield opened


@pytest.fixture
async def auto(store_url: str) -> AsyncGenerator[Hooked]:
    async with stocked(store_url) as opened:
        yield opened


async def test_i4_however_often_a_payment_is_told_it_is_granted_once(at: Hooked) -> None:
    """I4: nothing is billed, or given, twice."""
    await bought(at)
    for _ in range(2):
        await at.settle()
        await at.kit.webhooks.sweep()
        await at.settle()
    assert await balance(at) == 10 * DOLLAR
    for event in at.emulator.webhook_events:
        if event.type.startswith("invoice."):
            await at.bring(event)
    await at.settle()
    assert await balance(at) == 10 * DOLLAR


@pytest.mark.parametrize("kind", ["invoice.paid", "invoice.payment_succeeded"])
async def test_i4_a_webhook_before_its_payment_grants_nothing(store_url: str, kind: str) -> None:
    """I4: the webhook says that it is paid, and Stripe shows that it is open. Later it is granted once."""
    async with shopping(store_url, FAILS) as at:
        told: list[Any] = []
        at.kit.on("payment.succeeded")(told.append)
        made = await bought(at)
        assert (made.status, made.declined, await balance(at)) == ("open", "card_declined", 0)
        assert made.url is not None
        await at.settle()
        (failed,) = (one for one in at.emulator.webhook_events if one.type == "invoice.payment_failed")
        early = at.emulator.emit(kind, {**failed.object, "status": "paid", "amount_paid": 1000})
        for _ in range(2):
            assert await at.bring(early) == [200]
            await at.kit.webhooks.work_off()
        assert await entries(at) == []
        at.emulator.confirm_payment(str(made.invoice))
        paid = [one for one in at.emulator.webhook_events if one.type.startswith("invoice.p")][-2:]
        assert [one.type for one in paid] == ["invoice.paid", "invoice.payment_succeeded"]
        for _ in range(2):
            assert await at.bring(*paid, early, *paid) == [200] * 5
            at.clock.advance(timedelta(hours=1))
            await at.settle()
            assert (await entries(at), await balance(at)) == ([("grant", 10)], 10 * DOLLAR)
        assert await at.kit.webhooks.dead() == []
        await at.kit.stop()
        await at.kit.start()
        assert [event.invoice for event in told] == [made.invoice]


async def test_i4_a_page_completed_before_its_payment_grants_nothing(store_url: str) -> None:
    """I4: as where the customer pays from a bank account, and the money comes days later."""
    async with sold(store_url) as at:
        await opened(at)
        await bought(at, **BACK)
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        shown = {"id": session.id, "object": "checkout.session", "customer": str(session.customer)}
        unpaid = {"mode": "payment", "status": "complete", "payment_status": "unpaid"}
        early = at.emulator.emit("checkout.session.completed", {**shown, **unpaid})
        for _ in range(2):
            assert await at.bring(early) == [200]
            await at.kit.webhooks.work_off()
        assert await entries(at) == []
        at.emulator.complete_checkout(session.id)
        after = at.emulator.webhook_events
        assert {"invoice.paid", "checkout.session.completed"} <= {one.type for one in after}
        for _ in range(2):
            assert set(await at.bring(*after, *after)) == {200}
            await at.settle()
            assert (await entries(at), await balance(at)) == ([("grant", 10)], 10 * DOLLAR)


@pytest.mark.parametrize("urls", [{}, BACK])
async def test_a_key_of_a_purchase_is_refused_with_another_amount(at: Hooked, urls: dict[str, Any]) -> None:
    """F-227: one key with another amount charged twice."""
    first = await bought(at, 1000, idempotency_key="order 1", **urls)
    for _ in range(2):
        with pytest.raises(MeterkitError, match="with 5000 cents; it names a purchase of 1000 cents"):
            await bought(at, 5000, idempotency_key="order 1", **urls)
    assert await bought(at, 1000, idempotency_key="order 1", **urls) == first
    assert await balance(at) == (0 if urls else 10 * DOLLAR)
    paths = ("/v1/invoices", "/v1/checkout/sessions")
    done = [one for one in at.emulator.requests if one.path in paths and one.method == "POST"]
    assert len([one for one in done if one.status == 200 and not one.replayed]) == 1
    await bought(at, 5000, idempotency_key="order 2", **urls)


@pytest.mark.parametrize(("first", "then", "amount"), [({}, BACK, 1000), (BACK, {}, 5000)])
async def test_a_key_is_refused_for_a_page_and_a_card(
    at: Hooked, first: dict[str, Any], then: dict[str, Any], amount: int
) -> None:
    """One key opened a page and charged the card: two purchases."""
    await bought(at, 1000, idempotency_key="order 1", **first)
    kind = "on a page" if first else "with the saved card"
    for _ in range(2):
        with pytest.raises(MeterkitError, match=f"a purchase of 1000 cents {kind}"):
            await bought(at, amount, idempotency_key="order 1", **then)
    await at.settle()
    assert await balance(at) == (0 if first else 10 * DOLLAR)


async def test_a_top_up_that_is_paid_outside_of_stripe_is_granted(store_url: str) -> None:
    """Stripe has no charge of such an invoice: the webhook failed with HTTP 404 again and again."""
    async with shopping(store_url, FAILS) as at:
        made = await bought(at)
        assert made.status == "open"
        await at.client.v1.invoices.pay_async(str(made.invoice), {"paid_out_of_band": True})
        await at.settle()
        assert await balance(at) == 10 * DOLLAR


@pytest.mark.parametrize("step", range(1, 5))
async def test_i4_an_interrupted_purchase_is_charged_once(at: Hooked, step: int) -> None:
    """I4: whatever step the process dies after, the webhook or the app's next try ends it."""
    api, sells, _ = dying(at)
    with cut_off(api, after=step):
        await sells.buy("acme", 1000, idempotency_key="order 1")
    await at.settle()
    await bought(at, idempotency_key="order 1")
    await at.settle()
    assert (await balance(at), await payments(at)) == (10 * DOLLAR, 1)
    await api.close()


async def test_a_refund_takes_the_rest_back_and_reports_what_was_used(at: Hooked) -> None:
    told: list[Any] = []
    at.kit.on("top_up.refunded")(told.append)
    made = await bought(at)
    assert (made.status, made.url, made.declined) == ("paid", None, None)
    await spend(at, 3)
    await refund(at)
    await at.settle()
    assert await balance(at) == 0
    (grant,) = await at.kit.grants.list("acme")
    assert (grant.status, grant.remaining) == ("refunded", 0)
    assert await entries(at) == [("burn", -3), ("grant", 10), ("refund", -7)]
    await at.settle()
    await at.kit.webhooks.sweep()
    await at.settle()
    await at.kit.stop()
    await at.kit.start()
    (event,) = told
    assert (event.invoice, event.credit) == (made.invoice, "usd")
    assert (event.refunded_cents, event.taken_back_cents) == (1000, 700)


@pytest.mark.parametrize(
    ("how", "spent", "back", "left"),
    [
        ("refund", 10, 10, 0),
        ("refund", 6, 10, 0),
        ("refund", 8, 5, 5),  # Two were left, and three of the five are taken of what is given back.
        ("dispute", 6, 10, 0),
        ("void", 10, 0, 0),
        ("void", 6, 0, 0),
    ],
)
async def test_i4_a_correction_returns_nothing_refunded(
    at: Hooked, how: str, spent: int, back: int, left: int
) -> None:
    invoice = str((await bought(at)).invoice)
    await spend(at, spent)
    if how == "refund":
        await refund(at, invoice, back * 100)
    elif how == "dispute":
        at.emulator.dispute_payment(invoice)
    for _ in range(2 * (how == "void")):
        await at.kit.grants.void("acme", invoice)
    await at.settle()
    for nth, part in enumerate((1, spent - 1)):  # In two parts it is the same.
        taken = {"usd_charged": part * DOLLAR}
        await at.kit.correct("acme", taken, reason="counted twice", correction_id=f"c{nth}")
    await at.settle()
    await night(at)
    assert await balance(at) == left * DOLLAR
    assert sum(quantity for _, quantity in await entries(at)) == left
    (grant,) = await at.kit.grants.list("acme")
    ended = {"void": "void", "dispute": "used_up"}.get(how, "refunded")  # What came back has paid the debt.
    assert grant.status == ("active" if left else ended)


async def test_deletion_closes_pages_and_invoices_of_top_ups(at: Hooked) -> None:
    await bought(at, **BACK)
    (page,) = (await at.client.v1.checkout.sessions.list_async()).data
    at.emulator.add_payment_method("cus_acme", FAILS)
    declined = await bought(at)
    assert declined.status == "open"
    await at.kit.customers.delete("acme")
    with pytest.raises(ValueError, match="open"):
        at.emulator.complete_checkout(page.id)
    (invoice,) = (await at.client.v1.invoices.list_async({"customer": "cus_acme"})).data
    assert invoice.status == "void"


async def test_a_refund_known_before_the_payment_leaves_nothing(store_url: str) -> None:
    async with sold(store_url) as at:
        await opened(at)
        await bought(at, **BACK)
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        await refund(at, str(at.emulator.complete_checkout(session.id)["invoice"]))
        await bring_refund(at)
        assert await balance(at) == 0
        await at.settle()
        assert await balance(at) == 0


async def test_a_payment_for_another_customer_is_rejected_and_reported(at: Hooked) -> None:
    await at.client.v1.invoices.pay_async(await invoiced(at, "eve", "usd 5000"))
    await at.settle()
    assert (await balance(at), await balance(at, "eve")) == (0, 0)
    (dead,) = await at.kit.webhooks.dead()
    assert "is a top-up of customer 'eve'" in dead.why


@pytest.mark.parametrize(("percent", "dollars"), [(40, 6), (100, 0)])
async def test_no_more_is_granted_than_was_paid_for(at: Hooked, percent: int, dollars: int) -> None:
    invoice = await invoiced(at, "acme", "usd 1000")
    coupon = await at.client.v1.coupons.create_async({"percent_off": percent, "duration": "once"})
    await at.client.v1.invoices.update_async(invoice, {"discounts": [{"coupon": coupon.id}]})
    await at.client.v1.invoices.pay_async(invoice)
    await at.settle()
    assert await balance(at) == dollars * DOLLAR


async def test_a_payment_for_what_is_sold_no_more_waits_for_a_person(at: Hooked, store_url: str) -> None:
    without = loads(PLANS.replace("  usd:", "  eur:"))
    async with hooked_kit(store_url, at.url, at.clock, catalog=without) as other:
        await at.client.v1.invoices.pay_async(await invoiced(at, "acme", "usd 1000"))
        await at.bring()
        await other.webhooks.work_off()
        assert (await other.webhooks.backlog()).entries == 1
    at.clock.advance(timedelta(hours=1))
    await at.kit.webhooks.work_off()
    assert await balance(at) == 10 * DOLLAR


async def test_what_cannot_be_bought_is_refused_and_the_doctor_says_so(store_url: str) -> None:
    async with sold(store_url) as at:
        with pytest.raises(QuantityError, match="found 700; allowed are 1000, 5000"):
            await bought(at, 700)
        with pytest.raises(CustomerError):
            await at.kit.credits.buy("", 1000)
        with pytest.raises(MeterkitError, match="`meterkit stripe sync` makes it"):
            await bought(at)
        problem = "Stripe has no price for these top-ups of usd: $10.00, $50.00"
        assert problem in [finding.problem for finding in (await at.kit.health()).findings]
        await opened(at)
        assert problem not in [finding.problem for finding in (await at.kit.health()).findings]
        with pytest.raises(PaymentMethodMissingError, match="no saved card"):
            await bought(at)
        with pytest.raises(MeterkitError, match="cancel_url: found without success_url"):
            await bought(at, cancel_url="https://app.example")


async def test_a_frontend_opens_a_page(at: Hooked) -> None:
    async with browser(at.kit) as client:
        page = (await client.post("/top-up", json={"amount_cents": 1000, **BACK})).json()
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        assert page == {"url": session.url}
        other = await client.post("/top-up", json={"amount_cents": 1001, **BACK})
        found = {"field": "amount_cents", "message": "found 1001; allowed are 1000, 5000"}
        assert (other.status_code, other.json()["errors"]) == (422, [found])
        eve = {"amount_cents": 1000, **BACK, "success_url": "https://eve.example"}
        assert (await client.post("/top-up", json=eve)).json()["type"].endswith("url-not-allowed")


async def test_a_page_for_a_top_up_is_refused_where_none_is_sold(store_url: str) -> None:
    """F-22g: it was 503, which asks clients to try again."""
    async with hooked(store_url) as at, browser(at.kit) as client:
        refused = await client.post("/top-up", json={"amount_cents": 1000, **BACK})
        assert (refused.status_code, "retry-after" in refused.headers) == (422, False)
        assert refused.json()["errors"] == [{"field": "amount_cents", "message": "no top-ups are sold"}]
        with pytest.raises(MeterkitError, match="sells no top-ups"):
            await bought(at)
        with pytest.raises(MeterkitError, match="has no automatic top-ups"):
            await at.kit.credits.set_auto("acme", True)


async def test_a_top_up_repays_a_debt_and_a_refund_takes_the_rest(at: Hooked) -> None:
    await bought(at)
    await spend(at, 18)
    assert await balance(at) == -8 * DOLLAR
    made = await bought(at)
    assert await balance(at) == 2 * DOLLAR
    await refund(at, str(made.invoice))
    await at.settle()
    assert await balance(at) == 0
    ledger = await at.kit.grants.ledger("acme")
    lines = [(one.entry, one.quantity // DOLLAR) for one in ledger if one.grant_id == made.invoice]
    assert sorted(lines) == [("grant", 10), ("refund", -2), ("repayment", -8)]


async def test_no_more_than_the_bound_are_bought_in_a_month(store_url: str) -> None:
    async with stocked(store_url, spent=0, flush=True) as at:
        for left in (24, 23):
            await spend(at, await balance(at) // DOLLAR - left + 20)
            await has(at, left)
        await spend(at, 22)
        await night(at)
        assert (await balance(at), await payments(at)) == (1 * DOLLAR, 3)
        at.clock.advance(31 * DAY)
        await night(at)
        await night(at)
        assert (await balance(at), await payments(at)) == (21 * DOLLAR, 4)


async def test_a_declined_card_stops_it_until_paid(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with stocked(store_url, spent=0, flush=True) as at:
        told: list[Any] = []
        at.kit.on("top_up.failed")(told.append)
        at.emulator.fail_payments("cus_acme")
        await spend(at, 6)
        await eventually(lambda: bool(told))
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


async def test_a_decline_is_logged_once_a_day(auto: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    auto.emulator.fail_payments("cus_acme")
    api, _, tops_up = dying(auto)
    for event in ("1", "2"):
        await tops_up.on_low("acme", "usd", event)
        await auto.kit.credits.set_auto("acme", True)
    assert len([one for one in caplog.messages if "was declined (card_declined)" in one]) == 1
    await api.close()


async def test_turned_off_or_without_a_saved_card_it_waits(auto: Hooked) -> None:
    await auto.kit.credits.set_auto("acme", False)
    await bought(auto)
    await spend(auto, 10)
    await night(auto)
    assert await balance(auto) == 4 * DOLLAR
    await auto.kit.credits.set_auto("acme", True)
    (method,) = (await auto.client.v1.customers.payment_methods.list_async("cus_acme")).data
    await auto.client.v1.payment_methods.detach_async(method.id)
    asked: Any = {"invoice_settings": {"default_payment_method": ""}}
    await auto.client.v1.customers.update_async("cus_acme", asked)
    await night(auto)
    assert await balance(auto) == 4 * DOLLAR
    auto.emulator.add_payment_method("cus_acme")
    auto.clock.advance(DAY)
    await night(auto)
    assert await balance(auto) == 24 * DOLLAR


def wait_first(api: Any, first: Callable[[], Awaitable[object]]) -> None:
    """Wait before the first request that changes something at Stripe."""
    post, waits = api.post, [first]

    async def posts(*asked: Any, **how: Any) -> Any:
        while waits:
            await waits.pop()()
        return await post(*asked, **how)

    api.post = posts


async def test_i4_workers_that_hear_of_one_event_at_once_buy_one(auto: Hooked, store_url: str) -> None:
    """I4: each goes on with the top-up that has begun, and all make one payment of it, and one grant."""
    all_there, workers = asyncio.Barrier(4), list[Any]()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for _ in range(4):
            kit = await stack.enter_async_context(hooked_kit(store_url, auto.url, auto.clock, catalog=AUTO))
            api, _, tops_up = dying(replace(auto, kit=kit))
            stack.push_async_callback(api.close)
            wait_first(api, all_there.wait)
            workers.append(tops_up)
        # Stripe may refuse a request whose key another one has in use: that worker hears of it again.
        raised = await asyncio.gather(
            *(each.on_low("acme", "usd", "1") for each in workers), return_exceptions=True
        )
        assert [error for error in raised if not isinstance(error, StripeError | None)] == []
        for each in workers:
            await each.on_low("acme", "usd", "1")
        await auto.settle()
        await night(auto)
        assert (await balance(auto), await payments(auto)) == (24 * DOLLAR, 2)
        assert len((await auto.client.v1.invoices.list_async({"customer": "cus_acme"})).data) == 2
        assert await entries(auto) == [("burn", -6), ("grant", 10), ("grant", 20)]
        # It counts as one of the two of this month.
        for event in ("2", "3"):
            for each in workers:
                await each.on_low("acme", "usd", event)
            assert await payments(auto) == 3
    assert await balance(auto) == 44 * DOLLAR


@pytest.mark.parametrize("step", range(1, 5))
async def test_i4_one_that_is_cut_off_is_charged_and_granted_once(auto: Hooked, step: int) -> None:
    """I4: the event comes again; what had begun goes on."""
    api, _, tops_up = dying(auto)
    with cut_off(api, after=step):
        await tops_up.on_low("acme", "usd", "1")
    await tops_up.on_low("acme", "usd", "2")  # One at a time.
    await tops_up.on_low("acme", "usd", "1")
    await auto.settle()
    await night(auto)
    await api.close()
    assert (await balance(auto), await payments(auto)) == (24 * DOLLAR, 2)


async def test_i4_an_abandoned_top_up_is_taken_over_unchanged(auto: Hooked) -> None:
    """I4: its process never came back, and Stripe has an invoice of it that is paid or not."""
    api, _, tops_up = dying(auto)
    with cut_off(api, after=3):  # Nothing is paid yet.
        await tops_up.on_low("acme", "usd", "1")
    for minutes, paid in ((59, 1), (1, 2)):
        auto.clock.advance(timedelta(minutes=minutes))
        await tops_up.on_low("acme", "usd", "2")
        assert await payments(auto) == paid
    assert len((await auto.client.v1.invoices.list_async({"customer": "cus_acme"})).data) == 2
    assert await balance(auto) == 24 * DOLLAR
    await api.close()


@pytest.mark.parametrize(
    ("how", "cents", "dollars"), [("refund", 1000, 0), ("refund", 400, 22), ("dispute", 400, 2)]
)
async def test_who_is_refunded_is_not_charged_again(
    store_url: str, how: str, cents: int, dollars: int
) -> None:
    async with stocked(store_url, spent=4) as at:
        if how == "refund":
            await refund(at, cents=cents)
        else:
            (paid,) = (await at.client.v1.invoices.list_async({"customer": "cus_acme"})).data
            at.emulator.dispute_payment(str(paid.id), amount=cents)
        await at.settle()
        await night(at)
        assert await balance(at) == dollars * DOLLAR
        await bought(at)
        await spend(at, await balance(at) // DOLLAR - 4)
        at.clock.advance(DAY)
        await night(at)
        assert await balance(at) == 24 * DOLLAR


@pytest.mark.parametrize(("step", "dollars"), [(3, 0), (4, 20)])
async def test_a_refund_stops_one_that_has_begun(auto: Hooked, step: int, dollars: int) -> None:
    """Cut off before the card is charged, nothing is charged later; cut off after that, it is granted."""
    api, _, tops_up = dying(auto)
    with cut_off(api, after=step):
        await tops_up.on_low("acme", "usd", "1")
    await refund(auto)
    await bring_refund(auto)
    auto.clock.advance(timedelta(hours=2))
    for event in ("1", "2"):
        await tops_up.on_low("acme", "usd", event)
    await auto.settle()
    await night(auto)
    await api.close()
    assert (await balance(auto), await payments(auto)) == (dollars * DOLLAR, 1 + (dollars > 0))


async def test_a_separate_worker_tops_up_beside_the_apps_handlers(store_url: str) -> None:
    # With METERKIT_FLUSH=off in the app and `meterkit worker`, only the nightly sync topped up.
    low: list[str] = []
    async with stocked(store_url, spent=0) as at:

        @at.kit.on("credits.low")
        def note(event: CreditsLow) -> None:
            low.append(event.customer)

        await spend(at, 6)
        worker = hooked_kit(store_url, at.url, at.clock, catalog=AUTO)
        working = asyncio.create_task(worker.webhooks.tasks["webhooks"].run())
        await asyncio.sleep(0)
        async with worker:
            await has(at, 24)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await eventually(lambda: low == ["acme"])


async def test_top_ups_go_on_until_a_debt_is_repaid(store_url: str) -> None:
    async with stocked(store_url, spent=0, flush=True) as at:
        await spend(at, 30)
        await has(at, 20)
        assert await payments(at) == 3
