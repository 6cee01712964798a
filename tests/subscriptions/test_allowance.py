"""F-223, F-225: allowances and grants follow the share of a period that is paid for; caps bound bills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import httpx
import pytest
from starlette.types import Receive, Scope, Send

import meterkit
from drivers.delivery import kit_for
from drivers.period_ends import MAY, Ending, paying
from drivers.plans import plans_text
from drivers.priced_shop import metered_lines, renewed, usage_lines
from drivers.shop import END, HALF, START, Shop, sell_nothing, shop
from drivers.webhooks import hooked
from meterkit import MeterMiddleware, identify
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator

pytestmark = pytest.mark.anyio

HOUR: Final = timedelta(hours=1)
PLANS: Final = plans_text("allowance")
CATALOG: Final = loads(PLANS)
AT_ONCE: Final = loads(PLANS + "billing: {changes: {downgrade: now}}\n")
WHOLE: Final = loads(PLANS + "billing: {changes: {downgrade: now, allowance: whole}}\n")


async def given(at: Shop, customer: str = "acme") -> tuple[Any, Any, int]:
    """Included requests and tokens, and the balance of credits."""
    usage = await at.kit.usage(customer)
    meters = usage["meters"]
    return meters["requests"]["included"], meters["tokens"]["included"], usage["balance"]["usd"]


async def change(at: Shop, plan: str, when: datetime) -> None:
    at.clock.set(when)
    await at.kit.subscriptions.change_plan("acme", plan)


async def test_an_upgrade_adds_its_share_of_the_time_left(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        assert await given(at) == (100, 100, 20)
        await change(at, "pro", HALF)
        assert await given(at) == (550, 550, 100)
        assert (await at.kit.consume("acme", "requests", 530)).remaining == 20 + 100
        await at.kit.record("acme", "tokens", 560)
        tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert (tokens["overage"], tokens["overage_cents"]) == (10, 20)
        await at.kit.flush(everything=True)
        at.clock.set(END)
        assert await given(at) == (1_000, 1_000, 180)  # Before any webhook.
        await renewed(at)
        assert [invoice["total"] for invoice in await at.invoices()] == [1500, 700, 2900 + 20]
        assert await metered_lines(at) == [("price_pro_ai_tokens", 10, 2)]


async def test_the_whole_allowance_is_had_where_the_plans_file_says_so(store_url: str) -> None:
    async with shop(store_url, catalog=WHOLE) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", END - HOUR)
        assert await given(at) == (1_000, 1_000, 180)


async def test_a_downgrade_at_once_takes_back_unused_credit_only(store_url: str) -> None:
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="pro")
        await at.kit.record("acme", "requests", 1_030)  # 30 of them paid with credit.
        assert await given(at) == (1_000, 1_000, 150)
        await change(at, "team", HALF)
        # Half of 180 and half of 20 are 100; 30 are used.
        assert await given(at) == (550, 550, 70)
        used = (await at.kit.usage("acme"))["meters"]["requests"]
        assert (used["recorded"], used["remaining"]) == (1_030, 70)
        grants = await at.kit.grants.list("acme")
        assert [(grant.quantity, grant.remaining) for grant in grants] == [(100, 70)]
        assert not (await at.kit.consume("acme", "requests", 71)).allowed
        assert (await at.kit.consume("acme", "requests")).allowed
        at.clock.set(END)
        await at.kit.record("acme", "requests", 101)  # One beyond what the next period includes.
        lines = await at.kit.grants.ledger("acme")
        june = [(line.entry, line.quantity // 10**6) for line in lines if "06-01" in line.grant_id]
        assert sorted(june) == [("adjustment", -80), ("burn", -31), ("expire", -69), ("grant", 180)]


async def test_another_key_of_a_plan_gives_no_less(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A change to the new key was refused, and its plan is no other: the month is paid."""
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        renamed = loads(PLANS.replace("  pro:", "  solo:"))
        async with kit_for(store_url, at.url, clock=at.clock, catalog=renamed) as kit:
            await kit.subscriptions.sync("acme")
            assert (await kit.customers.get("acme")).missing_plan == "pro"
            await kit.check("acme", "requests")
            assert "plan 'pro', which customer 'acme' is on, is not in" in caplog.text
            assert (await kit.subscriptions.preview("acme", plan="solo")).proration.net_cents == 0
            await kit.subscriptions.change_plan("acme", "solo")
            assert (await kit.customers.get("acme")).plan == "solo"
            assert await given(replace(at, kit=kit)) == (1_000, 1_000, 180)


