"""The customer's own subscription items price usage, pages, statements and previews, to the cent."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.customer_states import closed_period_cents, forget_prices, state_of
from drivers.delivery import kit_for
from drivers.health_findings import findings
from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.priced_shop import Buyer, buyer, renewed, usage_lines
from drivers.sampled import whole
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_figures import Tables
from meterkit import MeterKit, Proration
from meterkit.catalog import Catalog, loads
from meterkit.pages import usage_page
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("own_prices")
PRESENT: Final = "present"
NEW: Final = "new"
NEW_END: Final = HALF + timedelta(days=30)
HOUR: Final = timedelta(hours=1)
MINUTE: Final = timedelta(minutes=1)
DEARER: Final = ("amount_cents: 5}", "amount_cents: 7}")
YEARLY: Final = ("1000, interval: month", "1000, interval: year")
EVENT: Final = ("api_words", "api_words_2")
USAGE_SENT: Final = ("api_words}", "api_words, report: usage}")


@asynccontextmanager
async def edited(
    store_url: str, before: str, after: str, refused: Sequence[str] = (), *, used: int = 30
) -> AsyncGenerator[Shop]:
    """A present customer bought ``pro`` under one plans file, and a new one under the next, after `sync`."""
    async with shop(store_url, catalog=loads(before), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="pro")
        at.clock.set(HALF)
        await at.kit.record(PRESENT, "words", used)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after)) as kit:
            done = await kit.stripe.sync()
            assert [problem.partition(":")[0] for problem in done.problems] == [*refused]
            now = replace(at, kit=kit)
            await now.subscribed(NEW, plan="pro")
            yield now


async def cents(at: Shop, customer: str = PRESENT) -> int | None:
    """The overage that is shown."""
    return (await at.kit.usage(customer))["meters"]["words"]["overage_cents"]


async def most(at: Shop, customer: str = PRESENT) -> int:
    """How many units more the customer's budget admits."""
    low, high = 0, 100_000
    while low < high:
        middle = (low + high + 1) // 2
        is_admitted = (await at.kit.check(customer, "words", middle)).allowed
        low, high = (middle, high) if is_admitted else (low, middle - 1)
    return low


async def invoiced(at: Shop, customer: str = PRESENT) -> int:
    """What the lines of usage on all invoices of a customer come to, in cents."""
    linked = (await at.kit.customers.get(customer)).stripe_customer
    return sum(amount for _, _, amount in await usage_lines(at, linked))


async def check_invoices(at: Shop, present: int, new: int = 0) -> None:
    """Deliver all, and end both periods: books ask for nothing, and invoices charge so many cents."""
    asked = list[str]()
    await at.kit.flush(everything=True)
    for end in (END, NEW_END):
        for wait in (timedelta(0), 11 * MINUTE):
            at.go(end + wait)
        looked = await look_at_closes(at.kit)
        asked += looked.late
        assert looked.open == 0
        at.go(end + 3 * HOUR)
    for customer, end in ((PRESENT, END), (NEW, NEW_END)):
        asked += [one.advice for one in await at.kit.reconcile(customer, at=end - HOUR) if one.advice]
    assert (asked, await invoiced(at), await invoiced(at, NEW)) == ([], present, new)


