"""Usage, pages and statements have the price of the customer's own subscription items at Stripe."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.customer_states import closed_period_cents, forget_prices, state_of
from drivers.delivery import kit_for
from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.priced_shop import buyer, renewed
from drivers.sampled import whole
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_figures import Tables
from meterkit.catalog import loads
from meterkit.pages import usage_page

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from drivers.shop import Shop
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("own_prices")


PRESENT: Final = "present"


NEW: Final = "new"


NEW_END: Final = HALF + timedelta(days=30)


@dataclass(kw_only=True)
class Books:
    """A shop whose plans file is edited amid a period: what each customer is shown, limited by and billed."""

    shop: Shop
    kit: MeterKit

    async def shown(self, customer: str, meter: str = "words") -> int | None:
        return (await self.kit.usage(customer))["meters"][meter]["overage_cents"]

    async def most(self, customer: str, meter: str = "words") -> int:
        """How many units more the customer's budget admits."""
        low, high = 0, 100_000
        while low < high:
            middle = (low + high + 1) // 2
            is_admitted = (await self.kit.check(customer, meter, middle)).allowed
            low, high = (middle, high) if is_admitted else (low, middle - 1)
        return low

    async def invoiced(self, customer: str) -> int:
        """What the lines of usage on all invoices of a customer come to, in cents."""
        linked = (await self.kit.customers.get(customer)).stripe_customer
        prices = await self.shop.stripe_list("/v1/prices")
        metered = {price["id"] for price in prices if price["recurring"].get("meter")}
        return sum(
            line["amount"]
            for invoice in await self.shop.invoices()
            if invoice["customer"] == linked
            for line in invoice["lines"]["data"]
            if line["pricing"]["price_details"]["price"] in metered
        )

    async def end_periods(self) -> list[str]:
        """Deliver all, and end both periods with final invoices; what closes and books ask for."""
        asked = list[str]()
        await self.kit.flush(everything=True)
        for end in (END, NEW_END):
            for wait in (timedelta(0), timedelta(minutes=11)):
                self.shop.clock.set(end + wait)
                self.shop.emulator.advance()
            looked = await look_at_closes(self.kit)
            asked += looked.late
            assert looked.open == 0
            self.shop.clock.set(end + timedelta(hours=3))
            self.shop.emulator.advance()
        for customer, end in ((PRESENT, END), (NEW, NEW_END)):
            found = await self.kit.reconcile(customer, at=end - timedelta(hours=1))
            asked += [one.advice for one in found if one.advice]
        return asked


@asynccontextmanager
async def edited(
    store_url: str, before: str, after: str, refused: Sequence[str] = (), *, used: int = 30
) -> AsyncGenerator[Books]:
    """A present customer bought ``pro`` under one plans file, and a new one under the next, after `sync`."""
    catalog = loads(before)
    async with shop(store_url, catalog=catalog, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="pro")
        at.clock.set(HALF)
        await at.kit.record(PRESENT, "words", used)
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after)) as kit:
            done = await kit.stripe.sync()
            assert [problem.partition(":")[0] for problem in done.problems] == [*refused]
            now = replace(at, kit=kit)
            await now.subscribed(NEW, plan="pro")
            yield Books(shop=now, kit=kit)


DEARER: Final = ("amount_cents: 5}", "amount_cents: 7}")


YEARLY: Final = ("1000, interval: month", "1000, interval: year")


EVENT: Final = ("api_words", "api_words_2")