async def test_a_plan_that_leaves_the_file_takes_nothing_back(store_url: str) -> None:
    """Its time of the month counted as the plan's after it: 1,000 requests, and 180 credits."""
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        assert await given(at) == (550, 550, 100)
        without = loads(PLANS.partition("  team:")[0] + "  pro:" + PLANS.partition("  pro:")[2])
        async with kit_for(store_url, at.url, clock=at.clock, catalog=without) as kit:
            assert await given(replace(at, kit=kit)) == (550, 550, 100)


@pytest.mark.parametrize(("edited", "left"), [("quantity: 20", 10), ("", 7)], ids=["less", "gone"])
async def test_an_edit_takes_no_grants_back_after_a_change(store_url: str, edited: str, left: int) -> None:
    """Of 100 credits that were given 20, or 10, were left; without a change of plan all stayed."""
    grant = "grants: [{credit: usd, quantity: 180, every: period}]"
    text = PLANS.replace(grant, grant.replace("quantity: 180", edited) if edited else "")
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        await at.kit.record("acme", "requests", 560)
        assert await given(at) == (550, 550, 90)
        later = loads(text + "billing: {changes: {downgrade: now}}\n")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=later) as kit:
            now = replace(at, kit=kit)
            assert await given(now) == (550, 550, 90)
            await change(now, "team", HALF + 5 * timedelta(days=1))  # A change of plan still does.
            assert (await given(now))[2] == left


@pytest.mark.parametrize("plan", ["free", "team", None])
async def test_what_is_set_and_taken_back_by_hand_takes_nothing(store_url: str, plan: str | None) -> None:
    """Stripe charges neither: the month is paid. It counted as a change of plan, charged by the second."""
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="pro")
        customers = at.kit.customers
        at.clock.set(HALF - timedelta(days=10))
        await customers.set_plan("acme", plan)
        await customers.set_status("acme", "canceled" if plan is None else None)
        at.clock.set(HALF)
        await customers.set_plan("acme", None)
        await customers.set_status("acme", None)
        assert await given(at) == (1_000, 1_000, 180)


@pytest.mark.parametrize("by_hand", ["plan", "status"])
async def test_f_300_a_gift_of_a_day_leaves_what_was_sold(store_url: str, by_hand: str) -> None:
    """After a downgrade, a plan given for a day and taken back left the smaller plan's whole quantities."""
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="pro")
        await change(at, "team", HALF)
        assert await given(at) == (550, 550, 100)
        await at.kit.record("acme", "tokens", 540)
        at.clock.set(HALF + timedelta(days=5))
        if by_hand == "plan":
            await at.kit.customers.set_plan("acme", "pro")
            assert (await given(at))[:2] == (1_000, 1_000)
        else:
            await at.kit.customers.set_status("acme", "canceled")
            assert (await at.kit.customers.get("acme")).plan == "free"
        at.clock.set(HALF + timedelta(days=6))
        if by_hand == "plan":
            await at.kit.customers.set_plan("acme", None)
        else:
            await at.kit.customers.set_status("acme", None)
        assert (await given(at))[:2] == (550, 550)
        tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert (tokens["included"], tokens["overage"]) == (550, 0)


