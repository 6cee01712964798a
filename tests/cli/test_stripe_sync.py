"""Meters, products and prices of a plans file at Stripe: made once, found again, refused where wrong."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.command_line import InProcessShell
from drivers.delivery import STRIPE_KEY
from drivers.emulated_account import stripe_api, unpaced
from drivers.plans import plans_text
from meterkit import Catalog, MeterKit, StripeSync
from meterkit.catalog import loads
from meterkit.errors import StripeError
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PLANS = plans_text("stripe_sync")

PARTS = plans_text("stripe_sync_parts")

TOP_UPS = """
schema: 1
currency: usd
default_plan: free
meters: {input_tokens: {unit: token}, output_tokens: {unit: token}}
credits: {money: {unit: money, costs: {tokens: provider_prices}, top_up: {packs: [1000]}}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of calls to Stripe have tests of their own."""
    unpaced(monkeypatch)


class Shop:
    """An emulated account, and what syncs it."""

    def __init__(self, emulator: StripeEmulator, url: str, api: Any) -> None:
        self.emulator = emulator
        self.settings: dict[str, Any] = {"stripe_api_key": STRIPE_KEY, "stripe_api_base": url}
        self.api = api

    async def sync(self, plans: str = PLANS, *, dry_run: bool = False) -> StripeSync:
        return await self.sync_catalog(loads(plans), dry_run=dry_run)

    async def sync_catalog(self, catalog: Catalog, *, dry_run: bool = False) -> StripeSync:
        async with MeterKit(catalog, redis_url="memory://", flush=False, **self.settings) as kit:
            return await kit.stripe.sync(dry_run=dry_run)

    async def prices(self) -> dict[str, dict[str, Any]]:
        """The active prices, by nickname."""
        asked: Any = {"active": True, "expand": ["data.tiers"]}
        return {price["nickname"]: price for price in await self.api.list("/v1/prices", asked)}

    def changes(self) -> int:
        """How often Stripe was asked to change something."""
        return sum(request.method == "POST" for request in self.emulator.requests)

    async def refuses(self, plans: str, *, dry_run: bool = False) -> str:
        """Sync plans of which Stripe gets nothing; the one problem."""
        before = self.changes()
        done = await self.sync(plans, dry_run=dry_run)
        assert (done.lines, self.changes()) == ([], before)
        (problem,) = done.problems
        return problem


@pytest.fixture
async def at() -> AsyncGenerator[Shop]:
    emulator = StripeEmulator()
    async with emulator.serve() as url, stripe_api(url, STRIPE_KEY) as api:
        yield Shop(emulator, url, api)


async def test_what_is_missing_is_made_and_asked_again_nothing_new_is(at: Shop) -> None:
    first = await at.sync()
    assert (first.problems, first.notes) == ([], [])
    assert [(line.what, line.name) for line in first.lines] == [
        *(("meter", "api_requests"), ("meter", "ai_tokens"), ("product", "pro"), ("price", "pro, base")),
        *(("product", "pro: seats"), ("price", "pro, seats")),
        *(
            ("product", "Requests"),
            ("price", "pro, requests"),
            ("product", "Tokens"),
            ("price", "pro, tokens"),
        ),
    ]
    assert {line.action for line in first.lines} == {"made"}
    assert {line.name: line.price for line in first.lines if line.what == "price"} == {
        "pro, base": "$29.00 per month",
        "pro, seats": "$9.00 per seat and month",
        "pro, requests": "10,000 free, then $0.00012 per request, each month",
        "pro, tokens": "$0.00333333333333 per token, each month",
    }
    prices, before = await at.prices(), at.changes()
    base, seats = prices["pro, base"], prices["pro, seats"]
    assert first.paste == {}, "they are found by their lookup keys"
    assert [price["unit_amount"] for price in (base, seats)] == [2900, 900]
    # https://docs.stripe.com/api/prices/create: unit_amount_decimal of 12 places; no packages of tiers.
    tiers = [(tier["up_to"], tier["unit_amount_decimal"]) for tier in prices["pro, requests"]["tiers"]]
    assert prices["pro, requests"]["tiers_mode"] == "graduated"
    assert tiers == [(10_000, "0"), (None, "0.012")]
    tokens = prices["pro, tokens"]
    assert (tokens["unit_amount_decimal"], tokens["transform_quantity"]) == ("0.333333333333", None)
    again = await at.sync()
    assert [line.id for line in again.lines] == [line.id for line in first.lines]
    assert {line.action for line in again.lines} == {"is there"}
    assert at.changes() == before


async def test_a_price_that_differs_is_replaced_and_named(at: Shop) -> None:
    first = await at.sync()
    old = {line.name: line.id for line in first.lines}
    plans = PLANS.replace("2900", "3900").replace("amount_cents: 12}", "amount_cents: 15}")
    second = await at.sync(plans)
    made = {line.name: line for line in second.lines if line.action == "made"}
    assert {name: line.instead_of for name, line in made.items()} == {
        name: old[name] for name in ("pro, base", "pro, requests")
    }
    assert any(old["pro, base"] in note and "cannot be changed" in note for note in second.notes)
    price = await at.api.get(f"/v1/prices/{made['pro, requests'].id}", {"expand": ["tiers"]})
    assert price["tiers"][1]["unit_amount_decimal"] == "0.015"
    # A schedule of a present subscriber names them, and Stripe takes only active prices there.
    for name in ("pro, requests", "pro, base"):
        assert (await at.api.get(f"/v1/prices/{old[name]}"))["active"]
    third = await at.sync(plans)
    assert {line.action for line in third.lines} == {"is there"}


@pytest.mark.parametrize("by", ["id", "lookup key", "id of a renamed plan"])
async def test_subscribers_of_a_replaced_price_keep_their_plan(at: Shop, by: str) -> None:
    """Nothing at a price that was made by hand said whose it was, once another had its place.

    One that was made for a plan of another key said so for ever.
    """
    former = {"lookup key": "pro", "id of a renamed plan": "basic"}.get(by)
    keys = [
        {} if former is None else {"lookup_key": f"meterkit:{former}:{part}"} for part in ("base", "seats")
    ]
    base, seat = at.emulator.add_price(2900, **keys[0]), at.emulator.add_price(900, **keys[1])
    customer, plans = at.emulator.add_customer("cus_acme"), PLANS
    if former == "basic":
        await at.sync(plans.replace("2900", "3900").replace("amount_cents: 900", "amount_cents: 990"))
    if former != "pro":
        plans = plans.replace("2900,", f"2900, stripe_price: {base},")
        plans = plans.replace("amount_cents: 900", f"amount_cents: 900, stripe_price: {seat}")
    plans = plans.replace("    seat_price", "    payment_method: optional\n    seat_price")
    at.emulator.add_payment_method(customer)
    items: Any = [{"price": base}, {"price": seat, "quantity": 3}]
    await at.api.post("/v1/subscriptions", {"customer": customer, "items": items})
    dearer = plans.replace("2900", "3900").replace("amount_cents: 900", "amount_cents: 990")
    done = await at.sync(dearer)
    made = at.changes()
    assert ((await at.sync(dearer)).paste, at.changes()) == (done.paste, made)
    for old, new in zip((base, seat), done.paste.get("pro", {}).values(), strict=False):
        dearer = dearer.replace(old, new)
    assert (await at.sync(dearer)).paste == {}
    async with MeterKit(loads(dearer), redis_url="memory://", flush=False, **at.settings) as kit:
        found = await kit.customers.link("acme", customer)
        assert (found.plan, found.seats) == ("pro", 3)
        drifts = (await kit.subscriptions.check())["acme"]
        assert {drift.kind for drift in drifts} == {"missing_meter"}


async def test_a_replaced_price_is_not_sold_by_the_key_it_keeps(at: Shop) -> None:
    """Once another plan has the former key, its customers would be read as on the plan of the mark."""
    former = at.emulator.add_price(
        2900, lookup_key="meterkit:pro:base", metadata={"meterkit": "meterkit:gold:base"}
    )
    done = await at.sync()
    made = next(line for line in done.lines if line.name == "pro, base")
    assert (made.action, made.id == former) == ("made", False)
    assert {line.action for line in (await at.sync()).lines} == {"is there"}


async def test_what_replaces_a_price_is_taxed_like_it(at: Shop) -> None:
    """A price made anew took the account's default: customers paid the tax on top of it."""
    first = await at.sync(in_dollars(TWO))
    base = next(line.id for line in first.lines if line.name == "pro, base")
    euros = {"eur": {"unit_amount": 2700, "tax_behavior": "inclusive"}}
    await at.api.post(f"/v1/prices/{base}", {"tax_behavior": "exclusive", "currency_options": euros})
    other: Any = {"eur": {"unit_amount": 2700, "tax_behavior": "exclusive"}}
    for changed in ({"tax_behavior": "inclusive"}, {"currency_options": other}):
        with pytest.raises(StripeError, match="once it is specified"):
            await at.api.post(f"/v1/prices/{base}", changed)
    done = await at.sync(TWO.replace("usd: 2900", "usd: 3900"))
    made = next(line.id for line in done.lines if line.instead_of == base)
    found = await at.api.get(f"/v1/prices/{made}", {"expand": ["currency_options"]})
    taxed = {currency: of["tax_behavior"] for currency, of in found["currency_options"].items()}
    assert taxed == {"usd": "exclusive", "eur": "inclusive"}


async def test_a_named_price_that_stripe_lacks_is_refused(at: Shop) -> None:
    """F-10a: it was "to make", with exit 0."""
    for dry_run in (True, False):
        plans = PLANS.replace("2900,", "2900, stripe_price: price_gone,")
        problem = await at.refuses(plans, dry_run=dry_run)
        assert problem.startswith("pro, base: the plans file names the price price_gone, which Stripe")
        assert "its lookup key meterkit:pro:base" in problem


@pytest.mark.parametrize(
    ("by", "price", "said"),
    [
        ("id", {"currency": "eur"}, "has the currency eur, and the plans file says usd"),
        ("lookup key", {"interval": "year"}, "has the interval year, and the plans file says month"),
        ("id", {"recurring": {"interval_count": 3}}, "has the interval 3 months, and the plans file says"),
        ("lookup key", {"interval": None}, "has the interval once, and the plans file says month"),
    ],
)
async def test_a_price_of_another_currency_or_interval_is_refused(
    at: Shop, by: str, price: dict[str, Any], said: str
) -> None:
    key = {} if by == "id" else {"lookup_key": "meterkit:pro:base"}
    base = at.emulator.add_price(2900, **price, **key)
    named = PLANS.replace("2900,", f"2900, stripe_price: {base},") if by == "id" else PLANS
    done = await at.sync(named)
    assert (done.lines, at.changes()) == ([], 0)
    assert [problem for problem in done.problems if said in problem]
    assert all(problem.startswith(f"pro, base: the price {base} at Stripe") for problem in done.problems)


async def test_a_named_price_that_is_archived_is_a_problem(at: Shop) -> None:
    first = await at.sync()
    base = next(line.id for line in first.lines if line.name == "pro, base")
    named = PLANS.replace("2900, interval: month", f"2900, interval: month, stripe_price: {base}")
    await at.api.post(f"/v1/prices/{base}", {"active": False})
    problem = await at.refuses(named)
    assert problem.startswith(f"pro, base: the plans file names the price {base}, which is archived")


async def test_a_product_that_is_archived_is_a_problem(at: Shop) -> None:
    """Lists show its prices as active, and Stripe sells none of them."""
    first = await at.sync()
    ids = {(line.what, line.name): line.id for line in first.lines}
    seats, price = ids["product", "pro: seats"], ids["price", "pro, seats"]
    await at.api.post(f"/v1/products/{seats}", {"active": False})
    customer = at.emulator.add_customer("cus_acme")
    with pytest.raises(StripeError, match=f"{seats} is marked as inactive"):
        await at.api.post("/v1/subscriptions", {"customer": customer, "items": [{"price": price}]})
    problem = await at.refuses(PLANS)
    assert problem.startswith(f"pro, seats: the product {seats} of the price {price} is archived at Stripe")
    done = {line.what: line for line in (await at.sync(TOP_UPS)).lines}
    one, pack = done["product"], {"price": done["price"].id, "quantity": 1}
    await at.api.post(f"/v1/products/{one.id}", {"active": False})
    asked: Any = {"mode": "payment", "line_items": [pack], "success_url": "https://app.example/"}
    with pytest.raises(StripeError, match="not available to be purchased because its product is not active"):
        await at.api.post("/v1/checkout/sessions", asked)
    assert f"meterkit-top-up:money:1000: the product {one.id} of the" in (await at.refuses(TOP_UPS))


async def test_a_product_gets_the_name_of_the_plans_file(at: Shop) -> None:
    """The table showed the new name beside the product, which kept the old one."""
    first = await at.sync()
    ids = {line.name: line.id for line in first.lines if line.what == "product"}

    async def names() -> list[str]:
        return [(await at.api.get(f"/v1/products/{product}"))["name"] for product in ids.values()]

    await at.api.post(f"/v1/products/{ids['pro']}", {"name": "By hand"})
    await at.sync()
    assert await names() == ["By hand", "pro: seats", "Requests", "Tokens"]
    named = PLANS.replace("  pro:\n", "  pro:\n    name: Professional\n").replace(
        "requests: {unit: request,", "requests: {unit: request, name: API calls,"
    )
    for dry_run, action in ((True, "to rename"), (False, "renamed"), (False, "is there")):
        done = await at.sync(named, dry_run=dry_run)
        actions = {line.id: line.action for line in done.lines if line.what == "product"}
        assert [actions[product] for product in ids.values()] == [*([action] * 3), "is there"]
    assert await names() == ["Professional", "Professional: seats", "API calls", "Tokens"]
    lines = named.replace(", report: usage", "") + "billing: {usage: lines}\n"
    await at.sync(lines)
    done = await at.sync(lines.replace("API calls", "Calls"))
    assert {line.name: line.action for line in done.lines}["Calls"] == "renamed"
    assert (await at.api.get("/v1/products/meterkit_meter_requests"))["name"] == "Calls"


async def test_plans_of_two_intervals_may_share_a_product(at: Shop) -> None:
    """As Stripe's own pages suggest it: it was refused, with the advice to archive the other plan's price."""
    product, meter = at.emulator.add_product("Pro"), at.emulator.add_meter("ai_tokens")
    sold = {"product": product, "meter": meter}
    month, year = (at.emulator.add_price(2900, product=product, interval=each) for each in ("month", "year"))
    for interval in ("month", "year"):
        at.emulator.add_price(2, interval=interval, **sold)
    at.emulator.add_price(2, currency="eur", **sold)
    plan = "  {}:\n    price: {{amount_cents: 2900, interval: {}, stripe_price: {}}}\n    meters: {}\n"
    meters = "{tokens: {included: 5, overage: {bill: {per: 1, amount_cents: 2}}}}"
    done = await at.sync(
        "schema: 1\ncurrency: usd\ndefault_plan: free\n"
        "meters: {tokens: {unit: token, stripe: {event_name: ai_tokens}}}\n"
        "plans:\n  free: {price: {amount_cents: 0, interval: month}, meters: {tokens: {included: 1}}}\n"
        + plan.format("pro", "month", month, meters)
        + plan.format("annual", "year", year, meters)
    )
    assert done.problems == []
    assert {line.action for line in done.lines} == {"is there"}


TIERS: Final = [{"up_to": 9, "unit_amount": 0}, {"up_to": "inf", "unit_amount": 1}]
BY_1000: Final = {"divide_by": 1000, "round": "up"}


@pytest.mark.parametrize(
    ("report", "price", "why"),
    [
        (
            "overage",
            {"tiers_mode": "graduated", "tiers": TIERS},
            "would give the included units a second time",
        ),
        ("usage", {"unit_amount_decimal": "0.012"}, "would bill the included units"),
        ("overage", {"unit_amount": 7}, "it is not what the plans file says"),
        ("overage", {"unit_amount": 12, "transform_quantity": BY_1000}, "whole packages, and the plans file"),
        (
            "overage",
            {"currency": "eur", "unit_amount": 7, "currency_options": {"usd": {"unit_amount": 7}}},
            "it is not what the plans file says",
        ),
    ],
)
async def test_a_price_that_would_bill_wrongly_stops_the_sync(
    at: Shop, report: str, price: dict[str, Any], why: str
) -> None:
    plans = PLANS.replace("report: usage", f"report: {report}")
    product = at.emulator.add_product("Pro", product_id="prod_pro")
    base = at.emulator.add_price(2900, price_id="price_pro", product=product)
    meter = at.emulator.add_meter("api_requests")
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter}
    params = {"product": product, "currency": "usd", "recurring": recurring, **price}
    params |= {"billing_scheme": "tiered"} if "tiers" in price else {}
    theirs = await at.api.post("/v1/prices", params)
    problem = await at.refuses(plans.replace("2900,", f"2900, stripe_price: {base},"))
    assert theirs["id"] in problem
    assert why in problem