@pytest.mark.parametrize(
    ("after", "units"),
    [
        (PLANS.replace(*YEARLY), (450, 450)),
        (PLANS.replace(*EVENT).replace(*DEARER), (450, 630)),
        whole(PLANS.replace(*DEARER), (450, 630)),
    ],
    ids=["interval", "event name and amount", "amount"],
)
async def test_shown_and_invoiced_prices_agree(store_url: str, after: str, units: tuple[int, int]) -> None:
    """F-221: 630 cents were shown for 490 that Stripe billed."""
    present, new = units
    # Sync makes nothing where the interval differs: new customers get the price of before, too.
    refused = ("pro, base", "pro, words") if "interval: year" in after else ()
    async with edited(store_url, PLANS, after, refused) as at:
        assert (await cents(at), await cents(at, NEW)) == (100, 0)
        await at.kit.record(PRESENT, "words", 70)
        await at.kit.record(NEW, "words", 100)
        assert (await cents(at), await cents(at, NEW)) == units
        own = {"per": 1, "amount_cents": present // 90, "currency": "usd", "interval": "month"}
        assert (await at.kit.usage(PRESENT))["meters"]["words"].get("price") == own
        left = ((1000 - present) // (present // 90), (1000 - new) // (new // 90))
        assert (await most(at), await most(at, NEW)) == left
        await check_invoices(at, *units)


async def metered_item(at: Shop) -> dict[str, Any]:
    """The item of usage of the present customer."""
    found = await at.kit.subscriptions.get(PRESENT)
    assert found is not None
    items: list[dict[str, Any]] = (await at.stripe_subscription(found.id))["items"]["data"]
    return next(item for item in items if item["price"]["recurring"].get("meter"))


@pytest.mark.parametrize("way", ["at Stripe", "repair"])
async def test_a_price_changed_at_stripe_ends_its_segment(store_url: str, way: str) -> None:
    """Units before it keep their price, later ones have the new price; also under another event name."""
    after = PLANS.replace(*DEARER)
    async with edited(store_url, PLANS, after.replace(*EVENT) if way == "repair" else after) as at:
        await at.kit.flush(everything=True)
        at.clock.advance(HOUR)
        if way == "repair":
            drifts = (await at.kit.subscriptions.check())[PRESENT]
            assert [drift.kind for drift in drifts] == ["missing_meter", "other_item"]
            assert not (await at.kit.subscriptions.repair(PRESENT)).left
        else:
            prices = {one["unit_amount_decimal"]: one["id"] for one in await at.stripe_list("/v1/prices")}
            path = f"/v1/subscription_items/{(await metered_item(at))['id']}"
            await at.stripe_change(path, price=prices["7"])
            await at.kit.subscriptions.sync(PRESENT)
        assert await cents(at) == 100
        at.clock.advance(2 * MINUTE)
        await at.kit.record(PRESENT, "words", 10)
        assert (await cents(at), await most(at)) == (170, (1000 - 170) // 7)
        await check_invoices(at, 170)


@pytest.mark.parametrize(("becomes", "used"), [("usage", 4), ("overage", 30)])
async def test_an_edited_report_keeps_what_the_price_says(store_url: str, becomes: str, used: int) -> None:
    """F-22a: a flat price billed included units, or a free tier came on top of the included quantity."""
    before, after = PLANS, PLANS.replace(*USAGE_SENT)
    if becomes == "overage":
        before, after = after, before
    async with edited(store_url, before, after, used=used) as at:
        assert (await cents(at), await cents(at, NEW)) == (5 * max(0, used - 10), 0)
        await at.kit.subscriptions.sync(PRESENT)
        await at.kit.record(PRESENT, "words", 100 - used)
        await at.kit.record(NEW, "words", 100)
        # Of 100 units 10 are included, once.
        assert (await cents(at), await cents(at, NEW)) == (450, 450)
        assert (await most(at), await most(at, NEW)) == (110, 110)
        await check_invoices(at, 450, 450)


def tiers(mode: str, *cents: int) -> dict[str, str]:
    """Two tiers: up to 100 units, and the others."""
    found = {"billing_scheme": "tiered", "tiers_mode": mode}
    for place, (up_to, amount) in enumerate(zip(("100", "inf"), cents, strict=True)):
        found |= {f"tiers[{place}][up_to]": up_to, f"tiers[{place}][unit_amount]": str(amount)}
    return found


PACKAGES: Final = {"transform_quantity[divide_by]": "10", "transform_quantity[round]": "up"}


@pytest.mark.usefixtures("valkey")
@pytest.mark.parametrize(
    ("price", "reason"),
    [
        ({"unit_amount": "30", **PACKAGES}, "it is of packages of several units"),
        (tiers("volume", 5, 4), "it has tiers that are not graduated"),
        (tiers("graduated", 4, 3), "it has several tiers that cost something"),
    ],
)
async def test_f_227_an_inexact_price_is_named(store_url: str, price: dict[str, str], reason: str) -> None:
    async def named(at: Shop) -> list[str]:
        problems = [one.problem for one in await findings(at.kit, "subscriptions")]
        drifts = (await at.kit.subscriptions.check()).get(PRESENT, ())
        return [*problems, *(one.message for one in drifts if one.kind == "inexact_price")]

    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="pro")
        assert await named(at) == []
        item = await metered_item(at)
        path, own = f"/v1/subscription_items/{item['id']}", item["price"]
        recurring = {"interval": "month", "usage_type": "metered", "meter": own["recurring"]["meter"]}
        # A person makes another price of the meter at Stripe, and puts it in the subscription.
        terms = {"currency": "usd", "product": own["product"], "recurring": recurring}
        made = await at.post("/v1/prices", terms | price)
        await at.stripe_change(path, price=made["id"])
        await at.kit.subscriptions.sync(PRESENT)
        at.clock.advance(2 * MINUTE)
        said = await named(at)
        assert len(said) >= 2
        for words in (said[-2], said[-1]):
            assert f"words is billed at {made['id']}" in words
            assert reason in words
            assert "kit.usage, budgets and spend limits count its overage at the plans file's price" in words
        assert any(PRESENT in words for words in said)
        await at.stripe_change(path, price=own["id"])
        await at.kit.subscriptions.sync(PRESENT)
        assert await named(at) == []


FREE_TIER: Final[dict[str, str]] = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": "10",
    "tiers[0][flat_amount]": "0",
    "tiers[1][up_to]": "inf",
    "tiers[1][flat_amount]": "0",
    "tiers[1][unit_amount]": "5",
}


@pytest.mark.parametrize("first", [{}, {"tiers[0][unit_amount]": "0"}])
async def test_a_flat_amount_of_0_costs_nothing(store_url: str, first: dict[str, str]) -> None:
    """Stripe shows a flat amount of 0 that a person gave, and no unit amount where that was left out."""
    catalog = loads(PLANS.replace(*USAGE_SENT))
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        (made,) = [one for one in await at.stripe_list("/v1/prices") if one["recurring"]["meter"]]
        base = next(one for one in await at.stripe_list("/v1/prices") if not one["recurring"]["meter"])
        await at.stripe_change(f"/v1/prices/{made['id']}", active="false", lookup_key="retired")
        recurring = {"interval": "month", "usage_type": "metered", "meter": made["recurring"]["meter"]}
        terms = {"currency": "usd", "product": base["product"], "recurring": recurring}
        by_hand = await at.post("/v1/prices", {**terms, **FREE_TIER, **first})
        done = await at.kit.stripe.sync()
        assert done.problems == []
        assert [one.id for one in done.lines if one.name == "pro, words"] == [by_hand["id"]]
        await at.subscribed(PRESENT, plan="pro")
        await at.kit.record(PRESENT, "words", 30)
        words = (await at.kit.usage(PRESENT))["meters"]["words"]
        assert (words["overage_cents"], words.get("price", {}).get("estimated")) == (100, None)
        assert await at.kit.subscriptions.check() == {}


MORE: Final = f"""{PLANS}  max:
    rank: 20
    price: {{amount_cents: 2000, interval: month}}
    budget: {{amount_cents: 1000}}
    meters: {{words: {{included: 10, overage: {{bill: {{per: 1, amount_cents: 3}}}}}}}}
"""


async def test_a_price_that_becomes_known_covers_the_whole_period(store_url: str) -> None:
    """A release before this one stored no prices: the next look at Stripe ends no segment."""
    async with edited(store_url, PLANS, PLANS.replace(*DEARER)) as at:

        async def shown() -> tuple[int | None, bool | None]:
            words = (await at.kit.usage(PRESENT))["meters"]["words"]
            return words["overage_cents"], words.get("price", {}).get("estimated")

        await forget_prices(at.kit, PRESENT)
        assert await shown() == (140, True)
        await at.kit.subscriptions.check()
        assert await shown() == (100, None)
        await at.kit.record(PRESENT, "words", 70)
        assert await shown() == (450, None)
        await check_invoices(at, 450)


async def test_overage_is_rounded_like_the_invoice_lines(store_url: str) -> None:
    """F-221: half cents were rounded to even, and only once over prices that have a line each."""
    after = MORE.replace("per: 1, amount_cents: 3", "per: 1000, amount_cents: 7")
    before = after.replace("per: 1, amount_cents: 5", "per: 1000, amount_cents: 12")
    async with edited(store_url, before, after) as at:
        # 20 units of before come to 0.24 cents.
        await at.kit.record(PRESENT, "words", 1_355)
        assert await cents(at) == 17  # 16.5
        await at.kit.subscriptions.change_plan(PRESENT, "max")
        await at.kit.record(PRESENT, "words", 206)
        assert await cents(at) == 18  # 16.5 and 1.442
        await check_invoices(at, 18)


@pytest.mark.parametrize("currency", ["usd", whole("jpy")])
async def test_units_the_plan_did_not_bill_stay_free(store_url: str, currency: str) -> None:
    """F-22h: the cost of later units was not shown."""
    plans = PLANS.replace("currency: usd", f"currency: {currency}")
    async with edited(store_url, plans, plans.replace(*DEARER)) as at:
        await at.kit.customers.override(PRESENT, {"words": {"overage": "deny"}})
        await at.kit.record(PRESENT, "words", 10)
        assert await cents(at) == 100
        await at.kit.customers.override(PRESENT, {"words": {}})
        await at.kit.record(PRESENT, "words", 7)
        assert (await cents(at), await most(at)) == (135, (1000 - 135) // 5)
        await check_invoices(at, 135)


@pytest.mark.parametrize(
    "present", ["{bill: {per: 1, amount_cents: 3}}", "deny"], ids=["from a price", "from no price"]
)
async def test_a_scheduled_change_brings_its_price_at_its_second(store_url: str, present: str) -> None:
    """Before any webhook tells of it: the price that the schedule names, not that of the file.

    That also holds where no item of the present plan has a meter.
    """
    sold = MORE.replace("{bill: {per: 1, amount_cents: 3}}", present)
    async with shop(store_url, catalog=loads(sold), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="max")
        await at.kit.subscriptions.change_plan(PRESENT, "pro")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(sold.replace(*DEARER))) as kit:
            await kit.stripe.sync()
            at.go(END + MINUTE)
            await kit.record(PRESENT, "words", 30)
            assert await cents(replace(at, kit=kit)) == 100


@pytest.mark.parametrize("edit", [DEARER, EVENT], ids=["amount", "event name and amount"])
async def test_present_customers_may_downgrade_after_an_edit(store_url: str, edit: tuple[str, str]) -> None:
    """The schedule names their own price, and Stripe takes only active prices."""
    after = MORE.replace("amount_cents: 3}", "amount_cents: 4}").replace(*DEARER)
    async with shop(store_url, catalog=loads(MORE), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="max")
        at.clock.set(HALF)
        catalog = loads(after.replace(*edit))
        async with kit_for(store_url, at.url, clock=at.clock, catalog=catalog) as kit:
            await kit.stripe.sync()
            change = await kit.subscriptions.change_plan(PRESENT, "pro")
            assert change.subscription.pending_change is not None
            await kit.record(PRESENT, "words", 30)
            # The last usage of the period is sealed after its end.
            at.go(END + MINUTE)
            await kit.subscriptions.sync(PRESENT)
            await kit.flush(everything=True)
            at.go(END + 3 * HOUR)
            await kit.record(PRESENT, "words", 15)
            await kit.flush(everything=True)
            at.go(END + timedelta(days=31, hours=3))
            assert await invoiced(replace(at, kit=kit)) == 20 * 3 + 5 * 7


async def test_a_short_line_of_a_yearly_price_is_of_several_months(store_url: str) -> None:
    """The advice was to credit what the month before had used."""
    async with shop(store_url, catalog=loads(PLANS.replace(*YEARLY)), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="pro")
        for cents, days in ((2, 19), (1, 45)):
            at.clock.set(END + timedelta(days=days))
            price = {"bill": {"per": 1, "amount_cents": cents}}
            await at.kit.customers.override(PRESENT, {"words": {"overage": price}})
            at.clock.advance(HOUR)
            await at.kit.record(PRESENT, "words", 30)
            await at.kit.flush(everything=True)
        at.go(END + timedelta(days=60))
        await at.kit.subscriptions.cancel(PRESENT, immediately=True)
        at.go(3 * HOUR)
        assert await invoiced(at) == 20 * 2 + 20 * 1
        for days in (20, 40):
            found = await at.kit.reconcile(PRESENT, at=END + timedelta(days=days))
            assert [one.advice for one in found if one.advice] == []


@pytest.mark.parametrize("whose", ["override", "person"])
async def test_a_price_without_a_meters_name_stays_its_own(store_url: str, whose: str) -> None:
    """After an edit of the event name, usage went where no item bills it: 0 of 40 cents were invoiced."""
    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="pro")
        at.clock.set(HALF)
        if whose == "override":
            price = {"bill": {"per": 1, "amount_cents": 2}}
            await at.kit.customers.override(PRESENT, {"words": {"overage": price}})
        else:
            item = await metered_item(at)
            product, meter = item["price"]["product"], item["price"]["recurring"]["meter"]
            made = at.emulator.add_price(2, product=product, meter=meter)
            await at.stripe_change(f"/v1/subscription_items/{item['id']}", price=made)
            await at.kit.subscriptions.sync(PRESENT)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(PLANS.replace(*EVENT))) as kit:
            await kit.stripe.sync()
            await kit.subscriptions.sync(PRESENT)
            now = replace(at, kit=kit)
            await kit.record(PRESENT, "words", 30)
            await kit.flush(everything=True)
            shown = await cents(now)
            at.go(END + 3 * HOUR)
            assert (shown, await invoiced(now)) == (40, 40)