async def test_f_301_what_is_sold_under_a_plan_by_hand_counts(store_url: str) -> None:
    """The new plan counted from the period's first day, as if it had been sold since then."""
    async with shop(store_url, catalog=AT_ONCE) as at:
        await at.subscribed(plan="pro")
        at.clock.set(HALF - timedelta(days=1))
        await at.kit.customers.set_plan("acme", "free")
        await change(at, "team", HALF)
        assert (await at.kit.customers.get("acme")).plan == "team"
        assert await given(at) == (550, 550, 100)


async def test_credits_that_an_earlier_plans_file_gave_stay(store_url: str) -> None:
    """Where no plan of the new file grants any, they were gone, and usage that they pay for was refused."""
    async with shop(store_url, catalog=CATALOG) as at:
        await at.subscribed(plan="team")
        await at.kit.record("acme", "requests", 105)
        at.clock.set(HALF)
        without = loads("".join(line for line in PLANS.splitlines(keepends=True) if "grants:" not in line))
        async with kit_for(store_url, at.url, clock=at.clock, catalog=without) as kit:
            now = replace(at, kit=kit)
            assert (await given(now))[2] == 15
            assert (await kit.consume("acme", "requests", 6)).allowed
            assert (await given(now), await given(at)) == ((100, 100, 9), (100, 100, 9))
            at.clock.set(END)
            assert (await given(now))[2] == 0


async def test_usage_without_a_limit_counts_as_included(store_url: str) -> None:
    async with shop(store_url, catalog=AT_ONCE) as at:
        begun = await at.subscribed(plan="endless")
        await at.kit.record("acme", "requests", 7_000)
        assert (await given(at))[:2] == ("unlimited", 4_000)
        await change(at, "pro", HALF)
        assert await given(at) == (7_500, 2_500, 90)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["remaining"] == 500 + 90
        await change(at, "endless", HALF + HOUR)
        assert (await given(at))[0] == "unlimited"
        # Its plan is removed from the plans file: what it gave stays.
        without = loads(PLANS.partition("  endless:")[0])
        async with kit_for(store_url, at.url, clock=at.clock, catalog=without) as kit:
            await at.switch(await at.stripe_subscription(begun.id), "pro", "_ai_tokens")
            await kit.subscriptions.sync("acme")
            assert await given(replace(at, kit=kit)) == (7_500, 2_500, 90)


async def test_a_portal_switch_counts_from_stripes_second(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        at.clock.set(HALF)
        items = (await at.stripe_subscription(begun.id))["items"]["data"]
        item = next(one["id"] for one in items if one["price"]["id"] == "price_team")
        await at.stripe_change(f"/v1/subscription_items/{item}", price="price_pro")
        at.clock.set(HALF + 9 * HOUR)
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", description="Later")
        at.clock.set(END - HOUR)
        await at.kit.subscriptions.sync("acme")
        assert await given(at) == (550, 550, 100)


WITH_ADDON: Final = loads(
    PLANS.replace("    rank: 5\n", "    rank: 5\n    addons: [pack]\n")
    + """
addons:
  pack:
    price: {amount_cents: 500, interval: month}
    meters: {requests: {included: 100}}
    grants: [{credit: usd, quantity: 9, every: period}]
"""
)


async def test_an_addon_from_the_portal_counts_from_stripes_second(store_url: str) -> None:
    async with shop(store_url, catalog=WITH_ADDON, selling=StripeEmulator.add_plans) as at:
        begun = await at.subscribed(plan="team")
        at.clock.set(HALF)
        item = {"subscription": begun.id, "price": "price_addon_pack", "quantity": "2"}
        await at.stripe_change("/v1/subscription_items", **item)
        at.clock.set(HALF + 9 * HOUR)
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", description="Later")
        at.clock.set(END - HOUR)
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.usage("acme"))["addons"] == {"pack": 2}
        assert await given(at) == (200, 100, 29)


DAY: Final = timedelta(days=1)
MOVED: Final = plans_text("moved_grants")
PRICES: Final = ("price_pro", "price_pro_requests")
TRIAL: Final = {"trial_end": int((MAY + 14 * DAY).timestamp())}