async def test_what_no_price_can_say_is_refused(at: Shop) -> None:
    for said, instead, why in (
        ("2900, interval: month", "2900, interval: year", "one free tier a year"),
        ("per: 1000, amount_cents: 12", "per: 70_000_001, amount_cents: 12", "less for a unit than the 12"),
    ):
        problem = await at.refuses(PLANS.replace(said, instead))
        assert problem.startswith("plan pro, meter requests: ")
        assert why in problem


async def test_a_deactivated_meter_is_active_again(at: Shop) -> None:
    first = await at.sync()
    meter = next(line.id for line in first.lines if line.name == "ai_tokens")
    await at.api.post(f"/v1/billing/meters/{meter}/deactivate")
    for dry_run, action in ((True, "to reactivate"), (False, "reactivated"), (False, "is there")):
        done = await at.sync(dry_run=dry_run)
        assert {line.name: line.action for line in done.lines}["ai_tokens"] == action


async def test_an_active_meter_comes_before_a_newer_inactive_one(at: Shop) -> None:
    first = await at.sync()
    older = next(line.id for line in first.lines if line.name == "ai_tokens")
    await at.api.post(f"/v1/billing/meters/{older}/deactivate")
    newer = at.emulator.add_meter("ai_tokens")
    await at.api.post(f"/v1/billing/meters/{newer}/deactivate")
    await at.api.post(f"/v1/billing/meters/{older}/reactivate")
    (line,) = [line for line in (await at.sync()).lines if line.name == "ai_tokens"]
    assert (line.id, line.action) == (older, "is there")