async def test_new_customers_do_not_get_a_replaced_price(store_url: str) -> None:
    """A price that was made by hand, on the plan's own product and another meter."""

    def sell_by_hand(emulator: StripeEmulator, _: Catalog) -> None:
        product, meter = emulator.add_product("Pro"), emulator.add_meter("api_words")
        emulator.add_price(1000, lookup_key="meterkit:pro:base", product=product)
        emulator.add_price(5, lookup_key="meterkit:pro:meter:words", product=product, meter=meter)

    async with shop(store_url, catalog=loads(PLANS.replace(*EVENT)), selling=sell_by_hand) as at:
        for _ in range(2):
            assert (await at.kit.stripe.sync()).problems == []
        begun = await at.subscribed(NEW, plan="pro")
        items = (await at.stripe_subscription(begun.id))["items"]["data"]
        meters = {one["id"]: one["event_name"] for one in await at.stripe_list("/v1/billing/meters")}
        assert [meters.get(item["price"]["recurring"]["meter"]) for item in items] == [None, EVENT[1]]


OLDER_FILE: Final = plans_text("older_plans_file_older")
NEWER_FILE: Final = f"""{OLDER_FILE}  plus:
    rank: 20
    price: {{amount_cents: 2000, interval: month}}
    meters: {{words: {{included: 10, overage: {{bill: {{per: 1, amount_cents: 3}}}}}}}}
"""