async def change_at_stripe(at: Ending, **params: Any) -> None:
    """Change the subscription in Stripe's Dashboard; its webhooks come later."""
    (found,) = (await at.found.client.v1.subscriptions.list_async()).data
    asked: Any = params
    await at.found.client.v1.subscriptions.update_async(found["id"], asked)


async def balance(at: Ending) -> int:
    return (await at.kit.usage("acme"))["balance"]["ai"]


async def granted(at: Ending) -> int:
    """Credits that were given in all, by the ledger, once they are on file."""
    await at.kit.record("acme", "tokens", 1)
    lines = await at.kit.grants.ledger("acme")
    return sum(line.quantity for line in lines if line.entry in {"grant", "adjustment"}) // 10**6


async def test_a_cycle_begun_anew_ends_the_grant_of_its_period(store_url: str) -> None:
    async with paying(store_url, MOVED, prices=PRICES) as at:
        at.go(MAY + 10 * DAY)
        await at.kit.record("acme", "tokens", 20)
        assert await balance(at) == 37
        await change_at_stripe(at, billing_cycle_anchor={"type": "now"})
        await at.found.settle()
        # Ten of 31 days pay for 19 credits. One more was used: the new period lacks it.
        assert await balance(at) == 57 - 1
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["used"] == 0
        assert await granted(at) == 20 + 57 - 1


async def test_a_shorter_trial_ends_its_grant(store_url: str) -> None:
    async with paying(store_url, MOVED, prices=PRICES, begun=TRIAL) as at:
        at.go(MAY + 5 * DAY)
        await at.kit.record("acme", "tokens", 20)
        await change_at_stripe(at, trial_end=int((MAY + 7 * DAY).timestamp()))
        await at.found.settle()
        assert await balance(at) == 37
        at.go(MAY + 8 * DAY)
        assert await balance(at) == 50 + 7 + 7


async def test_a_trial_extended_after_a_late_webhook_grants_once(store_url: str) -> None:
    async with paying(store_url, MOVED, prices=PRICES, begun=TRIAL) as at:
        at.go(MAY + 13 * DAY)
        await change_at_stripe(at, trial_end=int((MAY + 28 * DAY).timestamp()))
        at.go(MAY + 15 * DAY)
        await at.kit.record("acme", "tokens", 20)  # By our clock the trial is over.
        before, left = await granted(at), await balance(at)
        await at.found.settle()
        assert (await balance(at), await granted(at)) == (left, before)
        at.go(MAY + 27 * DAY)
        assert await balance(at) == left - 1
        at.go(MAY + 29 * DAY)
        await at.kit.record("acme", "requests", 1)
        # No grant of nothing is listed.
        assert {grant.quantity for grant in await at.kit.grants.list("acme")} == {50, 7}


CAPPED_PLANS: Final = plans_text("caps")
CAPPED: Final = loads(CAPPED_PLANS)


async def charged(at: Shop) -> list[tuple[int, int]]:
    """Units and cents of each line of usage on all invoices, once the period is over."""
    await renewed(at)
    return [(units, cents) for _, units, cents in await usage_lines(at)]


async def counted(at: Shop, meter: str = "words") -> tuple[int, int, int]:
    """Recorded units, of these the overage, and those over the cap."""
    found = (await at.kit.usage("acme"))["meters"][meter]
    return found["recorded"], found["overage"], found["over_cap"]


@pytest.fixture
async def capped(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CAPPED, selling=sell_nothing) as opened:
        yield opened


async def test_ten_requests_at_once_bill_no_more_than_the_cap(capped: Shop) -> None:
    together = asyncio.Barrier(10)

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await together.wait()
        meterkit.record(words=50_000)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await capped.begun("pro")
    wrapped = MeterMiddleware(app, kit=capped.kit, identify=identify.header("x-customer-id"))
    transport = httpx.ASGITransport(app=wrapped)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        asked = (client.get("/", headers={"x-customer-id": "acme"}) for _ in range(10))
        answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert await counted(capped) == (500_000, 100_000, 399_000)
    assert (await capped.kit.usage("acme"))["meters"]["words"]["overage_cents"] == 1_200
    assert (await capped.kit.check("acme", "words")).reason == "cap"
    assert await charged(capped) == [(100_000, 1_200)]
    assert all(one.agrees for one in await capped.kit.reconcile("acme", at=HALF))