async def test_a_meter_of_another_formula_is_a_problem(at: Shop) -> None:
    at.emulator.add_meter("ai_tokens", formula="last")
    assert "aggregates by last" in await at.refuses(PLANS)


async def test_an_inherited_price_of_another_amount_is_refused(at: Shop) -> None:
    more = "  max: {extends: pro, rank: 20, price: {amount_cents: 9900}}\n"
    at.emulator.add_price(2900, price_id="price_pro")
    problem = await at.refuses(PLANS.replace("2900,", "2900, stripe_price: price_pro,") + more)
    assert problem.startswith("plan max: has the stripe_price of plan pro ($29.00 per month)")
    assert "another price ($99.00 per month)" in problem


async def test_a_derived_meter_needs_an_amount_or_a_price(at: Shop) -> None:
    plans = PARTS.replace("overage: {bill: {per: 1000, amount_cents: 12}}", "overage: bill")
    product = at.emulator.add_product("Pro", product_id="prod_pro")
    base = at.emulator.add_price(2900, price_id="price_pro", product=product)
    plans = plans.replace("2900,", f"2900, stripe_price: {base},")
    meter = at.emulator.add_meter("large_requests")
    problem = await at.refuses(plans)
    assert problem.startswith("plan pro, meter large: a part of requests, billed under an event of its own")
    assert "on no invoice" in problem
    params: Any = {"product": product, "currency": "usd", "unit_amount": 1}
    params["recurring"] = {"interval": "month", "usage_type": "metered", "meter": meter}
    await at.api.post("/v1/prices", params)
    assert (await at.sync(plans)).problems == []