async def test_an_older_plans_file_keeps_an_unknown_plan(store_url: str) -> None:
    async with shop(store_url, catalog=loads(NEWER_FILE), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="plus")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(OLDER_FILE)) as older:
            await older.subscriptions.sync(PRESENT)
            await older.subscriptions.check()
            await at.kit.record(PRESENT, "words", 30)
            assert ((await at.kit.usage(PRESENT))["plan"], await cents(at)) == ("plus", 60)
            # A plan that both files have counts once its price is on the items.
            prices = {price["lookup_key"]: price["id"] for price in await at.stripe_list("/v1/prices")}
            (subscription,) = await at.stripe_list("/v1/subscriptions")
            for item in subscription["items"]["data"]:
                key = item["price"]["lookup_key"].replace("plus", "pro")
                await at.stripe_change(f"/v1/subscription_items/{item['id']}", price=prices[key])
            await older.subscriptions.sync(PRESENT)
            assert (await at.kit.usage(PRESENT))["plan"] == "pro"


async def test_units_of_a_plan_that_was_lost_keep_its_price(store_url: str) -> None:
    """A plans file without the plan was used for a while: what Stripe bills was shown as free."""
    async with shop(store_url, catalog=loads(NEWER_FILE), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="plus")
        at.clock.set(HALF)
        await at.kit.record(PRESENT, "words", 30)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(OLDER_FILE)) as without:
            await without.subscriptions.sync(PRESENT)
            await without.record(PRESENT, "words", 4)
            assert await cents(replace(at, kit=without)) == 72
        await at.kit.subscriptions.sync(PRESENT)
        assert await cents(at) == 72
        await at.kit.record(PRESENT, "words", 1)
        assert await cents(at) == 75
        await renewed(at)
        assert await invoiced(at) == 75