@pytest.mark.parametrize("parts", [[50_000], [1_000, 4_999, 2, 43_999], [5_000] * 10])
async def test_what_is_recorded_at_once_or_in_parts_costs_the_same(capped: Shop, parts: list[int]) -> None:
    await capped.begun("small")
    for quantity in parts:
        await capped.kit.record("acme", "words", quantity)
    assert await counted(capped) == (50_000, 5_000, 44_000)
    assert await charged(capped) == [(5_000, 60)]


@pytest.mark.parametrize(
    ("change", "more", "lines"),
    [
        ("twice", 150_000, [(5_000, 60), (150_000, 3_600)]),
        ("twice", 300_000, [(5_000, 60), (195_000, 4_680)]),
        ("override", 300, [(5_300, 64)]),
    ],
)
async def test_a_higher_cap_bills_what_is_recorded_from_then_on(
    store_url: str, change: str, more: int, lines: list[tuple[int, int]]
) -> None:
    # Plans that bill a meter with `report: usage` change at the period's end.
    catalog = loads(CAPPED_PLANS.replace(", report: usage", ""))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.begun("small")
        await at.kit.record("acme", "words", 9_000)
        if change == "override":
            await at.kit.customers.override("acme", {"words": {"overage": {"bill": {"cap": 7_000}}}})
        else:
            await at.kit.subscriptions.change_plan("acme", change)
        await at.kit.record("acme", "words", more)
        recorded, overage, _ = await counted(at)
        assert (recorded, overage) == (9_000 + more, sum(units for units, _ in lines))
        assert sorted(await charged(at)) == lines


async def test_late_usage_fills_the_cap_of_the_period_that_bills_it(capped: Shop) -> None:
    await capped.begun("small")
    await capped.kit.record("acme", "words", 11_000)
    assert await charged(capped) == [(5_000, 60)]
    capped.clock.advance(timedelta(days=1))
    await capped.kit.record("acme", "words", 4_000)
    await capped.kit.record("acme", "words", 7_000, occurred_at=HALF)
    assert await counted(capped) == (11_000, 5_000, 5_000)
    before = (await capped.kit.usage("acme", period=HALF))["meters"]["words"]
    assert (before["recorded"], before["over_cap"], before["late"]) == (11_000, 5_000, 7_000)
    await capped.kit.flush(everything=True)
    events = [one for one in capped.emulator.events if one.counted and one.event_name == "words"]
    assert sum(int(one.value) for one in events) == 10_000


async def test_a_correction_takes_units_over_the_cap_first(capped: Shop) -> None:
    await capped.begun("small")
    await capped.kit.record("acme", "words", 8_000)
    await capped.kit.flush(everything=True)
    capped.clock.advance(timedelta(minutes=9))
    (first,) = await capped.kit.correct("acme", {"words": 1_500}, reason="a loop", correction_id="c-1")
    assert (first.taken_back, first.over_cap, first.overage) == (1_500, 1_500, 0)
    (second,) = await capped.kit.correct("acme", {"words": 1_500}, reason="a loop", correction_id="c-2")
    assert (second.taken_back, second.over_cap) == (1_500, 500)
    assert (second.overage, second.sent_back) == (1_000, 1_000)
    assert (await counted(capped), await charged(capped)) == ((5_000, 4_000, 0), [(4_000, 48)])