@pytest.mark.parametrize(
    ("after", "units"),
    [
        (PLANS.replace(*YEARLY), (450, 450)),
        (PLANS.replace(*EVENT).replace(*DEARER), (450, 630)),
        whole(PLANS.replace(*DEARER), (450, 630)),
    ],
    ids=["interval", "event name and amount", "amount"],
)
async def test_shown_limited_and_invoiced_prices_agree(
    store_url: str, after: str, units: tuple[int, int]
) -> None:
    """F-221: 630 cents were shown for 490 that Stripe billed."""
    present, new = units
    # Sync makes nothing where the interval differs: new customers get the price of before, too.
    refused = ("pro, base", "pro, words") if "interval: year" in after else ()
    async with edited(store_url, PLANS, after, refused) as books:
        assert (await books.shown(PRESENT), await books.shown(NEW)) == (100, 0)
        await books.kit.record(PRESENT, "words", 70)
        await books.kit.record(NEW, "words", 100)
        assert (await books.shown(PRESENT), await books.shown(NEW)) == units
        own = {"per": 1, "amount_cents": present // 90, "currency": "usd", "interval": "month"}
        assert (await books.kit.usage(PRESENT))["meters"]["words"].get("price") == own
        left = ((1000 - present) // (present // 90), (1000 - new) // (new // 90))
        assert (await books.most(PRESENT), await books.most(NEW)) == left
        assert await books.end_periods() == []
        assert (await books.invoiced(PRESENT), await books.invoiced(NEW)) == units


async def test_a_price_changed_at_stripe_ends_its_segment(store_url: str) -> None:
    """The plan stays the same: units before the change keep their price, later ones have the new price."""
    async with edited(store_url, PLANS, PLANS.replace(*DEARER)) as books:
        at = books.shop
        await books.kit.flush(everything=True)
        at.clock.advance(timedelta(hours=1))
        found = await books.kit.subscriptions.get(PRESENT)
        assert found is not None
        items = (await at.stripe_subscription(found.id))["items"]["data"]
        metered = next(item["id"] for item in items if item["price"]["recurring"].get("meter"))
        price = next(
            one["id"] for one in await at.stripe_list("/v1/prices") if one["unit_amount_decimal"] == "7"
        )
        await at.stripe_change(f"/v1/subscription_items/{metered}", price=price)
        await books.kit.subscriptions.sync(PRESENT)
        assert await books.shown(PRESENT) == 100
        at.clock.advance(timedelta(minutes=2))
        await books.kit.record(PRESENT, "words", 10)
        assert await books.shown(PRESENT) == 170
        assert await books.most(PRESENT) == (1000 - 170) // 7
        assert await books.end_periods() == []
        assert await books.invoiced(PRESENT) == 170


async def test_a_repair_moves_a_present_customer_to_the_new_event_name(store_url: str) -> None:
    """Units before it are billed by the former item, later ones by the new one, each at its own price."""
    async with edited(store_url, PLANS, PLANS.replace(*EVENT).replace(*DEARER)) as books:
        assert [drift.kind for drift in (await books.kit.subscriptions.check())[PRESENT]] == ["missing_meter"]
        await books.kit.subscriptions.repair(PRESENT)
        books.shop.clock.advance(timedelta(minutes=2))
        await books.kit.record(PRESENT, "words", 10)
        assert await books.shown(PRESENT) == 170
        assert await books.end_periods() == []
        assert await books.invoiced(PRESENT) == 170


USAGE_SENT: Final = ("api_words}", "api_words, report: usage}")


@pytest.mark.parametrize(("becomes", "used"), [("usage", 4), ("overage", 30)])
async def test_an_edited_report_keeps_what_the_price_says(store_url: str, becomes: str, used: int) -> None:
    """F-22a: a flat price billed included units, or a free tier came on top of the included quantity."""
    before, after = PLANS, PLANS.replace(*USAGE_SENT)
    if becomes == "overage":
        before, after = after, before
    async with edited(store_url, before, after, used=used) as books:
        assert (await books.shown(PRESENT), await books.shown(NEW)) == (5 * max(0, used - 10), 0)
        await books.kit.subscriptions.sync(PRESENT)
        await books.kit.record(PRESENT, "words", 100 - used)
        await books.kit.record(NEW, "words", 100)
        # Of 100 units 10 are included, once.
        assert (await books.shown(PRESENT), await books.shown(NEW)) == (450, 450)
        assert (await books.most(PRESENT), await books.most(NEW)) == (110, 110)
        assert await books.end_periods() == []
        assert (await books.invoiced(PRESENT), await books.invoiced(NEW)) == (450, 450)


async def move_to_price(at: Shop, subscription: str, **price: str) -> None:
    """Have a person make another price of the same meter at Stripe, and put it in the subscription."""
    items = (await at.stripe_subscription(subscription))["items"]["data"]
    metered = next(item for item in items if item["price"]["recurring"].get("meter"))
    meter = metered["price"]["recurring"]["meter"]
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter}
    asked = {"currency": "usd", "product": metered["price"]["product"], **price}
    asked |= {f"recurring[{name}]": value for name, value in recurring.items()}
    await at.stripe_change("/v1/prices", **asked)
    made = (await at.stripe_list("/v1/prices"))[0]
    await at.stripe_change(f"/v1/subscription_items/{metered['id']}", price=made["id"])
    await at.kit.subscriptions.sync(PRESENT)
    at.clock.advance(timedelta(minutes=2))


ODD_PRICES: Final = {
    "packages": (
        {"unit_amount": "30", "transform_quantity[divide_by]": "10", "transform_quantity[round]": "up"},
        "it is of packages of several units",
    ),
    "volume tiers": (
        {
            "billing_scheme": "tiered",
            "tiers_mode": "volume",
            "tiers[0][up_to]": "100",
            "tiers[0][unit_amount]": "5",
            "tiers[1][up_to]": "inf",
            "tiers[1][unit_amount]": "4",
        },
        "it has tiers that are not graduated",
    ),
    "graduated tiers": (
        {
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers[0][up_to]": "100",
            "tiers[0][unit_amount]": "4",
            "tiers[1][up_to]": "inf",
            "tiers[1][unit_amount]": "3",
        },
        "it has several tiers that cost something",
    ),
}


@pytest.mark.usefixtures("valkey")
@pytest.mark.parametrize("name", ODD_PRICES)
async def test_f_227_an_uncomputable_price_is_named_by_health(store_url: str, name: str) -> None:
    price, reason = ODD_PRICES[name]

    async def named(at: Shop) -> list[str]:
        problems = [one.problem for one in (await at.kit.health()).findings if one.check == "subscriptions"]
        drifts = (await at.kit.subscriptions.check()).get(PRESENT, ())
        return [*problems, *(one.message for one in drifts if one.kind == "inexact_price")]

    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        found = await at.subscribed(PRESENT, plan="pro")
        assert await named(at) == []
        own = (await at.stripe_subscription(found.id))["items"]["data"]
        await move_to_price(at, found.id, **price)
        item = next(
            one
            for one in (await at.stripe_subscription(found.id))["items"]["data"]
            if one["price"]["recurring"].get("meter")
        )
        said = await named(at)
        assert len(said) >= 2
        for words in (said[-2], said[-1]):
            assert f"words is billed at {item['price']['id']}" in words
            assert reason in words
            assert "kit.usage, budgets and spend limits count its overage at the plans file's price" in words
        assert any(PRESENT in words for words in said)
        before = next(one["price"]["id"] for one in own if one["price"]["recurring"].get("meter"))
        await at.stripe_change(f"/v1/subscription_items/{item['id']}", price=before)
        await at.kit.subscriptions.sync(PRESENT)
        assert await named(at) == []


MORE: Final = f"""{PLANS}  max:
    rank: 20
    price: {{amount_cents: 2000, interval: month}}
    budget: {{amount_cents: 1000}}
    meters: {{words: {{included: 10, overage: {{bill: {{per: 1, amount_cents: 3}}}}}}}}
"""


async def test_a_price_that_becomes_known_covers_the_whole_period(store_url: str) -> None:
    """A release before this one stored no prices: the next look at Stripe ends no segment."""
    async with edited(store_url, PLANS, PLANS.replace(*DEARER)) as books:

        async def shown() -> tuple[int | None, bool | None]:
            words = (await books.kit.usage(PRESENT))["meters"]["words"]
            return words["overage_cents"], words.get("price", {}).get("estimated")

        await forget_prices(books.kit, PRESENT)
        assert await shown() == (140, True)
        await books.kit.subscriptions.check()
        assert await shown() == (100, None)
        await books.kit.record(PRESENT, "words", 70)
        assert await shown() == (450, None)
        assert await books.end_periods() == []


async def test_overage_is_rounded_like_the_invoice_lines(store_url: str) -> None:
    """F-221: half cents were rounded to even, and only once over prices that have a line each."""
    after = MORE.replace("per: 1, amount_cents: 3", "per: 1000, amount_cents: 7")
    before = after.replace("per: 1, amount_cents: 5", "per: 1000, amount_cents: 12")
    async with edited(store_url, before, after) as books:
        # 20 units of before come to 0.24 cents.
        await books.kit.record(PRESENT, "words", 1_355)
        assert await books.shown(PRESENT) == 17  # 16.5
        await books.kit.subscriptions.change_plan(PRESENT, "max")
        await books.kit.record(PRESENT, "words", 206)
        assert await books.shown(PRESENT) == 18  # 16.5 and 1.442
        assert await books.end_periods() == []
        assert await books.invoiced(PRESENT) == 18


@pytest.mark.parametrize("currency", ["usd", whole("jpy")])
async def test_units_the_plan_did_not_bill_stay_free(store_url: str, currency: str) -> None:
    """F-22h: the cost of later units was not shown."""
    plans = PLANS.replace("currency: usd", f"currency: {currency}")
    async with edited(store_url, plans, plans.replace(*DEARER)) as books:
        await books.kit.customers.override(PRESENT, {"words": {"overage": "deny"}})
        await books.kit.record(PRESENT, "words", 10)
        assert await books.shown(PRESENT) == 100
        await books.kit.customers.override(PRESENT, {"words": {}})
        await books.kit.record(PRESENT, "words", 7)
        assert await books.shown(PRESENT) == 135
        assert await books.most(PRESENT) == (1000 - 135) // 5
        assert await books.end_periods() == []
        assert await books.invoiced(PRESENT) == 135


async def test_a_scheduled_change_brings_its_price_at_its_second(store_url: str) -> None:
    """Before any webhook tells of it: the price that the schedule names, not that of the file."""
    async with shop(store_url, catalog=loads(MORE), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(PRESENT, plan="max")
        await at.kit.subscriptions.change_plan(PRESENT, "pro")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(MORE.replace(*DEARER))) as kit:
            await kit.stripe.sync()
            at.clock.set(END + timedelta(minutes=1))
            at.emulator.advance()
            await kit.record(PRESENT, "words", 30)
            assert await Books(shop=at, kit=kit).shown(PRESENT) == 100


OLDER_FILE: Final = plans_text("older_plans_file_older")


NEWER_FILE: Final = f"""{OLDER_FILE}  plus:
    rank: 20
    price: {{amount_cents: 2000, interval: month}}
    meters: {{words: {{included: 10, overage: {{bill: {{per: 1, amount_cents: 3}}}}}}}}
"""


@asynccontextmanager
async def two_files(store_url: str) -> AsyncGenerator[tuple[Shop, MeterKit]]:
    """A shop with the newer file, whose customer ``acme`` has ``plus``; and a process with the older one."""
    async with shop(store_url, catalog=loads(NEWER_FILE), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="plus")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(OLDER_FILE)) as older:
            yield at, older


