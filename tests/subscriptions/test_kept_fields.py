"""What Stripe has on a subscription, its items and its schedule stays through each of our changes (F-220)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
import stripe
from stripe.params import _subscription_modify_params as subscription_types
from stripe.params import _subscription_schedule_modify_params as schedule_types

from drivers.delivery import STRIPE_KEY, kit_for
from drivers.emulated_account import reached
from drivers.near_stripe import served
from drivers.sampled import some
from drivers.sdk_parameters import sample
from drivers.shop import END, HALF, PLANS, START, Shop, sell, shop
from meterkit import StripeUnavailableError
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator
from subscriptions.looks import linked_of

pytestmark = pytest.mark.anyio

DAY: Final = timedelta(days=1)
ADDON: Final = "addons: {extra: {price: {amount_cents: 400, interval: month}}}\nplans:"
CATALOG: Final = loads(
    PLANS.replace("plans:", ADDON).replace("\n    price: {", "\n    addons: [extra]\n    price: {")
)
AHEAD: Final = tuple(int((END + days * DAY).timestamp()) for days in (62, 92))
TEAM: Final = ["price_team", "price_team_seat", "price_team_ai_tokens", "price_addon"]
OF_A_PHASE: Final = ("start_date", "end_date", "duration", "items", "trial", "trial_end")
PHASE: Final = sample(
    schedule_types.SubscriptionScheduleModifyParamsPhase, without=dict.fromkeys(OF_A_PHASE, "own")
)
PHASE_ITEM: Final = sample(
    schedule_types.SubscriptionScheduleModifyParamsPhaseItem, without={"price": "own", "quantity": "own"}
)
DEFAULTS: Final = sample(schedule_types.SubscriptionScheduleModifyParamsDefaultSettings)
OF_A_CHANGE: Final = (
    *("add_invoice_items", "billing_cycle_anchor", "billing_schedules", "cancel_at", "cancel_at_period_end"),
    *("cancellation_details", "items", "off_session", "payment_behavior", "proration_behavior"),
    *("proration_date", "trial_end", "trial_from_plan"),
)
OF_PAYMENTS: Final[dict[str, Any]] = {
    "pause_collection": {"behavior": "keep_as_draft", "resumes_at": 1_945_000_000},
    "payment_settings": {"payment_method_types": ["card", "link"], "save_default_payment_method": "off"},
    "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
}
OF_THE_CALL: Final = (
    *("api_key", "content_type", "headers", "idempotency_key", "max_network_retries"),
    *("stripe_account", "stripe_context", "stripe_version"),
    *("collection_method", "days_until_due", "default_payment_method"),  # The test sets these.
)
TERMS: Final = sample(
    subscription_types.SubscriptionModifyParams,
    without=dict.fromkeys((*OF_A_CHANGE, *OF_PAYMENTS, *OF_THE_CALL), "own"),
)
ITEM_TERMS: Final = sample(
    subscription_types.SubscriptionModifyParamsItem,
    without=dict.fromkeys(("id", "current_trial", "price", "quantity"), "of the item"),
)


@dataclass(frozen=True, kw_only=True)
class Rich(Shop):
    """A shop whose customer has a subscription with everything that Stripe can set."""

    client: stripe.StripeClient
    subscription: str = ""

    async def shown(self) -> dict[str, Any]:
        """The subscription without what each change, period and mark changes."""
        found = await self.stripe_subscription(self.subscription)
        found["metadata"].pop("meterkit_change", None)
        names = (*TERMS, *OF_PAYMENTS, "collection_method", "default_payment_method")
        return {name: found.get(name) for name in names}

    async def item_terms(self) -> dict[str, dict[str, Any]]:
        found = await self.stripe_subscription(self.subscription)
        return {
            item["price"]["id"]: {name: item[name] for name in ITEM_TERMS} for item in found["items"]["data"]
        }

    async def schedule(self) -> dict[str, Any]:
        return (await self.stripe_list("/v1/subscription_schedules"))[0]


@asynccontextmanager
async def rich(
    store_url: str, *, plan: str = "pro", seats: int = 12, addons: int = 0
) -> AsyncGenerator[Rich]:
    clock = Clock(START)
    emulator = StripeEmulator(clock=clock, tax_percent=Decimal(20))
    sell(emulator, CATALOG)
    emulator.add_price(777, price_id="price_once", interval=None)
    emulator.add_price(500, price_id="price_addon")
    emulator.add_price(400, price_id="price_extra", lookup_key="meterkit:addon:extra")
    async with (
        served(emulator) as url,
        kit_for(store_url, url, clock=clock, catalog=CATALOG) as kit,
        reached(url, key=STRIPE_KEY, timeout_s=60) as client,
    ):
        at = Rich(kit=kit, emulator=emulator, clock=clock, url=url, client=client)
        begun = await at.subscribed(plan=plan, seats=seats)
        customer = await linked_of(at)
        await at.stripe_change(f"/v1/customers/{customer}", **{"address[country]": "DE"})
        method = emulator.add_payment_method(customer, "pm_card_visa")
        await client.v1.coupons.create_async({"id": "HALF", "percent_off": 50, "duration": "forever"})
        shown = (await at.stripe_subscription(begun.id))["items"]["data"]
        items: list[Any] = [{"id": item["id"], **ITEM_TERMS} for item in shown]
        items += [{"price": "price_addon", "quantity": 0, **ITEM_TERMS}]
        items += [{"price": "price_extra", "quantity": addons, **ITEM_TERMS}] if addons else []
        asked: Any = {**TERMS, **OF_PAYMENTS, "default_payment_method": method, "items": items}
        await client.v1.subscriptions.update_async(begun.id, asked)
        await kit.subscriptions.sync("acme")
        clock.set(HALF)
        yield replace(at, subscription=begun.id)


def without(phase: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in phase.items() if name not in names}


async def by_operator(at: Rich, *, ends: bool = False) -> dict[str, Any]:
    """Give the subscription a schedule with everything, and with two phases ahead.

    ``ends``: the discount ends with the current phase, and the subscription with the last one.
    """
    found = await at.stripe_subscription(at.subscription)
    schedule = await at.client.v1.subscription_schedules.create_async({"from_subscription": at.subscription})
    terms = {**PHASE, "default_payment_method": found["default_payment_method"]}
    items = [
        {**PHASE_ITEM, "price": item["price"]["id"]}
        | ({"quantity": item["quantity"]} if "quantity" in item else {})
        for item in found["items"]["data"]
    ]
    starts = [schedule.phases[0].start_date, *AHEAD]
    ahead = without(terms, ("discounts",)) if ends else terms
    asked: Any = {
        "default_settings": {**DEFAULTS, "default_payment_method": found["default_payment_method"]},
        "metadata": {"operator": "eve"},
        "phases": [
            {**(ahead if start in AHEAD else terms), "items": items, "start_date": start, "end_date": end}
            for start, end in zip(starts, (*AHEAD, int((END + 123 * DAY).timestamp())), strict=True)
        ],
        "end_behavior": "cancel" if ends else "release",
    }
    await at.client.v1.subscription_schedules.update_async(schedule.id, asked)
    await at.kit.subscriptions.sync("acme")
    return await at.schedule()


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Rich]:
    async with rich(store_url) as opened:
        yield opened


async def test_a_downgrade_at_the_periods_end_keeps_every_field(at: Rich) -> None:
    before, items = await at.shown(), await at.item_terms()
    await at.kit.subscriptions.change_plan("acme", "team")
    first, second = (await at.schedule())["phases"]
    own = ("add_invoice_items", "billing_cycle_anchor", "metadata")  # Those of a phase alone.
    for phase in (first, second):
        assert all(phase[name] for name in PHASE if name not in own)
    discount = {"coupon": None, "discount": before["discounts"][0], "promotion_code": None}
    assert second["discounts"] == [discount]
    assert [item["price"] for item in second["items"]] == TEAM
    assert all(PHASE_ITEM.keys() <= item.keys() for item in second["items"])
    assert await at.shown() == before
    at.clock.set(END + DAY)
    assert await at.shown() == before
    after = await at.item_terms()
    assert (list(after), list(after.values())) == (TEAM, list(items.values()))


async def test_more_and_fewer_addons_keep_every_field(store_url: str) -> None:
    async with rich(store_url, addons=3) as at:
        before, items = await at.shown(), await at.item_terms()
        await at.kit.subscriptions.set_addons("acme", {"extra": 4})
        assert (await at.shown(), await at.item_terms()) == (before, items)
        await at.kit.subscriptions.set_addons("acme", {"extra": 1})
        first, second = (await at.schedule())["phases"]
        own = ("add_invoice_items", "billing_cycle_anchor", "metadata")  # Those of a phase alone.
        for phase in (first, second):
            assert all(phase[name] for name in PHASE if name not in own)
            assert all(PHASE_ITEM.keys() <= item.keys() for item in phase["items"])
        at.clock.set(END + DAY)
        assert (await at.shown(), await at.item_terms()) == (before, items)
        assert (await at.items(at.subscription))["price_extra"] == 1


async def test_a_discount_given_while_addons_wait_goes_on(store_url: str) -> None:
    async with rich(store_url, addons=3) as at:
        await at.kit.subscriptions.set_addons("acme", {"extra": 1})
        await at.client.v1.coupons.create_async({"id": "FIFTH", "percent_off": 20, "duration": "forever"})
        await at.stripe_change(f"/v1/subscriptions/{at.subscription}", **{"discounts[0][coupon]": "FIFTH"})
        given = (await at.shown())["discounts"]
        await at.kit.subscriptions.change_plan("acme", "team")
        at.clock.set(END + DAY)
        assert ((await at.shown())["discounts"], (await at.items(at.subscription))["price_extra"]) == (
            given,
            1,
        )


async def test_an_addon_back_on_a_scheduled_plan_keeps_its_terms(store_url: str) -> None:
    async with rich(store_url, addons=3) as at:
        terms = (await at.item_terms())["price_extra"]
        await at.kit.subscriptions.set_addons("acme", {"extra": 0})
        await at.kit.subscriptions.change_plan("acme", "team")
        await at.kit.subscriptions.set_addons("acme", {"extra": 2})
        at.clock.set(END + DAY)
        assert (await at.items(at.subscription))["price_extra"] == 2
        assert (await at.item_terms())["price_extra"] == terms


async def test_an_operators_phases_have_other_addons(store_url: str) -> None:
    async with rich(store_url, addons=3) as at:
        before = await by_operator(at)
        await at.kit.subscriptions.set_addons("acme", {"extra": 1})
        after = await at.schedule()
        first, cut, *later = after["phases"]
        assert first == {**before["phases"][0], "end_date": int(END.timestamp())}
        for phase, was in zip(later, before["phases"][1:], strict=True):
            assert {**phase, "items": []} == {**was, "items": []}
        for phase in (cut, *later):
            assert [item["quantity"] for item in phase["items"] if item["price"] == "price_extra"] == [1]
        await taken_back(at)
        assert (await at.schedule())["phases"] == after["phases"]
        await at.kit.subscriptions.set_addons("acme", {"extra": 3})
        assert (await at.schedule())["status"] == "active"
        extra = [item for phase in (await at.schedule())["phases"] for item in phase["items"]]
        assert {item["quantity"] for item in extra if item["price"] == "price_extra"} == {3}


async def test_an_operators_schedule_keeps_its_phases_and_every_field(at: Rich) -> None:
    before = await by_operator(at)
    await at.kit.subscriptions.change_plan("acme", "team")
    after = await at.schedule()
    assert after["default_settings"] == before["default_settings"]
    assert (after["end_behavior"], after["metadata"]["operator"]) == ("release", "eve")
    first, cut, second, third = after["phases"]
    end = int(END.timestamp())
    assert first == {**before["phases"][0], "end_date": end}
    for phase, was in ((second, before["phases"][1]), (third, before["phases"][2])):
        assert {**phase, "items": []} == {**was, "items": []}
    own = ("add_invoice_items", "billing_cycle_anchor", "discounts", "end_date", "items", "start_date")
    assert without(cut, own) == without(first, own)
    assert (cut["start_date"], cut["end_date"]) == (end, AHEAD[0])
    assert cut["add_invoice_items"] == []  # They are charged once.
    for phase in (cut, second, third):
        assert [item["price"] for item in phase["items"]] == TEAM
    for was, now in zip(before["phases"][1]["items"], second["items"], strict=True):
        changed = ("plan", "price", "quantity")
        assert without(now, changed) == without(was, changed)


async def test_an_operators_trial_ahead_goes_on_through_a_downgrade(store_url: str) -> None:
    """The downgrade takes effect amid the trial of a phase ahead, so that phase is cut in two."""
    async with shop(store_url, catalog=CATALOG) as at:
        begun = await at.subscribed(plan="pro")
        at.clock.set(HALF)
        made = await at.post("/v1/subscription_schedules", {"from_subscription": begun.id})
        begins, change, trial_end, ends = (int((END + days * DAY).timestamp()) for days in (-5, 0, 10, 11))
        items: Any = [{"price": price} for price in ("price_pro", "price_pro_ai_tokens")]
        phases: Any = [
            {"items": items, "start_date": made["phases"][0]["start_date"], "end_date": begins},
            {"items": items, "end_date": ends, "trial_end": trial_end},
        ]
        await at.post(f"/v1/subscription_schedules/{made['id']}", {"phases": phases})
        await at.kit.subscriptions.change_plan("acme", "team")
        (schedule,) = await at.stripe_list("/v1/subscription_schedules")
        cut = [(one["items"][0]["price"], one["trial_end"], one["end_date"]) for one in schedule["phases"]]
        before, after = ("price_pro", change, change), ("price_team", trial_end, ends)
        assert cut == [("price_pro", None, begins), before, after]


CHANGES: Final[dict[str, Callable[[Rich], Awaitable[object]]]] = {
    "upgrade": lambda at: at.kit.subscriptions.change_plan("acme", "pro"),
    "seats": lambda at: at.kit.subscriptions.set_seats("acme", 9),
    "cancel": lambda at: at.kit.subscriptions.cancel("acme"),
    "repair": lambda at: at.kit.subscriptions.repair("acme"),
}


@pytest.mark.parametrize("change", some(CHANGES, {"upgrade", "repair"}))
async def test_a_change_at_once_keeps_every_field(store_url: str, change: str) -> None:
    async with rich(store_url, plan="team", seats=7) as at:
        before, items = await at.shown(), list((await at.item_terms()).values())
        if change == "repair":
            shown = (await at.stripe_subscription(at.subscription))["items"]["data"]
            base = next(item for item in shown if item["price"]["id"] == "price_team_ai_tokens")
            await at.stripe_change(f"/v1/subscription_items/{base['id']}", price="price_pro_ai_tokens")
        await CHANGES[change](at)
        assert await at.shown() == before
        after = list((await at.item_terms()).values())
        assert [terms for terms in items if terms in after] == after
        assert len(after) == (3 if change == "upgrade" else 4)  # Pro includes these seats.
        if change == "cancel":
            await at.kit.subscriptions.resume("acme")
            assert (await at.shown(), list((await at.item_terms()).values())) == (before, items)


async def test_a_direct_change_survives_a_repeated_schedule(at: Rich) -> None:
    """New seats put the terms back that an operator had changed, and a discount that was taken off."""
    await at.kit.subscriptions.change_plan("acme", "team")
    item = (await at.stripe_subscription(at.subscription))["items"]["data"][0]["id"]
    changed: dict[str, str] = {
        "default_tax_rates[0]": "txr_new",
        "description": "PlanTerms of 2032",
        "discounts": "",
        "on_behalf_of": "acct_new",
        "items[0][id]": item,
        "items[0][tax_rates][0]": "txr_new_item",
        "items[0][discounts]": "",
    }
    await at.stripe_change(f"/v1/subscriptions/{at.subscription}", **changed)
    before, items = await at.shown(), await at.item_terms()
    await at.kit.subscriptions.set_seats("acme", 13)
    assert (await at.shown(), await at.item_terms()) == (before, items)
    assert (before["discounts"], before["on_behalf_of"]) == ([], "acct_new")


async def use_operators_price(at: Rich) -> None:
    """Put the item of usage on a price of nine cents that an operator made by hand."""
    items = (await at.stripe_subscription(at.subscription))["items"]["data"]
    item = next(one for one in items if one["price"]["recurring"].get("meter"))
    at.emulator.add_price(9, price_id="price_agreed", meter=item["price"]["recurring"]["meter"])
    await at.stripe_change(f"/v1/subscription_items/{item['id']}", price="price_agreed")
    at.clock.advance(timedelta(minutes=2))
    await at.kit.subscriptions.sync("acme")


async def taken_back(at: Rich) -> None:
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.subscriptions.change_plan("acme", "pro")


PLAN_STAYS: Final[dict[str, Callable[[Rich], Awaitable[object]]]] = {
    "seats": lambda at: at.kit.subscriptions.set_seats("acme", 13),
    "the plan in force": CHANGES["upgrade"],
    "a downgrade taken back": taken_back,
}


@pytest.mark.parametrize("change", some(PLAN_STAYS, {"a downgrade taken back"}))
async def test_i13_an_operators_usage_price_stays_with_its_plan(at: Rich, change: str) -> None:
    """F-220: usage went back to the price of the plan, two cents."""
    await use_operators_price(at)
    before = await at.item_terms()
    await PLAN_STAYS[change](at)
    assert await at.item_terms() == before
    await at.kit.record("acme", "tokens", 1_010)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 90
    await at.kit.flush(everything=True)
    at.clock.set(END + timedelta(hours=2))
    lines = [line for one in await at.invoices() for line in one["lines"]["data"]]
    of_usage = [line for line in lines if line["pricing"]["price_details"]["price"] == "price_agreed"]
    assert [(line["quantity"], line["amount"]) for line in of_usage if line["quantity"]] == [(10, 90)]


async def test_i13_an_operators_usage_price_stays_as_addons_wait(store_url: str) -> None:
    async with rich(store_url, addons=3) as at:
        await use_operators_price(at)
        await at.kit.subscriptions.set_addons("acme", {"extra": 1})
        for change in (taken_back, PLAN_STAYS["seats"]):
            await change(at)
            items = [item for phase in (await at.schedule())["phases"] for item in phase["items"]]
            metered = [item["price"] for item in items if "quantity" not in item]
            assert metered == ["price_agreed", "price_agreed"]
        before = await at.item_terms()
        at.clock.set(END + DAY)
        assert await at.item_terms() == before
        assert (await at.items(at.subscription))["price_extra"] == 1


async def resumed(at: Rich) -> None:
    for _ in range(2):
        await at.kit.subscriptions.cancel("acme")
        assert (await at.kit.subscriptions.cancel("acme")).cancel_at_period_end
        assert (await at.stripe_subscription(at.subscription))["schedule"] is None
        await at.kit.subscriptions.resume("acme")
        await at.kit.subscriptions.resume("acme")


async def resumed_after_errors(at: Rich) -> None:
    """Resume with one HTTP 500, in turn at each call that may change something."""
    await at.kit.subscriptions.cancel("acme")
    since = len(at.emulator.requests)
    await at.kit.subscriptions.resume("acme")
    calls = [one.method for one in at.emulator.requests[since:]]
    for place, method in enumerate(calls):
        if method == "POST":
            at.clock.advance(2 * DAY)  # Stripe has forgotten the keys, so the calls are the same.
            await at.kit.subscriptions.cancel("acme")
            at.emulator.fail_next("error", path="*", skip=place)
            with pytest.raises(StripeUnavailableError):
                await at.kit.subscriptions.resume("acme")
            await at.kit.subscriptions.resume("acme")


PHASES_AHEAD: Final[dict[str, tuple[str, Callable[[Rich], Awaitable[object]]]]] = {
    "upgrade": ("team", lambda at: at.kit.subscriptions.change_plan("acme", "pro")),
    "take back": ("pro", taken_back),
    "cancel and resume, twice": ("pro", resumed),
    "F-30f: resume after errors": ("pro", resumed_after_errors),
}


@pytest.mark.parametrize("name", some(PHASES_AHEAD, {"take back", "F-30f: resume after errors"}))
async def test_an_operators_phases_ahead_stay_through(store_url: str, name: str) -> None:
    """A customer got rid of them, and of the end of a discount, by a cancellation that was taken back."""
    plan, act = PHASES_AHEAD[name]
    async with rich(store_url, plan=plan, seats=12) as at:
        await by_operator(at, ends=True)
        before, live = await at.schedule(), await at.shown()
        await act(at)
        after = await at.schedule()
        assert (after["status"], after["end_behavior"]) == ("active", "cancel")
        was, now = (
            [phase for phase in schedule["phases"] if phase["start_date"] in AHEAD]
            for schedule in (before, after)
        )
        own = ("items", "discounts")
        assert [without(phase, own) for phase in now] == [without(phase, own) for phase in was]
        assert [phase["discounts"] for phase in now] == [[], []]
        prices = {item["price"] for phase in after["phases"] for item in phase["items"]}
        assert prices == {"price_pro", "price_pro_seat", "price_pro_ai_tokens", "price_addon"}
        assert await at.shown() == live
        at.clock.set(END + 70 * DAY)
        assert (await at.shown())["discounts"] == []