@pytest.mark.parametrize(
    ("of_whole", "of_part", "found"),
    [
        ("usage", "overage", "requests has `report: usage`"),
        ("overage", "usage", "large has `report: usage`"),
        ("usage", "none", "requests has `report: usage`"),
    ],
)
async def test_a_derived_meter_of_a_fully_sent_source_is_refused(
    at: Shop, of_whole: str, of_part: str, found: str
) -> None:
    plans = PARTS.replace("api_requests", f"api_requests, report: {of_whole}")
    plans = plans.replace("large_requests", f"large_requests, report: {of_part}")
    problem = await at.refuses(plans)
    assert problem.startswith(f"plan pro, meter large: {found}, and it is a part of requests: ")
    assert "gives included units a second time" in problem
    assert "write `report: overage` for both" in problem
    # Where the source includes nothing, all of it is overage.
    assert (await at.sync(plans.replace("included: 10_000", "included: 0"))).problems == []


def test_the_command(directory: Path) -> None:
    (directory / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator()
    with emulator.running() as url:
        shell = InProcessShell(directory, METERKIT_STRIPE_API_KEY=STRIPE_KEY, METERKIT_STRIPE_API_BASE=url)
        dry = shell.run("stripe", "sync", "--dry-run")
        assert (dry.code, "to make" in dry.out, "stripe_price" in dry.out) == (0, True, False)
        made = shell.run("stripe", "sync", "--json")
        assert made.code == 0
        price = next(line["id"] for line in made.json["lines"] if line["name"] == "pro, base")
        again = shell.run("stripe", "sync")
        assert (price in again.out, "$29.00 per month" in again.out) == (True, True)
        assert "stripe_price" not in again.out
        named = PLANS.replace("2900,", f"3900, stripe_price: {price},")
        (directory / "plans.yaml").write_text(named)
        newer = shell.run("stripe", "sync")
        assert "    price: {stripe_price: price_" in newer.out
        (directory / "plans.yaml").write_text(PLANS.replace("2900,", "2900, stripe_price: price_gone,"))
        missing = shell.run("stripe", "sync", "--dry-run")
        assert (missing.code, "which Stripe does not have" in missing.err) == (1, True)
        (directory / "plans.yaml").write_text(PLANS.replace("per: 1000", "per: 70_000_001"))
        refused = shell.run("stripe", "sync")
        assert (refused.code, "nothing was created" in refused.err) == (1, True)
        assert STRIPE_KEY not in made.out + made.err + refused.err
    without = InProcessShell(directory).run("stripe", "sync")
    assert (without.code, "METERKIT_STRIPE_API_KEY" in without.err) == (2, True)


TWO: Final = plans_text("two_currencies")
BY_CURRENCY: Final = re.compile(r"\{usd: (\d+), eur: \d+\}")


def in_dollars(plans: str) -> str:
    """The same file with its dollars alone."""
    return BY_CURRENCY.sub(r"\1", plans).replace("[usd, eur]", "usd")


async def amounts(at: Shop, price: str) -> dict[str, str | list[str]]:
    """What a price costs, or a unit in each of its tiers, by currency."""
    expand: Any = ["currency_options", "currency_options.eur.tiers", "currency_options.usd.tiers"]
    try:
        found = await at.api.get(f"/v1/prices/{price}", {"expand": expand})
    except StripeError:  # It has dollars alone.
        found = await at.api.get(f"/v1/prices/{price}", {"expand": expand[:1]})
    return {
        currency: [tier["unit_amount_decimal"] for tier in of["tiers"]]
        if of.get("tiers")
        else of["unit_amount_decimal"]
        for currency, of in found["currency_options"].items()
    }


async def test_one_price_has_the_amounts_of_all_currencies(at: Shop) -> None:
    first = await at.sync(TWO)
    assert (first.problems, first.notes) == ([], [])
    prices = {line.name: line for line in first.lines if line.what == "price"}
    assert {name: line.price for name, line in prices.items()} == {
        "pro, base": "$29.00 per month; €27.00 per month",
        "pro, seats": "$9.00 per seat and month; €8.00 per seat and month",
        "pro, requests": (
            "1,000 free, then $0.03 per request, each month; 1,000 free, then €0.02 per request, each month"
        ),
        "pro, tokens": "$0.0012 per token, each month; €0.0011 per token, each month",
        "add-on pack": "$5.00 per add-on and month; €4.50 per add-on and month",
    }
    assert [line.name for line in first.lines if line.what == "product"][-1] == "Word pack"
    assert {name: await amounts(at, line.id) for name, line in prices.items()} == {
        "pro, base": {"usd": "2900", "eur": "2700"},
        "pro, seats": {"usd": "900", "eur": "800"},
        "pro, requests": {"usd": ["0", "3"], "eur": ["0", "2"]},
        "pro, tokens": {"usd": "0.12", "eur": "0.11"},
        "add-on pack": {"usd": "500", "eur": "450"},
    }
    (pack,) = await at.api.list("/v1/prices", {"lookup_keys": ["meterkit:addon:pack"], "active": True})
    assert pack["metadata"] == {"meterkit": "meterkit:addon:pack"}
    before = at.changes()
    again = await at.sync(TWO)
    assert {line.action for line in again.lines} == {"is there"}
    assert [line.id for line in again.lines] == [line.id for line in first.lines]
    assert at.changes() == before


async def test_a_further_currency_is_added_to_present_prices(at: Shop) -> None:
    first = await at.sync(in_dollars(TWO))
    ids = {line.name: line.id for line in first.lines if line.what == "price"}
    assert [list(await amounts(at, price)) for price in ids.values()] == [["usd"]] * len(ids)
    before = at.changes()
    planned = await at.sync(TWO, dry_run=True)
    assert {line.action for line in planned.lines if line.what == "price"} == {"to extend"}
    assert at.changes() == before
    done = await at.sync(TWO)
    assert {line.name: (line.id, line.action) for line in done.lines if line.what == "price"} == {
        name: (price, "extended") for name, price in ids.items()
    }
    assert (await amounts(at, ids["pro, requests"]))["eur"] == ["0", "2"]
    assert {line.action for line in (await at.sync(TWO)).lines} == {"is there"}
    # A file that leaves a currency out again changes nothing: its subscribers keep their amounts.
    before = at.changes()
    assert {line.action for line in (await at.sync(in_dollars(TWO))).lines} == {"is there"}
    assert at.changes() == before


async def test_an_amount_in_any_currency_is_never_changed(at: Shop) -> None:
    first = await at.sync(TWO)
    old = {line.name: line.id for line in first.lines}
    plans = TWO.replace("eur: 2700", "eur: 2800").replace("eur: 450", "eur: 400")
    second = await at.sync(plans)
    made = {line.name: line for line in second.lines if line.action == "made"}
    assert {name: line.instead_of for name, line in made.items()} == {
        name: old[name] for name in ("pro, base", "add-on pack")
    }
    (base,) = [note for note in second.notes if note.startswith("pro, base: ")]
    assert f"{old['pro, base']} is $29.00 per month; €27.00 per month, and a price cannot" in base
    assert await amounts(at, made["pro, base"].id) == {"usd": "2900", "eur": "2800"}
    for name, eur in (("pro, base", "2700"), ("add-on pack", "450")):
        assert (await amounts(at, old[name]))["eur"] == eur
        assert (await at.api.get(f"/v1/prices/{old[name]}"))["active"]
    assert {line.action for line in (await at.sync(plans)).lines} == {"is there"}


async def test_a_named_price_may_have_all_currencies_or_each_its_own(at: Shop) -> None:
    dollars, euros = at.emulator.add_price(2900), at.emulator.add_price(2700, currency="eur")
    amount = "{amount_cents: {usd: 2900, eur: 2700}, interval: month"
    one = TWO.replace(amount, f"{amount}, stripe_price: {dollars}")
    done = await at.sync(one)
    assert (done.problems, done.paste) == ([], {})
    assert await amounts(at, dollars) == {"usd": "2900", "eur": "2700"}
    each = TWO.replace(amount, f"{amount}, stripe_price: {{usd: {dollars}, eur: {euros}}}")
    done = await at.sync(each)
    named = {line.name: (line.id, line.action) for line in done.lines if ", base" in line.name}
    assert named == {"pro, base": (dollars, "is there"), "pro, base, eur": (euros, "is there")}
    assert await amounts(at, euros) == {"eur": "2700"}
    dearer = await at.sync(each.replace("eur: 2700", "eur: 2800"))
    (made,) = [line for line in dearer.lines if line.action == "made"]
    assert (made.name, made.instead_of) == ("pro, base, eur", euros)
    assert dearer.paste == {"pro": {"price, eur": made.id}}
    again = await at.sync(each.replace("eur: 2700", "eur: 2800"))
    assert (again.paste, {line.action for line in again.lines}) == (dearer.paste, {"is there"})
    seats = f"{at.emulator.add_price(900)}, eur: {at.emulator.add_price(800, currency='eur')}"
    amount = "amount_cents: {usd: 900, eur: 800}"
    seated = each.replace(amount, f"{amount}, stripe_price: {{usd: {seats}}}").replace("eur: 800", "eur: 850")
    dearer = await at.sync(seated)
    assert [*dearer.paste["pro"]] == ["seat_price, eur"]
    again = await at.sync(seated)
    assert (again.paste, {line.action for line in again.lines}) == (dearer.paste, {"is there"})
    problem = await at.refuses(each.replace(f"eur: {euros}", f"eur: {at.emulator.add_price(2700)}"))
    assert "has the currency usd, and the plans file says eur" in problem


@pytest.mark.parametrize("changed", ["usd: 2900", "eur: 2700"])
def test_ids_of_each_currency_are_printed_to_be_pasted(directory: Path, changed: str) -> None:
    """It printed `price, eur: {stripe_price: …}`, which the plans file refuses."""
    emulator = StripeEmulator()
    with emulator.running() as url:
        shell = InProcessShell(directory, METERKIT_STRIPE_API_KEY=STRIPE_KEY, METERKIT_STRIPE_API_BASE=url)
        ids = f"{{usd: {emulator.add_price(2900)}, eur: {emulator.add_price(2700, currency='eur')}}}"
        amount = "{amount_cents: {usd: 2900, eur: 2700}, interval: month"
        plans = TWO.replace(amount, f"{amount}, stripe_price: {ids}").replace(changed, f"{changed[:-2]}50")
        (directory / "plans.yaml").write_text(plans)
        done = shell.run("stripe", "sync")
        pasted = re.search(r"\nplans:\n  pro:\n    price: {stripe_price: ({.*})}\n", done.out)
        assert pasted is not None, done.out
        assert pasted[1] != ids
        (directory / "plans.yaml").write_text(plans.replace(ids, pasted[1]))
        again = shell.run("stripe", "sync")
        assert (again.code, "stripe_price" in again.out, "made" in again.out) == (0, False, False)


async def test_an_addon_price_of_another_interval_is_refused(at: Shop) -> None:
    at.emulator.add_price(500, interval="year", lookup_key="meterkit:addon:pack")
    problem = await at.refuses(TWO)
    assert problem.startswith("add-on pack: the price ")
    assert "has the interval year, and the plans file says month" in problem
