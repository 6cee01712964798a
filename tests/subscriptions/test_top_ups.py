"""Top-ups: bought on a page or with the saved card, granted once, taken back where they are refunded."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette

from drivers.top_ups import BACK, DOLLAR, PLANS, balance, bought, cut_off, dying, opened, sold, with_card
from drivers.webhooks import hooked, hooked_kit
from meterkit import CustomerError, MeterkitError, PaymentMethodMissingError, QuantityError
from meterkit.catalog import loads
from meterkit.starlette import billing_routes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.webhooks import Hooked

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def shopping(store_url: str, card: str = "pm_card_visa") -> AsyncGenerator[Hooked]:
    """The packs are at Stripe, and the customer has a saved card."""
    async with sold(store_url) as at:
        await opened(at)
        await with_card(at, card)
        yield at


async def refund(at: Hooked, invoice: str) -> None:
    payments = await at.client.v1.invoice_payments.list_async({"invoice": invoice})
    intent = str(payments.data[0].payment.payment_intent)
    await at.client.v1.refunds.create_async({"payment_intent": intent})


async def invoiced(at: Hooked, customer: str, what: str) -> str:
    """An invoice over ten dollars that is marked as a top-up of a customer."""
    price = (await at.client.v1.prices.list_async({"lookup_keys": ["meterkit-top-up:usd:1000"]})).data[0].id
    marked: Any = {"meterkit_customer": customer, "meterkit_top_up": what}
    invoice = await at.client.v1.invoices.create_async({"customer": "cus_acme", "metadata": marked})
    await at.client.v1.invoice_items.create_async(
        {"customer": "cus_acme", "invoice": str(invoice.id), "pricing": {"price": price}}
    )
    return str(invoice.id)


@asynccontextmanager
async def browser(at: Hooked) -> AsyncGenerator[httpx.AsyncClient]:
    routes = billing_routes(at.kit, customer=lambda _: "acme", origins=["https://app.example"])
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Hooked]:
    async with shopping(store_url) as opened:
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


async def granted(at: Hooked) -> list[int]:
    """What each grant of the ledger gave, in dollars."""
    lines = await at.kit.grants.ledger("acme")
    return [line.quantity // DOLLAR for line in lines if line.entry == "grant"]


@pytest.mark.parametrize("kind", ["invoice.paid", "invoice.payment_succeeded"])
async def test_i4_a_webhook_before_its_payment_grants_nothing(store_url: str, kind: str) -> None:
    """I4: the webhook says that it is paid, and Stripe shows that it is open. Later it is granted once."""
    async with shopping(store_url, "pm_card_chargeCustomerFail") as at:
        told: list[Any] = []
        at.kit.on("payment.succeeded")(told.append)
        made = await bought(at)
        assert (made.status, made.declined, await balance(at)) == ("open", "card_declined", 0)
        assert made.url is not None
        await at.settle()
        (failed,) = (one for one in at.emulator.webhook_events if one.type == "invoice.payment_failed")
        early = at.emulator.emit(kind, {**failed.object, "status": "paid", "amount_paid": 1000})
        assert early is not None
        for _ in range(2):
            assert await at.bring(early) == [200]
            await at.kit.webhooks.work_off()
        assert await granted(at) == []
        at.emulator.confirm_payment(str(made.invoice))
        paid = [one for one in at.emulator.webhook_events if one.type.startswith("invoice.p")][-2:]
        assert [one.type for one in paid] == ["invoice.paid", "invoice.payment_succeeded"]
        for _ in range(2):
            assert await at.bring(*paid, early, *paid) == [200] * 5
            at.clock.advance(timedelta(hours=1))
            await at.settle()
            assert (await granted(at), await balance(at)) == ([10], 10 * DOLLAR)
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
        early = at.emulator.emit(
            "checkout.session.completed",
            {
                "id": session.id,
                "object": "checkout.session",
                "customer": str(session.customer),
                "mode": "payment",
                "status": "complete",
                "payment_status": "unpaid",
            },
        )
        assert early is not None
        for _ in range(2):
            assert await at.bring(early) == [200]
            await at.kit.webhooks.work_off()
        assert await granted(at) == []
        at.emulator.complete_checkout(session.id)
        after = at.emulator.webhook_events
        assert {"invoice.paid", "checkout.session.completed"} <= {one.type for one in after}
        for _ in range(2):
            assert set(await at.bring(*after, *after)) == {200}
            await at.settle()
            assert (await granted(at), await balance(at)) == ([10], 10 * DOLLAR)


@pytest.mark.parametrize("urls", [{}, BACK])
async def test_a_key_of_a_purchase_is_refused_with_another_amount(at: Hooked, urls: dict[str, Any]) -> None:
    """F-227: one key with another amount charged twice."""
    first = await at.kit.credits.buy("acme", 1000, idempotency_key="order 1", **urls)
    for _ in range(2):
        with pytest.raises(MeterkitError, match="with 5000 cents; it names a purchase of 1000 cents"):
            await at.kit.credits.buy("acme", 5000, idempotency_key="order 1", **urls)
    assert await at.kit.credits.buy("acme", 1000, idempotency_key="order 1", **urls) == first
    assert await balance(at) == (0 if urls else 10 * DOLLAR)
    paths = ("/v1/invoices", "/v1/checkout/sessions")
    done = [one for one in at.emulator.requests if one.path in paths and one.method == "POST"]
    assert len([one for one in done if one.status == 200 and not one.replayed]) == 1
    await at.kit.credits.buy("acme", 5000, idempotency_key="order 2", **urls)


@pytest.mark.parametrize(("first", "then", "amount"), [({}, BACK, 1000), (BACK, {}, 5000)])
async def test_a_key_is_refused_for_a_page_and_a_card(
    at: Hooked, first: dict[str, Any], then: dict[str, Any], amount: int
) -> None:
    """One key opened a page and charged the card: two purchases."""
    await at.kit.credits.buy("acme", 1000, idempotency_key="order 1", **first)
    kind = "on a page" if first else "with the saved card"
    for _ in range(2):
        with pytest.raises(MeterkitError, match=f"a purchase of 1000 cents {kind}"):
            await at.kit.credits.buy("acme", amount, idempotency_key="order 1", **then)
    await at.settle()
    assert await balance(at) == (0 if first else 10 * DOLLAR)


async def test_a_top_up_that_is_paid_outside_of_stripe_is_granted(store_url: str) -> None:
    """Stripe has no charge of such an invoice: the webhook failed with HTTP 404 again and again."""
    async with shopping(store_url, "pm_card_chargeCustomerFail") as at:
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
    assert await balance(at) == 10 * DOLLAR
    paid = await at.client.v1.invoices.list_async({"customer": "cus_acme", "status": "paid"})
    assert len(paid.data) == 1
    await api.close()


async def test_a_refund_takes_the_rest_back_and_reports_what_was_used(at: Hooked) -> None:
    told: list[Any] = []
    at.kit.on("top_up.refunded")(told.append)
    made = await bought(at)
    assert (made.status, made.url, made.declined) == ("paid", None, None)
    await at.kit.record("acme", "usd_charged", 3 * DOLLAR)
    await refund(at, str(made.invoice))
    await at.settle()
    assert await balance(at) == 0
    (grant,) = await at.kit.grants.list("acme")
    assert (grant.status, grant.remaining) == ("refunded", 0)
    lines = {line.entry: line.quantity for line in await at.kit.grants.ledger("acme")}
    assert lines == {"grant": 10 * DOLLAR, "burn": -3 * DOLLAR, "refund": -7 * DOLLAR}
    await at.settle()
    await at.kit.webhooks.sweep()
    await at.settle()
    await at.kit.stop()
    await at.kit.start()
    (event,) = told
    assert (event.invoice, event.credit) == (made.invoice, "usd")
    assert (event.refunded_cents, event.taken_back_cents) == (1000, 700)


async def test_a_refund_known_before_the_payment_leaves_nothing(store_url: str) -> None:
    async with sold(store_url) as at:
        await opened(at)
        await bought(at, **BACK)
        (session,) = (await at.client.v1.checkout.sessions.list_async()).data
        done = at.emulator.complete_checkout(session.id)
        await refund(at, str(done["invoice"]))
        (refunded,) = (one for one in at.emulator.webhook_events if one.type == "charge.refunded")
        await at.bring(refunded)
        await at.kit.webhooks.work_off()
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


async def test_what_cannot_be_bought_is_refused(store_url: str) -> None:
    async with sold(store_url) as at:
        with pytest.raises(QuantityError, match="found 700; allowed are 1000, 5000"):
            await bought(at, 700)
        with pytest.raises(CustomerError):
            await at.kit.credits.buy("", 1000)
        with pytest.raises(MeterkitError, match="`meterkit stripe sync` makes it"):
            await bought(at)
        await opened(at)
        with pytest.raises(PaymentMethodMissingError, match="no saved card"):
            await bought(at)
        with pytest.raises(MeterkitError, match="cancel_url: found without success_url"):
            await bought(at, cancel_url="https://app.example")
    async with hooked(store_url) as at:
        with pytest.raises(MeterkitError, match="sells no top-ups"):
            await bought(at)


async def test_the_doctor_names_amounts_that_cannot_be_bought_yet(store_url: str) -> None:
    async with sold(store_url) as at:
        problem = "Stripe has no price of these top-ups of usd: USD 10.00, USD 50.00"
        assert problem in [finding.problem for finding in (await at.kit.health()).findings]
        await opened(at)
        assert problem not in [finding.problem for finding in (await at.kit.health()).findings]


async def test_a_frontend_opens_a_page(at: Hooked) -> None:
    async with browser(at) as client:
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
    async with hooked(store_url) as at, browser(at) as client:
        refused = await client.post("/top-up", json={"amount_cents": 1000, **BACK})
        assert (refused.status_code, "retry-after" in refused.headers) == (422, False)
        assert refused.json()["errors"] == [{"field": "amount_cents", "message": "no top-ups are sold"}]


async def test_a_top_up_repays_a_debt_and_a_refund_takes_the_rest(at: Hooked) -> None:
    await bought(at)
    await at.kit.record("acme", "usd_charged", 18 * DOLLAR)
    assert await balance(at) == -8 * DOLLAR
    made = await bought(at)
    assert await balance(at) == 2 * DOLLAR
    await refund(at, str(made.invoice))
    await at.settle()
    assert await balance(at) == 0
    lines = [
        (one.entry, one.quantity)
        for one in await at.kit.grants.ledger("acme")
        if one.grant_id == made.invoice
    ]
    assert sorted(lines) == [("grant", 10 * DOLLAR), ("refund", -2 * DOLLAR), ("repayment", -8 * DOLLAR)]