async def test_a_statement_knows_units_by_a_former_event_name(tmp_path: Path) -> None:
    """Each line of an invoice has its events, those before the change of plan too."""
    url = sqlite_in(tmp_path)
    dearer = NEWER_FILE.replace(*EVENT).replace("amount_cents: 3}", "amount_cents: 4}")
    more: Any = {"key_prefix": "former-event", "audit_url": url}
    async with shop("memory://", catalog=loads(NEWER_FILE), selling=sell_nothing, **more) as at:
        await at.begun("pro")
        await at.kit.record("acme", "words", 30)
        async with kit_for("memory://", at.url, clock=at.clock, catalog=loads(dearer), **more) as kit:
            await kit.stripe.sync()
            at.clock.advance(HOUR)
            await kit.subscriptions.change_plan("acme", "plus")
            at.clock.advance(HOUR)
            await kit.record("acme", "words", 7)
            await renewed(replace(at, kit=kit))
            await drain_all(kit, url)
            statement = await kit.statement("acme", HALF)
    found = [(line.quantity, line.counted, line.note) for line in statement.lines if line.kind == "usage"]
    assert found == [(20, 20, ""), (7, 7, "")]


DERIVED: Final = plans_text("derived_costs")
BILLED: Final = "{overage: {bill: {per: 1000, amount_cents: 6}}}"


@pytest.mark.parametrize(
    ("large", "then", "granted", "expected"),
    [
        # 10,000 included, then 90,000 at 2 cents a thousand and 100,000 of the large model at 6.
        (BILLED, None, 0, 180 + 600),
        ("{included: unlimited}", None, 0, 180 + 200),  # Stripe has the source's price for both.
        (BILLED, None, 50_000, 80 + 600),
        # The same again on another plan, at 1 and 4 cents.
        (BILLED, "more", 0, 180 + 600 + 100 + 400),
    ],
    ids=["own price", "price of the source", "grant", "change of plan"],
)
async def test_shown_costs_are_invoiced(
    tmp_path: Path, large: str, then: str | None, granted: int, expected: int
) -> None:
    catalog, url = loads(DERIVED.replace("LARGE", large)), sqlite_in(tmp_path)
    more: Any = {"key_prefix": f"{expected}", "audit_url": url}
    async with shop("memory://", catalog=catalog, selling=sell_nothing, **more) as at:
        await at.begun("pro")
        if granted:
            await at.kit.grants.add("acme", {"output_tokens": granted}, grant_id="sorry")
        for plan in filter(None, ("pro", then)):
            if plan == then:
                at.clock.advance(timedelta(minutes=1))
                await at.kit.subscriptions.change_plan("acme", plan)
            for model in ("our-small", "our-large"):
                answer: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": []}
                answer["usage"] = {"prompt_tokens": 0, "completion_tokens": 100_000, "total_tokens": 100_000}
                await at.kit.record_usage("acme", answer)
        usage = await at.kit.usage("acme")
        assert sum(usage["meters"][name]["overage_cents"] or 0 for name in catalog.meters) == expected
        await drain_all(at.kit, url)
        statement = await at.kit.statement("acme")
        lines = [line for line in statement.lines if line.kind == "usage"]
        assert sum(line.amount_cents for line in lines) == expected
        assert [line.note for line in lines if line.note] == []
        await renewed(at)
        assert await invoiced(at, "acme") == expected
        ended = await at.kit.usage("acme", period=usage["period"]["start"])
        assert await closed_period_cents(at.kit, ended) == expected


JSON: Final = {"accept": "application/json"}


