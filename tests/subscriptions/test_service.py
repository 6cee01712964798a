"""The life of subscriptions, from the first call to the last: at a real emulator, over HTTP."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from drivers.delivery import kit_for, until
from drivers.shop import CATALOG, END, HALF, START, shop
from meterkit.errors import (
    NoSubscriptionError,
    QuantityError,
    SeatsInUseError,
    StripeError,
    SubscriptionError,
    UnknownPlanError,
)
from subscriptions.looks import known, linked_of, synced

if TYPE_CHECKING:
    from drivers.shop import Shop

pytestmark = pytest.mark.anyio


async def test_a_subscription_begins_once_it_is_paid_for(at: Shop) -> None:
    kit = at.kit
    assert await kit.subscriptions.get("acme") is None
    made = await kit.subscriptions.create("acme", "pro", seats=12)
    assert (made.subscription.status, made.subscription.access) == ("incomplete", "full")
    assert made.client_secret is not None
    linked = (await kit.customers.get("acme")).stripe_customer
    assert linked is not None
    assert not await kit.allows("acme", "full")

    at.emulator.confirm_payment(made.client_secret)
    found = await kit.subscriptions.sync("acme")
    assert found is not None
    assert (found.status, found.access, found.plan, found.seats) == ("active", "full", "pro", 12)
    assert (found.current_period_start, found.current_period_end) == (START, END)
    assert (found.cancel_at_period_end, found.cancel_at, found.trial_end) == (False, None, None)
    assert found.pending_change is None
    assert found == await kit.subscriptions.get("acme")
    assert await at.items(found.id) == {"price_pro": 1, "price_pro_seat": 2, "price_pro_ai_tokens": None}
    metadata = (await at.stripe_subscription(found.id))["metadata"]
    assert metadata["meterkit_customer"] == "acme"
    assert await kit.allows("acme", "full")
    (invoice,) = await kit.subscriptions.invoices("acme")
    assert (invoice.total_cents, invoice.status, invoice.currency) == (2900 + 2 * 900, "paid", "usd")


async def test_double_clicks_begin_one_subscription(at: Shop) -> None:
    made: list[str] = []

    async def click() -> None:
        made.append((await at.kit.subscriptions.create("acme", "pro")).subscription.id)

    async with anyio.create_task_group() as clicks:
        for _ in range(5):
            clicks.start_soon(click)
    assert len(set(made)) == 1
    posts = [change.path for change in at.changes()]
    assert sorted(posts) == ["/v1/customers", "/v1/subscriptions"]


@pytest.mark.parametrize("path", ["/v1/customers", "/v1/subscriptions"])
async def test_an_answer_that_is_lost_begins_nothing_twice(at: Shop, path: str) -> None:
    at.emulator.fail_next("drop", when="after", path=path)
    made = await at.kit.subscriptions.create("acme", "pro")
    assert made.subscription.status == "incomplete"
    assert sorted(change.path for change in at.changes()) == ["/v1/customers", "/v1/subscriptions"]


async def test_a_customer_is_tried_once_and_has_then_to_pay(at: Shop) -> None:
    made = await at.kit.subscriptions.create("acme", "tried")
    assert (made.subscription.status, made.subscription.access) == ("trialing", "full")
    assert made.subscription.trial_end == START + timedelta(days=14)
    assert made.client_secret is not None  # Of the means of payment for afterwards.
    assert (await at.kit.customers.get("acme")).plan == "tried"
    await at.kit.subscriptions.cancel("acme", immediately=True)
    again = await at.kit.subscriptions.create("acme", "tried")
    assert (again.subscription.status, again.subscription.trial_end) == ("incomplete", None)


async def test_an_upgrade_binds_at_once_and_is_invoiced(at: Shop, store_url: str) -> None:
    begun = await at.subscribed(plan="team", seats=7)
    assert not await at.kit.allows("acme", "full")
    at.clock.set(HALF)
    preview = await at.kit.subscriptions.preview("acme", plan="pro")
    changed = await at.kit.subscriptions.change_plan("acme", "pro")
    assert preview.proration == changed.proration
    # 7 seats of 'team' are 2 paid; 'pro' covers 10.
    cost = changed.proration
    assert (cost.credit_cents, cost.charge_cents, cost.net_cents) == (750 + 700, 1450, 0)
    assert (cost.currency, cost.effective_at) == ("usd", HALF)
    assert (changed.subscription.id, changed.subscription.plan) == (begun.id, "pro")
    assert await at.kit.allows("acme", "full")
    async with kit_for(store_url, at.url, clock=at.clock, catalog=CATALOG) as other:
        assert await other.allows("acme", "full")  # In every process.
    assert await at.items(begun.id) == {"price_pro": 1, "price_pro_ai_tokens": None}
    lines = (await at.invoices())[-1]["lines"]["data"]
    assert sum(line["amount"] for line in lines) == cost.net_cents
    assert sum(line["amount"] for line in lines if line["amount"] < 0) == -cost.credit_cents


async def test_a_change_asked_for_twice_is_done_once_and_later_again(store_url: str) -> None:
    catalog = replace(
        CATALOG, billing=replace(CATALOG.billing, changes=replace(CATALOG.billing.changes, downgrade="now"))
    )
    async with shop(store_url, catalog=catalog) as at:
        begun = await at.subscribed(plan="team")
        before = len(at.changes())

        async def click(plan: str) -> None:
            await at.kit.subscriptions.change_plan("acme", plan)

        for plan in ("pro", "team", "pro", "team"):
            async with anyio.create_task_group() as clicks:
                for _ in range(3):
                    clicks.start_soon(click, plan)
            await click(plan)
            assert f"price_{plan}" in await at.items(begun.id)
        assert len(at.changes()) - before == 4


async def test_a_lost_answer_changes_nothing_twice(at: Shop) -> None:
    begun = await at.subscribed(plan="team")
    before = len(at.changes())
    path = f"/v1/subscriptions/{begun.id}"
    at.emulator.fail_next("drop", when="after", path=path, skip=1)  # The first is the look before.
    changed = await at.kit.subscriptions.change_plan("acme", "pro")
    assert changed.subscription.plan == "pro"
    assert len(at.changes()) - before == 1
    assert len([one for one in await at.invoices() if one["billing_reason"] == "subscription_update"]) == 1


async def test_an_unpaid_upgrade_changes_nothing_and_may_be_retried(at: Shop) -> None:
    await at.subscribed(plan="team")
    linked = await linked_of(at)
    at.emulator.fail_payments(linked)
    for _ in range(2):
        with pytest.raises(StripeError) as raised:
            await at.kit.subscriptions.change_plan("acme", "pro")
        assert (raised.value.type, raised.value.code) == ("card_error", "card_declined")
        assert (await at.kit.customers.get("acme")).plan == "team"
    at.emulator.mend_payments(linked)
    assert (await at.kit.subscriptions.change_plan("acme", "pro")).subscription.plan == "pro"


async def test_a_downgrade_takes_effect_when_the_period_ends(at: Shop) -> None:
    begun = await at.subscribed(plan="pro")
    at.clock.set(HALF)
    changed = await at.kit.subscriptions.change_plan("acme", "team")
    assert (changed.proration.net_cents, changed.proration.effective_at) == (0, END)
    pending = changed.subscription.pending_change
    assert pending is not None
    assert (pending.plan, pending.seats, pending.effective_at) == ("team", 5, END)
    assert changed.subscription.plan == "pro"
    before = len(at.changes())
    again = await at.kit.subscriptions.change_plan("acme", "team")
    assert (again.subscription, len(at.changes())) == (changed.subscription, before)
    assert await at.kit.allows("acme", "full")

    at.clock.set(END - timedelta(seconds=1))
    assert await at.kit.allows("acme", "full")
    at.clock.set(END)
    assert not await at.kit.allows("acme", "full")
    at.emulator.advance()
    assert await at.items(begun.id) == {"price_team": 1, "price_team_ai_tokens": None}
    found = await synced(at)
    assert (found.plan, found.pending_change, found.seats) == ("team", None, 5)


async def test_the_plan_in_force_takes_back_what_is_scheduled(at: Shop) -> None:
    begun = await at.subscribed(plan="pro")
    for _ in range(3):  # Each time anew, whatever Stripe remembers of earlier keys.
        changed = await at.kit.subscriptions.change_plan("acme", "team")
        assert changed.subscription.pending_change is not None
        back = await at.kit.subscriptions.change_plan("acme", "pro")
        assert (back.subscription.plan, back.subscription.pending_change) == ("pro", None)
        assert (back.proration.net_cents, back.proration.effective_at) == (0, START)
        assert (await at.stripe_subscription(begun.id))["schedule"] is None
    at.clock.set(END)
    at.emulator.advance()
    assert "price_pro" in await at.items(begun.id)


async def test_seats_come_and_go_at_once_and_never_below_those_in_use(at: Shop) -> None:
    kit = at.kit
    begun = await at.subscribed(plan="pro")
    await kit.gauges.set("acme", "seats", 10)
    assert not (await kit.check("acme", "seats")).allowed
    at.clock.set(HALF)
    more = await kit.subscriptions.set_seats("acme", 13)
    assert (more.subscription.seats, more.proration.charge_cents) == (13, 3 * 450)
    assert (await kit.check("acme", "seats", 3)).allowed
    assert not (await kit.check("acme", "seats", 4)).allowed
    await kit.gauges.set("acme", "seats", 12)
    with pytest.raises(SeatsInUseError) as raised:
        await kit.subscriptions.set_seats("acme", 11)
    assert (raised.value.seats, raised.value.used) == (11, 12)
    fewer = await kit.subscriptions.set_seats("acme", 12)
    cost = fewer.proration
    assert (cost.credit_cents, cost.charge_cents, cost.net_cents) == (1350, 900, -450)
    assert (await at.items(begun.id))["price_pro_seat"] == 2
    await kit.gauges.set("acme", "seats", 4)
    none = await kit.subscriptions.set_seats("acme", 4)
    assert (none.subscription.seats, "price_pro_seat" in await at.items(begun.id)) == (10, False)
    at.clock.set(END)
    at.emulator.advance()
    # Of the seats nothing is left: what was paid for was given back.
    assert (await at.invoices())[-1]["total"] == 2900


async def test_seats_and_a_scheduled_plan_go_together(at: Shop) -> None:
    begun = await at.subscribed(plan="pro", seats=12)
    changed = await at.kit.subscriptions.change_plan("acme", "team")
    assert changed.subscription.pending_change is not None
    assert changed.subscription.pending_change.seats == 7
    at.clock.set(HALF)
    more = await at.kit.subscriptions.set_seats("acme", 15)
    assert more.subscription.seats == 15
    assert more.subscription.pending_change is not None
    assert (more.subscription.pending_change.plan, more.subscription.pending_change.seats) == ("team", 10)
    assert (more.proration.credit_cents, more.proration.charge_cents) == (900, 5 * 450)
    before = len(at.changes())
    assert (await at.kit.subscriptions.set_seats("acme", 15)).subscription == more.subscription
    assert len(at.changes()) == before
    at.clock.set(END)
    at.emulator.advance()
    assert await at.items(begun.id) == {"price_team": 1, "price_team_seat": 5, "price_team_ai_tokens": None}
    assert (await at.invoices())[-1]["total"] == 1500 + 5 * 700 + 3 * 450


async def test_a_subscription_ends_with_its_period_or_goes_on(at: Shop) -> None:
    begun = await at.subscribed(plan="pro")
    for _ in range(3):
        ending = await at.kit.subscriptions.cancel("acme")
        assert (ending.cancel_at_period_end, ending.cancel_at, ending.status) == (True, END, "active")
        assert await at.kit.subscriptions.cancel("acme") == ending
        resumed = await at.kit.subscriptions.resume("acme")
        assert (resumed.cancel_at_period_end, resumed.cancel_at) == (False, None)
        assert await at.kit.subscriptions.resume("acme") == resumed
    assert len([change for change in at.changes() if change.path.endswith(begun.id)]) == 6
    await at.kit.subscriptions.cancel("acme")
    at.clock.set(END - timedelta(seconds=1))
    assert await at.kit.allows("acme", "full")
    at.clock.set(END)
    assert not await at.kit.allows("acme", "full")
    found = await known(at)
    assert (found.status, found.access) == ("canceled", "full")
    with pytest.raises(NoSubscriptionError):
        await at.kit.subscriptions.resume("acme")
    again = await at.kit.subscriptions.create("acme", "pro")
    assert again.subscription.id != begun.id


async def test_an_end_takes_the_place_of_what_is_scheduled_and_bars_it(at: Shop) -> None:
    begun = await at.subscribed(plan="pro")
    await at.kit.subscriptions.change_plan("acme", "team")
    ending = await at.kit.subscriptions.cancel("acme")
    assert (ending.pending_change, ending.cancel_at) == (None, END)
    with pytest.raises(SubscriptionError, match="resume it"):
        await at.kit.subscriptions.change_plan("acme", "team")
    assert (await at.stripe_subscription(begun.id))["schedule"] is None
    resumed = await at.kit.subscriptions.resume("acme")
    assert (resumed.plan, resumed.pending_change) == ("pro", None)


async def test_usage_is_billed_before_an_immediate_end(at: Shop) -> None:
    begun = await at.subscribed(plan="team")
    at.clock.set(HALF + timedelta(seconds=30))
    await at.kit.record("acme", "tokens", 350)
    assert at.emulator.accepted((await at.kit.customers.get("acme")).stripe_customer or "", "ai_tokens") == 0
    ended = await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    assert (ended.id, ended.status) == (begun.id, "canceled")
    assert (await at.kit.customers.get("acme")).plan == "free"
    last = (await at.invoices())[-1]
    # 250 tokens beyond those included, 2 cents each; half of the base price is given back.
    assert sorted(line["amount"] for line in last["lines"]["data"]) == [-750, 500]
    with pytest.raises(NoSubscriptionError):
        await at.kit.subscriptions.cancel("acme", immediately=True)


async def test_an_end_waits_until_stripe_has_counted_what_was_used(at: Shop) -> None:
    await at.subscribed(plan="team")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 350)
    at.emulator.summary_lag_s = 60
    done = anyio.Event()

    async def cancel() -> None:
        await at.kit.subscriptions.cancel("acme", immediately=True)
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await until(lambda: any("event_summaries" in one.path for one in at.emulator.requests))
        assert not done.is_set()
        assert not [exchange for exchange in at.emulator.requests if exchange.method == "DELETE"]
        at.clock.advance(timedelta(seconds=61))
    assert done.is_set()


async def test_checkout_and_portal_are_pages_of_stripe(at: Shop) -> None:
    urls: Any = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example/plans"}
    with pytest.raises(NoSubscriptionError):
        await at.kit.subscriptions.portal("acme", return_url="https://app.example/")
    assert await at.kit.subscriptions.invoices("acme") == []
    page = await at.kit.subscriptions.checkout("acme", "pro", seats=12, **urls)
    assert "/c/pay/" in page.url
    assert page == await at.kit.subscriptions.checkout("acme", "pro", seats=12, **urls)
    assert page != await at.kit.subscriptions.checkout("acme", "pro", seats=11, **urls)
    at.clock.advance(timedelta(hours=23, minutes=30))
    assert page != await at.kit.subscriptions.checkout("acme", "pro", seats=12, **urls)
    await at.subscribed(plan="pro")
    portal = await at.kit.subscriptions.portal("acme", return_url="https://app.example/")
    assert portal.url
    at.clock.advance(timedelta(minutes=1))
    assert portal != await at.kit.subscriptions.portal("acme", return_url="https://app.example/")


async def test_a_preview_tells_of_the_bill_and_of_what_is_too_much(at: Shop) -> None:
    kit = at.kit
    with pytest.raises(NoSubscriptionError):
        await kit.subscriptions.preview("acme", plan="pro")
    await at.subscribed(plan="pro", seats=12)
    at.clock.set(HALF)
    await kit.gauges.set("acme", "storage", 60_000_000)
    await kit.gauges.set("acme", "seats", 11)
    before = len(at.changes())
    later = await kit.subscriptions.preview("acme", plan="team")
    assert (later.proration.net_cents, later.proration.effective_at) == (0, END)
    (over,) = later.over_limit
    assert (over.meter, over.used, over.limit) == ("storage", 60_000_000, 50_000_000)
    seats = await kit.subscriptions.preview("acme", seats=10)
    assert (seats.proration.credit_cents, seats.proration.charge_cents) == (900, 0)
    assert [(over.meter, over.used, over.limit) for over in seats.over_limit] == [("seats", 11, 10)]
    both = await kit.subscriptions.preview("acme", plan="team", seats=5)
    assert [over.meter for over in both.over_limit] == ["storage", "seats"]
    same = await kit.subscriptions.preview("acme")
    assert (same.proration.net_cents, same.proration.effective_at, same.over_limit) == (0, HALF, ())
    assert len(at.changes()) == before


async def test_what_cannot_be_asked_for_is_refused_in_words(at: Shop) -> None:
    service = at.kit.subscriptions
    for plan in ("prp", "free"):
        with pytest.raises(UnknownPlanError):
            await service.create("acme", plan)
    with pytest.raises(QuantityError):
        await service.create("acme", "pro", 0)
    with pytest.raises(SubscriptionError, match="sells no seats"):
        await service.create("acme", "tried", 6)
    for call in (
        service.change_plan("acme", "pro"),
        service.set_seats("acme", 3),
        service.cancel("acme"),
    ):
        with pytest.raises(NoSubscriptionError):
            await call
    await service.create("acme", "pro")
    for call in (service.change_plan("acme", "team"), service.set_seats("acme", 12)):
        with pytest.raises(SubscriptionError, match="incomplete"):
            await call
    assert (await service.cancel("acme")).status == "incomplete_expired"
    assert (await at.invoices())[-1]["status"] != "paid"
    assert "sk_test" not in repr(at.kit.subscriptions)


async def test_an_end_whose_answer_is_lost_is_an_end(at: Shop) -> None:
    begun = await at.subscribed(plan="pro")
    at.emulator.fail_next("drop", when="after", path=f"/v1/subscriptions/{begun.id}", skip=1)
    ended = await at.kit.subscriptions.cancel("acme", immediately=True)
    assert ended.status == "canceled"
    assert next(change.status for change in at.changes() if change.method == "DELETE") == 0
