"""Nothing for nothing: no order of acts has more than the money that came, and stayed, pays for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from drivers.gains import CATALOG, DAY, HOUR, WHOLE, Gainer
from drivers.gains import PLANS as GAINS
from drivers.shop import END, HALF, PLANS, START, Shop, shop
from meterkit import MeterMiddleware, PaymentMethodMissingError, SubscriptionError, identify
from meterkit.catalog import Catalog, loads
from subscriptions.looks import linked_of, synced

pytestmark = pytest.mark.anyio


@pytest.fixture
def gainer(gains: Shop) -> Gainer:
    return Gainer(at=gains)


@pytest.fixture
async def gains(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG) as opened:
        yield opened


@pytest.mark.parametrize(
    ("catalog", "end"),
    [
        pytest.param(CATALOG, "cancel back", id="prorated, cancel back"),
        pytest.param(WHOLE, "portal invoice", id="whole, portal invoice"),
    ],
)
async def test_a_month_given_back_is_not_included_again(store_url: str, catalog: Catalog, end: str) -> None:
    async with shop(store_url, catalog=catalog) as at:
        gainer = Gainer(at=at)
        await gainer.do("create pro")
        assert gainer.taken == 1_210
        at.clock.advance(HOUR)
        await gainer.do(end)
        before = gainer.taken
        at.clock.advance(HOUR)
        await gainer.do("create pro")
        assert gainer.taken - before == 2 + 1  # An hour of 720 pays for 1.39 requests and 0.29 credits.
        await gainer.do("wait 744")
        assert gainer.taken - before == 1_210 + 2 + 1


async def test_unused_credit_goes_back_with_the_money(store_url: str) -> None:
    async with shop(store_url, catalog=WHOLE) as at:
        for credits_ in (1, 2):  # One for each hour, of the grant that lives for 61 days.
            await at.subscribed(plan="pro")
            await at.kit.consume("acme", "requests")
            at.clock.advance(HOUR)
            await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
            assert (await at.kit.usage("acme"))["balance"] == {"usd": credits_}
        await at.subscribed(plan="pro")
        assert (await at.kit.usage("acme"))["balance"] == {"usd": 210 + 2}


async def test_a_plan_without_a_price_includes_its_quantity_once(gainer: Gainer) -> None:
    for _ in range(4):
        await gainer.do("create payg")
        gainer.at.clock.advance(HOUR)
        await gainer.do("cancel now")
    await gainer.do("create payg")
    assert gainer.taken <= 50 + 4 + 10
    await gainer.do("wait 744")


async def test_a_month_that_was_kept_is_included_again(gainer: Gainer) -> None:
    """The money of two months pays for two months."""
    await gainer.do("create pro")
    for end in ("cancel now", "portal keep"):
        gainer.at.clock.advance(DAY)
        before = gainer.taken
        await gainer.do(end)
        await gainer.do("create pro")
        assert gainer.taken - before >= 1_210


async def test_what_was_overdrawn_is_made_up_for_once(gains: Shop) -> None:
    """A smaller plan makes up for it over several periods, also where it ends and begins again."""
    await gains.subscribed(plan="pro")
    assert (await gains.kit.consume("acme", "requests", 252)).allowed
    gains.clock.advance(HOUR)
    await gains.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    await gains.subscribed(plan="team")
    given = list[object]()
    for _ in range(4):  # 250 of 252 requests were not paid.
        given.append((await gains.kit.usage("acme"))["meters"]["requests"]["included"])
        await gains.kit.subscriptions.cancel("acme")
        gains.go(31 * DAY)
        await gains.kit.subscriptions.sync("acme")
        await gains.subscribed(plan="team")
    assert given == [0, 0, 50, 100]


@pytest.mark.parametrize(
    "acts",
    [
        ["create pro", "portal anew", "wait 30", "portal anew", "cancel back", "late cancel", "create pro"],
        [
            "create payg",
            "cancel now",
            "create payg",
            "change pro",
            "late anew",
            "portal invoice",
            "create pro",
        ],
    ],
)
async def test_no_order_of_acts_gives_more_than_the_money_pays_for(gainer: Gainer, acts: list[str]) -> None:
    for act in (*acts, "wait 744"):
        await gainer.do(act)
    assert gainer.taken <= await gainer.paid_for(), gainer.acts


async def test_a_key_that_reads_no_invoices_is_told(gainer: Gainer, caplog: pytest.LogCaptureFixture) -> None:
    await gainer.do("create pro")
    gainer.at.clock.advance(HOUR)
    await gainer.portal("invoice")
    gainer.at.emulator.fail_next("error", path="/v1/invoices", status=403, times=1)
    await gainer.at.kit.subscriptions.sync("acme")
    await gainer.do("create pro")
    assert gainer.taken == 2 * 1_210
    assert "allow the key to read invoices" in caplog.text


async def left(at: Shop) -> int:
    """Included requests that are left; live credits pay for more."""
    usage = await at.kit.usage("acme")
    remaining = usage["meters"]["requests"]["remaining"]
    assert isinstance(remaining, int)
    return remaining - usage["balance"]["usd"]


async def test_the_default_plan_is_included_once_a_month(gains: Shop) -> None:
    """Who begins a subscription and ends it again has the rest of the month, not another one."""
    assert (await gains.kit.consume("acme", "requests", 7)).allowed
    given = list[int]()
    for plan in ("payg", "pro", "payg"):
        gains.clock.advance(HOUR)
        await gains.subscribed(plan=plan)
        assert (await gains.kit.consume("acme", "requests")).allowed
        gains.clock.advance(HOUR)
        await gains.kit.subscriptions.cancel("acme", immediately=True, give_back=plan == "pro")
        given.append(await left(gains))
        await gains.kit.consume("acme", "requests")
    assert given == [3, 2, 1]
    gains.clock.set(END)
    assert await left(gains) == 10
    # Where nothing is used meanwhile, the counters go on.
    assert (await gains.kit.consume("acme", "requests", 7)).allowed
    begun = await gains.subscribed(plan="payg")
    await gains.stripe_delete(f"/v1/subscriptions/{begun.id}")
    await gains.kit.subscriptions.sync("acme")
    assert await left(gains) == 3


COLLECTED = {"auto_advance": "true"}


@pytest.mark.parametrize(
    ("renewal", "given"),
    [
        pytest.param({"auto_advance": "false"}, 1 + 1, id="never collected"),
        pytest.param(COLLECTED, 1_210, id="collected"),
        pytest.param({**COLLECTED, "discounts[0][coupon]": "FREE"}, 1 + 1, id="fully discounted"),
    ],
)
async def test_a_renewal_without_money_is_not_paid(
    gainer: Gainer, renewal: dict[str, str], given: int
) -> None:
    """Stripe stops the collection of a draft if its subscription is canceled."""
    await gainer.do("create pro")
    gainer.at.clock.set(END + HOUR / 6)
    await gainer.do("wait 0")
    (draft,) = await gainer.at.stripe_list("/v1/invoices", status="draft")
    await gainer.at.stripe_change("/v1/coupons", id="FREE", percent_off="100", duration="once")
    await gainer.at.stripe_change(f"/v1/invoices/{draft['id']}", **renewal)
    await gainer.do("portal keep")
    gainer.at.clock.advance(HOUR)
    before = gainer.taken
    await gainer.do("create pro")
    assert gainer.taken - before == given


FREE = 10
MINUTES = timedelta(minutes=5)


async def balance(at: Shop) -> int:
    """What a customer has at Stripe: below 0 is a credit."""
    linked = await linked_of(at)
    (found,) = [one for one in await at.stripe_list("/v1/customers") if one["id"] == linked]
    owed: int = found["balance"]
    return owed


async def balance_at_end(at: Shop, *, give_back: bool = True) -> int:
    """The same once the subscription has ended at once, and its last invoice is final."""
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=give_back)
    at.go(timedelta(hours=2))
    return await balance(at)


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
        assert (await at.subscribed(plan="team")).status == "active"
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
        assert (await at.kit.subscriptions.create("acme", "pro", 20)).subscription.status == "incomplete"
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        await at.subscribed(plan="pro")
        await at.fail_payments()
        at.clock.advance(timedelta(days=31))
        found = await synced(at)
        assert (found.status, found.access, await balance_at_end(at)) == ("past_due", "grace", 0)


async def test_one_subscribe_page_is_open_so_one_trial_is_given(store_url: str) -> None:
    async with shop(store_url, start=HALF) as at:

        async def page(number: int) -> str:
            urls: Any = {"success_url": f"https://app.example/{number}", "cancel_url": "https://app.example/"}
            return (await at.kit.subscriptions.checkout("acme", "tried", **urls)).id

        pages = [await page(number) for number in (0, 1, 0, 1)]
        assert (len(set(pages)), await page(1)) == (4, pages[-1])
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
    assert (await service.create("acme", "tried")).subscription.status == "trialing"
    at.clock.advance(timedelta(days=3))
    preview = await service.preview("acme", plan="pro")
    with pytest.raises(PaymentMethodMissingError):  # Nothing to pay with yet.
        await service.change_plan("acme", "pro")
    found = await synced(at)
    assert (found.plan, found.status) == ("tried", "trialing")
    at.emulator.add_payment_method(await linked_of(at), "pm_card_visa")
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
    linked = await at.fail_payments()
    at.go(timedelta(days=32))
    overdue = await synced(at)
    before = len(at.changes())
    for _ in range(2):
        with pytest.raises(SubscriptionError, match="past_due: it must be paid for first"):
            await at.kit.subscriptions.set_seats("acme", seats)
    assert (len(at.changes()), await synced(at)) == (before, overdue)
    assert (overdue.status, overdue.access, overdue.seats) == ("past_due", "grace", 5)
    at.emulator.mend_payments(linked)
    at.clock.advance(timedelta(days=8))  # Stripe tries again.
    at.emulator.advance()
    assert (await synced(at)).status == "active"
    assert (await at.kit.subscriptions.set_seats("acme", seats)).proration is not None


async def add_draft(at: Shop) -> None:
    """Let the renewal be made, which stays a draft for an hour."""
    at.go(END + MINUTES)


async def test_a_renewal_that_is_still_a_draft_is_not_credited(at: Shop) -> None:
    """F-22f: the month was credited as paid, its payment failed, and the credit bought the next plan."""
    await at.subscribed(plan="pro", seats=20)
    linked = await linked_of(at)
    await add_draft(at)
    assert [invoice["status"] for invoice in await at.invoices()] == ["paid", "draft"]
    at.emulator.fail_payments(linked)
    assert await balance_at_end(at) == 0


async def void_renewal(at: Shop) -> None:
    """Let the renewal fail, and void it: the subscription is active again."""
    await at.fail_payments()
    at.go(END + timedelta(hours=2))
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


async def credit_open_renewal(at: Shop) -> None:
    """Let the renewal fail, credit a part of it by a credit note, and let the rest be paid."""
    await at.fail_payments()
    at.go(END + timedelta(hours=2))
    at.emulator.mend_payments(await linked_of(at))
    renewal = (await at.invoices())[-1]["id"]
    await at.stripe_change("/v1/credit_notes", invoice=renewal, amount="1000")
    await at.stripe_change(f"/v1/invoices/{renewal}/pay")


@pytest.mark.parametrize("undo", [void_renewal, add_credit_note, refund, credit_open_renewal])
async def test_money_that_went_back_or_never_came_is_not_credited(
    at: Shop, undo: Callable[[Shop], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    await at.subscribed(plan="pro")
    at.clock.advance(timedelta(days=2))
    await undo(at)
    assert ((await synced(at)).status, await balance_at_end(at)) == ("active", 0)
    assert "ends without a credit for the rest of its period: " in caplog.text


@pytest.mark.parametrize("reduce", ["seats", "plan"])
@pytest.mark.parametrize("leave", [add_draft, void_renewal])
async def test_an_unpaid_period_is_not_credited_by_a_reduction(
    store_url: str, reduce: str, leave: Callable[[Shop], Awaitable[None]]
) -> None:
    """Fewer seats in a month that was never paid, and then the end: the credit bought the next plan."""
    catalog = loads(PLANS + "billing: {changes: {downgrade: now}}\n")
    async with shop(store_url, catalog=catalog) as at:
        await at.subscribed(plan="pro", seats=30)
        await leave(at)
        service = at.kit.subscriptions
        with pytest.raises(SubscriptionError, match=r"gives back a part .* is (draft|void)\. Ask again"):
            await (
                service.set_seats("acme", 12) if reduce == "seats" else service.change_plan("acme", "team")
            )
        await at.fail_payments()
        assert await balance_at_end(at, give_back=False) == 0


async def test_an_unpaid_period_is_not_credited_by_a_repair(store_url: str) -> None:
    """A base price counted twice in an unpaid period: the repair gave half of it back."""
    async with shop(store_url) as at:
        begun = await at.subscribed(plan="team")
        found = (await at.stripe_subscription(begun.id))["items"]["data"]
        (base,) = [item["id"] for item in found if item["price"]["id"] == "price_team"]
        changed = {"items[0][id]": base, "items[0][quantity]": "2", "proration_behavior": "none"}
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", **changed)
        await void_renewal(at)
        with pytest.raises(SubscriptionError, match=r"gives back a part .* is void\. Ask again"):
            await at.kit.subscriptions.repair("acme")
        assert (await at.items(begun.id))["price_team"] == 2
        assert await balance_at_end(at, give_back=False) == 0


async def pay_out_of_band(at: Shop) -> None:
    """The renewal is paid outside of Stripe, which a person notes there."""
    await at.fail_payments()
    at.go(END + timedelta(hours=2))
    await at.stripe_change(f"/v1/invoices/{(await at.invoices())[-1]['id']}/pay", paid_out_of_band="true")


async def pay_from_balance(at: Shop) -> None:
    linked = await linked_of(at)
    await at.stripe_change(f"/v1/customers/{linked}/balance_transactions", amount="-2900", currency="usd")
    at.go(END + timedelta(hours=2))


@pytest.mark.parametrize("pay", [pay_out_of_band, pay_from_balance])
async def test_a_month_paid_otherwise_is_credited(at: Shop, pay: Callable[[Shop], Awaitable[None]]) -> None:
    """The end failed with HTTP 404 where an invoice was paid without a charge at Stripe."""
    await at.subscribed(plan="pro")
    await pay(at)
    await at.kit.subscriptions.sync("acme")
    assert await balance_at_end(at) == -2892  # 29.00 less two hours.


ROUTED = loads(
    GAINS
    + """
  light:
    rank: 2
    price: {amount_cents: 500, interval: month, stripe_price: price_light}
    meters: {requests: {included: 20, overage: deny}, tokens: {included: 0, overage: deny}}