async def shown_words(kit: MeterKit) -> tuple[str, int | None]:
    usage = await kit.usage("acme")
    return usage["plan"], usage["meters"]["words"]["overage_cents"]


async def test_an_older_plans_file_keeps_an_unknown_plan(store_url: str) -> None:
    async with two_files(store_url) as (at, older):
        await older.subscriptions.sync("acme")
        await older.subscriptions.check()
        await at.kit.record("acme", "words", 30)
        assert await shown_words(at.kit) == ("plus", 60)


DERIVED: Final = plans_text("derived_costs")


def answer_of(model: str, tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    return {"object": "chat.completion", "model": model, "choices": [], "usage": usage}


async def charged_cents(at: Shop) -> int:
    metered = {price["id"] for price in await at.stripe_list("/v1/prices") if price["recurring"].get("meter")}
    return sum(
        line["amount"]
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if line["pricing"]["price_details"]["price"] in metered
    )


@pytest.mark.parametrize(
    ("large", "then", "granted", "cents"),
    [
        # 10,000 included, then 90,000 at 2 cents a thousand and 100,000 of the large model at 6.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", None, 0, 180 + 600),
        ("{included: unlimited}", None, 0, 180 + 200),  # Stripe has the source's price for both.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", None, 50_000, 80 + 600),
        # The same again on another plan, at 1 and 4 cents.
        ("{overage: {bill: {per: 1000, amount_cents: 6}}}", "more", 0, 180 + 600 + 100 + 400),
    ],
    ids=["own price", "price of the source", "grant", "change of plan"],
)
async def test_costs_that_are_shown_are_those_of_the_invoice(
    large: str, then: str | None, granted: int, cents: int
) -> None:
    catalog = loads(DERIVED.replace("LARGE", large))
    async with shop("memory://", catalog=catalog, selling=sell_nothing, key_prefix=f"{cents}") as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        if granted:
            await at.kit.grants.add("acme", {"output_tokens": granted}, grant_id="sorry")
        for plan in filter(None, ("pro", then)):
            if plan == then:
                await at.kit.subscriptions.change_plan("acme", plan)
            await at.kit.record_usage("acme", answer_of("our-small", 100_000))
            await at.kit.record_usage("acme", answer_of("our-large", 100_000))
        meters = (await at.kit.usage("acme"))["meters"]
        assert sum(meters[name]["overage_cents"] or 0 for name in catalog.meters) == cents
        period = (await at.kit.usage("acme"))["period"]
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await charged_cents(at) == cents
        ended = await at.kit.usage("acme", period=period["start"])
        assert await closed_period_cents(at.kit, ended) == cents


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
        (expected, *_), (cents, *_) = (
            figures["forecast"]["meters"]["words"],
            figures["forecast"]["cost_cents"],
        )
        assert cents == 1003 + 3 * 703 + 5 * (expected - 10)


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
    async with edited(store_url, PLANS, PLANS.replace(*USAGE_SENT)) as books:
        await books.kit.flush(everything=True)
        books.shop.clock.set(END + timedelta(hours=3))
        books.shop.emulator.advance()
        await books.kit.subscriptions.sync(PRESENT)
        await books.kit.record(PRESENT, "words", 30)
        assert await books.shown(PRESENT) == 100
        await books.kit.flush(everything=True)
        books.shop.clock.set(END + timedelta(days=31, hours=3))
        books.shop.emulator.advance()
        books.shop.clock.advance(timedelta(hours=2))
        books.shop.emulator.advance()
        assert await books.invoiced(PRESENT) == 200