async def test_grants_and_credits_pay_before_the_cap_is_reached(capped: Shop) -> None:
    await capped.begun("small")
    await capped.kit.grants.add("acme", {"words": 300, "ai": 2}, grant_id="gift")
    await capped.kit.record("acme", "words", 1_000 + 300 + 2_000 + 5_000 + 7)
    assert await counted(capped) == (8_307, 5_000, 7)
    await capped.kit.grants.add("acme", {"words": 10}, grant_id="later")
    await capped.kit.record("acme", "words", 12)
    assert (await counted(capped), await charged(capped)) == ((8_319, 5_000, 9), [(5_000, 60)])


async def use(at: Shop, model: str, **tokens: int) -> None:
    usage = {"prompt_tokens": tokens.get("input", 0), "completion_tokens": tokens.get("output", 0)}
    answer: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [], "usage": usage}
    await at.kit.record_usage("acme", answer)


async def test_prices_by_model_share_one_cap(capped: Shop) -> None:
    await capped.begun("pro")
    await use(capped, "opus", input=3_000)
    await use(capped, "mini", input=6_000)
    await use(capped, "opus", input=500)
    assert await counted(capped, "input_tokens") == (9_500, 5_000, 4_500)
    assert (await capped.kit.usage("acme"))["meters"]["input_tokens"]["overage_cents"] == 300 + 20
    assert sorted(await charged(capped)) == [(2_000, 20), (3_000, 300)]


async def begins_late(at: Shop) -> None:
    """A subscription of the Dashboard whose billing anchor is the first of July: a third of June is paid."""
    at.clock.set(END - timedelta(days=10))
    await at.kit.customers.link("acme", at.emulator.add_customer())
    linked = (await at.kit.customers.get("acme")).stripe_customer
    due = {"collection_method": "send_invoice", "days_until_due": 30}
    sold = {"items": [{"price": "price_pro"}], "billing_cycle_anchor": int(END.timestamp())}
    await at.post("/v1/subscriptions", {"customer": linked, **sold, **due})
    await at.kit.subscriptions.sync("acme")


async def test_f_304_a_short_first_period_gives_what_is_paid(store_url: str) -> None:
    """It included everything: 176 cents were paid for 2,700, again and again."""
    async with shop(store_url, catalog=CATALOG) as at:
        await begins_late(at)
        assert (await at.invoices())[0]["total"] == 967  # 2900 for ten days of thirty.
        assert await given(at) == (334, 334, 60)
        at.go(END)
        await at.kit.subscriptions.sync("acme")
        assert await given(at) == (1_000, 1_000, 180)


@pytest.mark.parametrize("catalog", [CATALOG, WHOLE], ids=["by hand", "whole"])
async def test_f_304_a_plan_by_hand_and_allowance_whole_give_all(store_url: str, catalog: Any) -> None:
    async with shop(store_url, catalog=catalog) as at:
        await begins_late(at)
        if catalog is CATALOG:
            await at.kit.customers.set_plan("acme", "pro")
        assert (await given(at))[:2] == (1_000, 1_000)