routes: [{match: "*", consume: {requests: 1}}]
"""
)


@asynccontextmanager
async def asking(at: Shop) -> AsyncGenerator[Callable[[], Awaitable[httpx.Response]]]:
    """Ask the customer's app; each response."""
    app = MeterMiddleware(PlainTextResponse("served"), kit=at.kit, identify=identify.header("x-customer-id"))
    transport = httpx.ASGITransport(app)
    headers = {"x-customer-id": "acme"}
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
        yield lambda: client.get("/")


async def end_at_once(at: Shop, plan: str, used: int) -> None:
    """Use up the free plan, subscribe in mid-month, use some, and cancel."""
    assert (await at.kit.consume("acme", "requests", FREE)).allowed
    await at.subscribed(plan=plan)
    assert (await at.kit.consume("acme", "requests", used)).allowed
    at.clock.advance(HOUR)
    await at.kit.subscriptions.cancel("acme", immediately=True)


async def test_a_refusal_after_an_end_waits_for_the_default_plan(store_url: str) -> None:
    async with shop(store_url, catalog=ROUTED, start=HALF) as at, asking(at) as ask:
        await end_at_once(at, "light", 15)
        refused = await ask()
        assert refused.status_code == 429
        assert refused.json()["detail"].endswith(
            "allows 0 requests in this billing period. Retry in 15 days."
        )
        wait = timedelta(seconds=int(refused.headers["retry-after"]))
        assert wait == END - HALF - HOUR
        assert f";t={refused.headers['retry-after']}" in refused.headers["ratelimit"]
        assert (await at.kit.check("acme", "requests", FREE + 1)).retry_after is None
        at.clock.advance(wait - timedelta(seconds=1))
        assert (await ask()).status_code == 429
        at.clock.advance(timedelta(seconds=1))
        assert (await ask()).status_code == 200


async def test_a_credits_refusal_after_an_end_waits_likewise(gains: Shop) -> None:
    gains.clock.set(HALF)
    await end_at_once(gains, "pro", 1_210)
    refused = await gains.kit.consume("acme", "requests")
    assert (refused.reason, refused.retry_after) == ("credits", END - HALF - HOUR)


async def test_a_refusal_before_a_scheduled_end_knows_the_next_plan(gains: Shop) -> None:
    await gains.subscribed(plan="pro")
    await gains.kit.subscriptions.cancel("acme")
    assert (await gains.kit.consume("acme", "requests", 1_210)).allowed
    waits = [(await gains.kit.check("acme", "requests", asked)).retry_after for asked in (FREE, FREE + 1)]
    assert waits == [END - START, None]


async def test_a_refusal_waits_for_recurring_credits(gains: Shop) -> None:
    await gains.subscribed(plan="team")
    assert (await gains.kit.consume("acme", "requests", 120)).allowed
    waits = [(await gains.kit.check("acme", "requests", asked)).retry_after for asked in (120, 121)]
    assert waits == [END - START, None]