@asynccontextmanager
async def page_of(kit: MeterKit) -> AsyncGenerator[httpx.AsyncClient]:
    page = usage_page(kit, customer=lambda _: "acme", origins=["http://app"])
    transport = httpx.ASGITransport(app=Starlette(routes=[Mount("/usage", app=page)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://app/usage") as client:
        yield client


async def test_the_usage_page_has_the_kept_prices_of_plan_and_seats(store_url: str) -> None:
    async with buyer(store_url, plan="team") as found, page_of(found.shop.kit) as client:
        figures = (await client.get("/", headers=JSON)).json()
        cost = figures["cost"]
        assert (cost["plan_cents"], cost["seats_cents"], cost["interval"]) == (1003, 3 * 703, "month")
        assert figures["seats"]["seat_cents"] == 703
        numbers = Tables((await client.get("/")).text).numbers
        assert (numbers["plan-cents"], numbers["seats-cents"]) == ([1003], [3 * 703])
        state = await state_of(found.shop.kit)
        assert state.subscription is not None
        assert state.subscription.mrr == 1_000_000 * (1003 + 3 * 703)
        # Another plan is sold at the price that it has now.
        assert {one["plan"]: one["cost_cents"] for one in figures["other_plans"]}["pro"] == 3307
        await found.change(plan="pro")
        cost = (await client.get("/", headers=JSON)).json()["cost"]
        assert (cost["plan_cents"], cost["seats_cents"]) == (3307, 2 * 1009)


async def test_a_forecast_has_the_kept_price_of_usage_and_of_the_plan(store_url: str, tmp_path: Path) -> None:
    """The forecast took the file's price of a unit, and of the plan."""
    url = sqlite_in(tmp_path)
    dearer = (("amount_cents: 5}", "amount_cents: 50}"),)
    async with buyer(store_url, plan="team", more=dearer, audit_url=url) as found:
        kit, clock = found.shop.kit, found.shop.clock
        for _ in range(4):
            clock.advance(timedelta(days=1))
            await kit.record("acme", "words", 10)
        await drain_all(kit, url)
        async with page_of(kit) as client:
            figures = (await client.get("/", headers=JSON)).json()
        forecast = figures["forecast"]
        assert forecast["cost_cents"][0] == 1003 + 3 * 703 + 5 * (forecast["meters"]["words"][0] - 10)


async def test_a_statement_without_an_invoice_has_the_kept_prices(store_url: str, tmp_path: Path) -> None:
    """Where no Stripe key is set, or before the invoice is made."""
    url = sqlite_in(tmp_path)
    async with buyer(store_url, plan="team", audit_url=url) as found:
        at = found.shop
        async with kit_for(
            store_url, at.url, clock=at.clock, catalog=at.kit.catalog, audit_url=url, stripe_api_key=None
        ) as kit:
            shown = await kit.statement("acme")
        assert [(line.id, line.quantity, line.unit_amount, line.amount_cents) for line in shown.lines] == [
            ("plan", 1, "1003", 1003),
            ("seats", 3, "703", 3 * 703),
        ]


async def test_before_its_webhook_a_period_is_the_customers_own(store_url: str) -> None:
    """The file's interval is another one by now: the period lasted a year, or a month."""
    own = (("1003, interval: month", "1003, interval: year"),)
    async with buyer(store_url, plan="team", more=own, keeps=False) as found:
        found.shop.clock.set(END + timedelta(days=1))
        known = await found.shop.kit.subscriptions.get("acme")
        assert known is not None
        assert (known.current_period_start, known.current_period_end) == (END, END + timedelta(days=31))


async def test_present_customers_keep_their_report_in_the_next_period(store_url: str) -> None:
    async with edited(store_url, PLANS, PLANS.replace(*USAGE_SENT)) as at:
        await at.kit.flush(everything=True)
        at.go(END + 3 * HOUR)
        await at.kit.subscriptions.sync(PRESENT)
        await at.kit.record(PRESENT, "words", 30)
        assert await cents(at) == 100
        await at.kit.flush(everything=True)
        at.go(END + timedelta(days=31, hours=3))
        at.go(2 * HOUR)
        assert await invoiced(at) == 200


CHANGES: Final[Mapping[str, dict[str, Any]]] = {
    "more seats": {"seats": 6},
    "fewer seats": {"seats": 3},
    "a dearer plan": {"plan": "pro"},
    "a cheaper plan": {"plan": "team"},
}
COUPONS: Final[Mapping[str, dict[str, Any]]] = {
    "no coupon": {},
    "a percentage": {"percent_off": 33, "duration": "forever"},
    "an amount": {"amount_off": 251, "currency": "usd", "duration": "forever"},
    "the first month": {"percent_off": 50, "duration": "repeating", "duration_in_months": 1},
}


def period_cents(proration: Proration) -> int:
    """The price of the next period that a preview says."""
    found = re.search(r"From the next period on it costs [$]([\d,.]+) a", proration.description)
    assert found is not None, proration.description
    return int(found[1].replace(",", "").replace(".", ""))


async def compare(found: Buyer, change: Mapping[str, Any]) -> None:
    """See that a change is invoiced as it was previewed, now and for the period after it."""
    preview = await found.preview(**change)
    now = found.shop.clock.now()
    assert await found.change(**change) == preview
    known = await found.shop.kit.subscriptions.sync("acme")
    assert known is not None
    end = known.current_period_end
    later = end + timedelta(minutes=1)
    while found.shop.clock.now() < later:
        found.shop.clock.set(min(later, found.shop.clock.now() + timedelta(days=30)))
        found.shop.emulator.advance()
    charged = await found.invoiced(now) if preview.effective_at == now else 0
    assert charged == preview.net_cents == preview.charge_cents - preview.credit_cents
    assert await found.invoiced(end) == period_cents(preview)


MATRIX: Final = (
    ("no coupon", "no tax", False),
    ("the first month", "no tax", False),
    ("an amount", "tax within", False),
    ("a percentage", "tax on top", False),
    ("a percentage", "tax on top", True),
    ("the first month", "no tax", True),
)


# Each change and each of the terms once; the rest of the matrix in `make field`.
PAIRS: Final = [
    (row if nth % len(CHANGES) == place else whole(*row))
    for nth, terms in enumerate(MATRIX)
    for place, row in enumerate((change, *terms) for change in CHANGES)
]


@pytest.mark.parametrize(("change", "coupon", "tax", "item"), PAIRS)
async def test_a_change_at_kept_prices_is_invoiced_as_previewed(
    store_url: str, change: str, coupon: str, tax: str, item: bool
) -> None:
    plan = "pro" if change == "a cheaper plan" else "team"
    async with buyer(store_url, plan=plan, coupon=COUPONS[coupon], tax=tax, item=item) as found:
        await compare(found, CHANGES[change])


@pytest.mark.parametrize(
    ("shop_of", "change"),
    [
        ({"plan": "team", "tax": "tax on top"}, {"plan": "year"}),
        # Scheduled: the cost of the periods of another interval, and a price that was scheduled already.
        ({"plan": "year", "coupon": COUPONS["a percentage"]}, {"plan": "team"}),
        ({"plan": "pro", "scheduled": "team"}, {"seats": 6}),
    ],
)
async def test_a_yearly_or_scheduled_price_is_invoiced_as_previewed(
    store_url: str, shop_of: dict[str, Any], change: dict[str, Any]
) -> None:
    async with buyer(store_url, **shop_of) as found:
        await compare(found, change)


@asynccontextmanager
async def renamed(store_url: str, *, price: str = "") -> AsyncGenerator[Buyer]:
    """A buyer on ``team``, which is ``crew`` in the plans file by now, with the same base price at Stripe.

    Seats and usage have become dearer. ``price``: the subscription has this base price, made by hand.
    """
    before = plans_text("price_shop").replace("INTERVAL", "month")
    async with shop(store_url, catalog=loads(before), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        if price:
            at.emulator.add_price(1003, price_id=price)
            before = before.replace("amount_cents: 1003,", f"amount_cents: 1003, stripe_price: {price},")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(before)) as kit:
            begun = await replace(at, kit=kit).subscribed(plan="team", seats=5)
        base = next(iter(await at.items(begun.id)))
        at.clock.set(HALF)
        after = (
            before.replace("  team:", "  crew:")
            .replace("703", "809")
            .replace("amount_cents: 5}", "amount_cents: 7}")
        )
        if not price:
            after = after.replace("amount_cents: 1003,", f"amount_cents: 1003, stripe_price: {base},")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after)) as kit:
            await kit.stripe.sync()
            yield Buyer(shop=replace(at, kit=kit), subscription=begun.id)


@pytest.mark.parametrize("price", ["", "price_by_hand"])
async def test_seats_of_a_renamed_plan_stay_one_item(store_url: str, price: str) -> None:
    """Bought seats were a second item, and the customer paid both; the first gave no seats."""
    async with renamed(store_url, price=price) as found:
        at = found.shop
        had = await at.items(found.subscription)
        assert sorted(had.values(), key=str) == [1, 3, None]
        await compare(found, {"plan": "crew"})
        assert await at.items(found.subscription) == had
        assert (await at.kit.usage("acme"))["meters"]["seats"]["included"] == 5
        await compare(found, {"seats": 7})
        assert await at.items(found.subscription) == {
            item: 5 if quantity == 3 else quantity for item, quantity in had.items()
        }
        assert await at.kit.subscriptions.check() == {}


async def test_a_renamed_plan_is_left_with_one_item_of_seats(store_url: str) -> None:
    async with renamed(store_url) as found:
        await compare(found, {"plan": "pro"})
        known = await found.shop.kit.subscriptions.sync("acme")
        assert known is not None
        assert (known.plan, known.seats) == ("pro", 3 + 2)
        keys = [
            item["price"]["lookup_key"]
            for item in (await found.shop.stripe_subscription(found.subscription))["items"]["data"]
        ]
        assert sorted(keys) == ["meterkit:pro:base", "meterkit:pro:meter:words", "meterkit:pro:seats"]


async def test_seats_of_a_lost_plan_are_given_and_named(store_url: str) -> None:
    """Of a plan that the plans file has lost, where a person switched the base price alone."""
    async with buyer(store_url, plan="team", keeps=False, more=[("  team:", "  crew:")]) as found:
        at = found.shop
        items = (await at.stripe_subscription(found.subscription))["items"]["data"]
        base = next(item["id"] for item in items if item["price"]["lookup_key"] == "meterkit:team:base")
        (pro,) = await at.stripe_list("/v1/prices", **{"lookup_keys[0]": "meterkit:pro:base"})
        await at.stripe_change(f"/v1/subscription_items/{base}", price=pro["id"])
        await at.kit.customers.set_plan("acme", "pro")
        (drifts,) = (await at.kit.subscriptions.check()).values()
        assert sorted(drift.kind for drift in drifts) == ["other_price", "seats"]
        await at.kit.subscriptions.repair("acme")
        known = await at.kit.subscriptions.sync("acme")
        assert known is not None
        assert (known.plan, known.seats) == ("pro", 3 + 3)
        assert await at.kit.subscriptions.check() == {}


async def test_charges_already_waiting_are_no_part_of_a_preview(store_url: str) -> None:
    """Changes of seats wait for the next invoice: Stripe's preview has them too."""
    async with buyer(store_url, plan="team") as found:
        waiting = 0
        for seats in (6, 9, 3):
            preview = await found.preview(seats=seats)
            assert await found.change(seats=seats) == preview
            waiting += preview.net_cents
            pending = await found.shop.stripe_list("/v1/invoiceitems", pending="true")
            assert sum(item["amount"] for item in pending) == waiting
        preview = await found.preview(plan="pro")
        assert await found.change(plan="pro") == preview
        assert (await found.shop.invoices())[-1]["total"] == waiting + preview.net_cents


@pytest.mark.parametrize(("plan", "change"), [("team", "a dearer plan"), ("pro", "a cheaper plan")])
async def test_usage_is_no_part_of_a_preview(store_url: str, plan: str, change: str) -> None:
    """Also where a change bills the usage until then."""
    async with buyer(store_url, plan=plan, coupon={}) as found:
        await found.shop.kit.record("acme", "words", 30)
        await found.shop.kit.flush(everything=True)
        preview = await found.preview(**CHANGES[change])
        assert await found.change(**CHANGES[change]) == preview
        found.shop.go(END + timedelta(hours=2))
        totals = sum(invoice["total"] for invoice in (await found.shop.invoices())[1:])
        assert totals == preview.net_cents + period_cents(preview) + (20 * (4 if plan == "pro" else 5))


async def test_a_refused_preview_is_an_estimate(store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the customer's own price of a seat: the plans file sells it at 809 by now."""
    async with buyer(store_url, plan="team") as found:
        found.shop.emulator.fail_next("error", status=400, path="/v1/invoices/create_preview")
        estimate = await found.preview(seats=8)
        assert estimate.charge_cents == (6 * 703 + 1) // 2
        assert "This is an estimate" in estimate.description
        assert any("does not preview a change of subscription" in one.message for one in caplog.records)


async def renew(at: Shop) -> None:
    at.go(END + timedelta(days=6))


def change(**params: str) -> Callable[[Shop], Awaitable[None]]:
    async def act(at: Shop) -> None:
        at.clock.set(HALF)
        (begun,) = await at.stripe_list("/v1/subscriptions")
        await at.stripe_change(f"/v1/subscriptions/{begun['id']}", **params)
        at.clock.advance(timedelta(days=1))

    return act


MOVES: Final[Mapping[str, Callable[[Shop], Awaitable[None]]]] = {
    "renewed": renew,
    "begun anew": change(**{"billing_cycle_anchor[type]": "now"}),
    "given a trial": change(trial_end=str(int((HALF + timedelta(days=9)).timestamp()))),
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_preview_is_what_is_charged_after_a_late_webhook(store_url: str, move: str) -> None:
    """F-227: no webhook has told of the period at Stripe."""
    async with shop(store_url) as at:
        await at.subscribed(plan="team")
        await MOVES[move](at)
        before = len(await at.invoices())
        preview = (await at.kit.subscriptions.preview("acme", plan="pro")).proration
        assert (await at.kit.subscriptions.change_plan("acme", "pro")).proration == preview
        lines = [line for invoice in (await at.invoices())[before:] for line in invoice["lines"]["data"]]
        now_s = int(at.clock.now().timestamp())
        prorated = sum(line["amount"] for line in lines if line["period"]["start"] == now_s)
        assert prorated == preview.net_cents
        assert preview.net_cents > 0 or move == "given a trial"


def sell_by_quarter(emulator: StripeEmulator, catalog: Catalog) -> None:
    """Sell ``pro`` at prices of 3 months, which a person made; the plans file says a month."""
    quarterly = {"interval_count": 3}
    product, meter = emulator.add_product("pro"), emulator.add_meter("api_words")
    price = catalog.plans["pro"].price.stripe_price
    emulator.add_price(3000, price_id=price, product=product, recurring=quarterly)
    emulator.add_price(5, price_id="price_words", product=product, meter=meter, recurring=quarterly)


async def test_a_price_of_usage_has_the_interval_of_its_item(store_url: str) -> None:
    catalog = loads(PLANS.replace("1000, interval: month", "1000, interval: month, stripe_price: price_pro"))
    async with shop(store_url, catalog=catalog, selling=sell_by_quarter) as at:
        at.emulator.add_customer("cus_acme")
        at.emulator.add_payment_method("cus_acme")
        items = [{"price": "price_pro"}, {"price": "price_words"}]
        await at.post("/v1/subscriptions", {"customer": "cus_acme", "items": items})
        await at.kit.customers.link("acme", "cus_acme")
        price = (await at.kit.usage("acme"))["meters"]["words"].get("price")
        assert price == {"per": 1, "amount_cents": 5, "currency": "usd", "interval": "3 months"}