@pytest.mark.parametrize(("how", "given_by_june"), [("prorated", 50 // 2 + 200 // 2), ("whole", 200)])
async def test_f_303_what_an_upgrade_to_a_year_gave_lives_on(
    store_url: str, how: str, given_by_june: int
) -> None:
    """At the month's end, credits that the upgrade gave were taken back: the year began within the month."""
    text = plans_text("upgraded_to_a_year") + f"billing: {{changes: {{allowance: {how}}}}}\n"
    async with shop(store_url, catalog=loads(text)) as at:
        await at.subscribed(plan="small")
        await at.kit.record("acme", "requests", 10)
        await change(at, "annual", HALF)
        left = given_by_june - 10
        assert (await at.kit.usage("acme"))["balance"] == {"usd": left}
        at.go(END + HOUR)
        await at.kit.subscriptions.sync("acme")
        usage = await at.kit.usage("acme")
        assert (usage["balance"], usage["rolled_over"]) == ({"usd": left + 200}, {"usd": left})


@pytest.mark.parametrize(("how", "left"), [("none", 180 + 100), ("create_prorations", 180 + 10 + 45)])
async def test_f_30p_a_cut_period_keeps_its_shares(store_url: str, how: str, left: int) -> None:
    """An upgrade gave 100 credits; once the cycle began anew, 74 of them lived on."""
    text = PLANS.replace("every: period}", "every: period, rollover: {at_most: 1_000, for: 2 periods}}")
    async with shop(store_url, catalog=loads(text)) as at:
        begun = await at.subscribed(plan="team")
        await change(at, "pro", HALF)
        assert (await given(at))[2] == 100
        at.clock.set(HALF + (END - HALF) / 2)
        asked = {"billing_cycle_anchor": "now", "proration_behavior": how}
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", **asked)
        await at.kit.subscriptions.sync("acme")
        assert (await given(at))[2] == left


async def test_changes_in_the_portal_each_count_for_their_time(store_url: str) -> None:
    """Two changes were heard of together: the one between was lost."""
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        items = (await at.stripe_subscription(begun.id))["items"]["data"]
        item = next(one["id"] for one in items if one["price"]["id"] == "price_team")
        for days, price in ((10, "price_pro"), (20, "price_endless")):
            at.go(START + days * DAY)
            await at.stripe_change(f"/v1/subscription_items/{item}", price=price)
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["included"] == (100 + 1_000 + 4_000) // 3


async def test_a_change_that_is_undone_before_it_is_heard_of_counts(store_url: str) -> None:
    """Stripe charged a day of the dearer plan, and 100 were included for 200."""
    clock = Clock(START)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_plans(CATALOG)
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=CATALOG) as found:
        found.customer()
        name = await found.subscribe(price="price_team")
        await found.settle()
        items = await found.client.v1.subscription_items.list_async({"subscription": name})
        item = items.data[0].id
        for days, price in ((5, "price_pro"), (10, "price_team")):
            clock.set(START + days * DAY)
            await found.client.v1.subscription_items.update_async(item, {"price": price})
        looks = found.asked("/v1/events")
        await found.settle()
        usage = await found.kit.usage("acme")
        assert usage["meters"]["tokens"]["included"] == (25 * 100 + 5 * 1_000) // 30
        assert found.asked("/v1/events") == looks


@pytest.mark.parametrize("is_heard", [True, False])
async def test_a_change_heard_of_with_a_cut_has_its_part(store_url: str, *, is_heard: bool) -> None:
    """Of ten paid days five were of the dearer plan: they give 184 tokens, of which 90 were used."""
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="team")
        await at.kit.record("acme", "tokens", 90)
        at.go(START + 5 * DAY)
        items = (await at.stripe_subscription(begun.id))["items"]["data"]
        item = next(one["id"] for one in items if one["price"]["id"] == "price_team")
        await at.stripe_change(f"/v1/subscription_items/{item}", price="price_pro")
        if is_heard:
            await at.kit.subscriptions.sync("acme")
        at.go(START + 10 * DAY)
        asked = {"billing_cycle_anchor": "now", "proration_behavior": "create_prorations"}
        await at.stripe_change(f"/v1/subscriptions/{begun.id}", **asked)
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["included"] == 1_000


async def test_changes_within_a_second_from_an_unknown_price(store_url: str) -> None:
    """They had no order, and no sync of the customer succeeded any more."""
    clock = Clock(START)
    stripe = StripeEmulator(clock=clock, automatic_webhooks=False)
    stripe.add_plans(CATALOG)
    stripe.add_price(500, price_id="price_other", product=stripe.add_product("Other"))
    async with hooked(store_url, clock=clock, emulator=stripe, catalog=CATALOG) as found:
        found.customer()
        name = await found.subscribe(price="price_team")
        await found.settle()
        items = await found.client.v1.subscription_items.list_async({"subscription": name})
        clock.set(START + 15 * DAY)
        for price in ("price_other", "price_pro", "price_endless"):
            await found.client.v1.subscription_items.update_async(items.data[0].id, {"price": price})
        await found.settle()
        assert (await found.kit.usage("acme"))["meters"]["tokens"]["included"] == (100 + 4_000) // 2
