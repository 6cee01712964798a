"""The price of a period with add-ons: on the usage page, in a keyless statement, and in a simulation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.served_traffic import Call, simulated
from drivers.shop import END, HALF, START, Shop, shop
from drivers.usage_figures import JSON, page_of
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PLANS = plans_text("addon_shop")


@asynccontextmanager
async def addon_shop(store_url: str, url: str) -> AsyncGenerator[Shop]:
    catalog = loads(PLANS)
    async with shop(store_url, catalog=catalog, selling=StripeEmulator.add_plans, audit_url=url) as at:
        yield at


async def subscribe(at: Shop, customer: str, plan: str, **how: Any) -> None:
    made = await at.kit.subscriptions.create(customer, plan, **how)
    assert made.client_secret is not None
    at.emulator.confirm_payment(made.client_secret)
    await at.kit.subscriptions.sync(customer)


async def simulate_period(at: Shop, url: str, when: datetime = HALF) -> dict[str, Any]:
    found = await simulated(at.kit, url, PLANS, [Call(when, "acme", "", (0, 0))])
    assert found.disagreeing == []
    return {one.customer: one for one in found.customers}


async def cents_by_line(at: Shop, store_url: str, url: str, period: datetime) -> dict[str, int]:
    """What the lines of acme's statement cost where no Stripe key is set."""
    async with kit_for(
        store_url, at.url, clock=at.clock, catalog=at.kit.catalog, audit_url=url, stripe_api_key=None
    ) as kit:
        statement = await kit.statement("acme", period=period)
    return {line.id: line.amount_cents for line in statement.lines if line.amount_cents}


async def test_seats_of_an_addon_are_not_charged(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "pro", addons={"seat_pack": 1})
        await at.kit.record("acme", "tokens", 5)
        await drain_all(at.kit, url)
        async with page_of(at.kit) as client:
            cost = (await client.get("/", headers=JSON)).json()["cost"]
        assert (cost["plan_cents"], cost["seats_cents"], cost["addons"][0]["cents"]) == (2900, 0, 3000)
        lines = await cents_by_line(at, store_url, url, START)
        assert lines == {"plan": 2900, "addon/seat_pack": 3000}
        found = (await simulate_period(at, url, START))["acme"]
        assert (found.now_cents, found.then_cents, found.estimates) == (5900, 5900, ())
        assert [invoice["total"] for invoice in await at.invoices()] == [5900]
        await at.kit.subscriptions.set_seats("acme", 17)  # The pack has 5 of them, the plan 10.
        async with page_of(at.kit) as client:
            assert (await client.get("/", headers=JSON)).json()["cost"]["seats_cents"] == 2 * 900


async def test_a_plan_set_by_hand_costs_what_its_subscription_charges(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "team", seats=7, addons={"call_pack": 1, "storage_pack": 1})
        await at.kit.customers.set_plan("acme", "pro")
        await at.kit.record("acme", "tokens", 5)
        await drain_all(at.kit, url)
        async with page_of(at.kit) as client:
            figures = (await client.get("/", headers=JSON)).json()
        cost, addons = figures["cost"], [addon["cents"] for addon in figures["cost"]["addons"]]
        assert (figures["plan_name"], cost["plan_cents"], cost["seats_cents"]) == ("pro", 1500, 1400)
        assert addons == [500, 1000]
        lines = await cents_by_line(at, store_url, url, START)
        assert lines == {"plan": 1500, "seats": 1400, "addon/call_pack": 500, "addon/storage_pack": 1000}
        found = (await simulate_period(at, url, START))["acme"]
        assert (found.plan, found.now_cents, found.then_cents) == ("pro", 4400, 4400)
        assert [invoice["total"] for invoice in await at.invoices()] == [4400]


async def test_restricted_access_leaves_the_price_of_bought_seats(store_url: str, tmp_path: Path) -> None:
    """The page, and what had no invoice, were $14.00 short of what Stripe goes on charging."""
    url = sqlite_in(tmp_path)
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "team", seats=7)
        await at.fail_payments()
        at.go(END + timedelta(days=12))
        await at.kit.subscriptions.sync("acme")
        async with page_of(at.kit) as client:
            figures = (await client.get("/", headers=JSON)).json()
        assert figures["usage"]["access"] == "restricted"
        assert (figures["cost"]["plan_cents"], figures["cost"]["seats_cents"]) == (1500, 1400)
        assert await cents_by_line(at, store_url, url, at.clock.now()) == {"plan": 1500, "seats": 1400}


@pytest.mark.parametrize(("included", "more"), [("5", 4700), ("unlimited", 2900)])
async def test_included_seats_are_not_bought_under_another_file(
    store_url: str, tmp_path: Path, included: str, more: int
) -> None:
    """F-22d's kind: with 5 included for 10, a customer who had bought none was to pay for 5."""
    url, plans = (
        sqlite_in(tmp_path),
        PLANS.replace("{included: 10, overage", f"{{included: {included}, overage"),
    )
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "pro")
        await subscribe(at, "buyer", "pro", seats=12)
        found = await simulated(at.kit, url, plans, [Call(START, "acme", "", (0, 0))])
        costs = {one.customer: (one.now_cents, one.then_cents) for one in found.customers}
        assert costs == {"acme": (2900, 2900), "buyer": (4700, more)}


async def test_a_credited_rest_makes_an_estimate(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "pro")
        at.go(HALF)
        await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
        at.go(timedelta(days=3))
        found = (await simulate_period(at, url, START))["acme"]
        assert (found.now_cents, found.estimates) == (2900, ("the rest of the period was credited",))
        assert (await simulate_period(at, url))["acme"].estimates == ()


async def test_a_closed_period_costs_what_it_had(store_url: str, tmp_path: Path) -> None:
    url, after = sqlite_in(tmp_path), END + timedelta(days=3)
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "team", seats=6, addons={"storage_pack": 1})
        await at.kit.record("acme", "requests", 80)
        await at.kit.record("acme", "tokens", 120)
        await drain_all(at.kit, url)
        at.go(END - timedelta(minutes=30))
        await at.kit.flush(everything=True)
        at.go(after)
        await at.kit.subscriptions.sync("acme")

        async def assert_june() -> None:
            found = (await simulate_period(at, url))["acme"]
            expected = 1500 + 700 + 1000 + 20 * 2
            assert (found.now_cents, found.then_cents, found.refused) == (expected, expected, {})
            assert found.estimates == ()
            lines = await cents_by_line(at, store_url, url, HALF)
            assert lines == {"plan": 1500, "seats": 700, "addon/storage_pack": 1000, "usage/tokens": 40}

        await assert_june()
        await at.kit.subscriptions.set_addons("acme", {"storage_pack": 3, "call_pack": 1})
        await at.kit.subscriptions.set_seats("acme", 8)
        await at.kit.customers.override("acme", {"tokens": {"included": 5}})
        await assert_june()
        await at.kit.subscriptions.cancel("acme", immediately=True)
        await assert_june()


async def test_an_override_priced_a_closed_period_of_who_left(store_url: str, tmp_path: Path) -> None:
    """Under the same file its usage was to cost the plan's $0.02 a token, for the 0.01 that was paid."""
    url, price = sqlite_in(tmp_path), {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 1}}}}
    async with addon_shop(store_url, url) as at:
        await subscribe(at, "acme", "team")
        await at.kit.customers.override("acme", price)
        at.go(timedelta(minutes=1))
        await at.kit.record("acme", "tokens", 150)
        await drain_all(at.kit, url)
        at.go(END + timedelta(days=3))
        await at.kit.subscriptions.sync("acme")
        await at.kit.subscriptions.cancel("acme", immediately=True)
        found = (await simulate_period(at, url))["acme"]
        assert (found.now_cents, found.then_cents) == (1500 + 50, 1500 + 50)


async def test_a_trial_of_an_earlier_subscription_is_free(store_url: str, tmp_path: Path) -> None:
    """It cost its plan, add-ons and overage, as a pause did; also that of a customer linked later."""
    url, everyone = sqlite_in(tmp_path), ("acme", "linked", "hasty")
    async with addon_shop(store_url, url) as at:
        for who in everyone[1:]:
            linked = at.emulator.add_customer(f"cus_{who}")
            at.emulator.add_payment_method(linked)
            price = {"items[0][price]": "price_tried", "trial_period_days": "14"}
            await at.stripe_change("/v1/subscriptions", customer=linked, **price)
        at.go(timedelta(minutes=5))
        for who in everyone[1:]:
            await at.kit.customers.link(who, f"cus_{who}")
            await at.kit.record(who, "tokens", 150)
        hasty = await at.kit.subscriptions.sync("hasty")
        assert hasty is not None
        await at.stripe_change(f"/v1/subscriptions/{hasty.id}", trial_end="now")
        at.go(timedelta(seconds=3))
        await at.kit.subscriptions.sync("hasty")
        at.emulator.add_payment_method(at.emulator.add_customer("cus_acme"))
        await at.kit.customers.link("acme", "cus_acme")
        made = await at.kit.subscriptions.create("acme", "tried", addons={"storage_pack": 1})
        for days in (0, 20):  # Six days after the trial.
            at.go(timedelta(days=days))
            await at.kit.subscriptions.sync("acme")
            await at.kit.record("acme", "tokens", 150)
        await at.post(f"/v1/subscriptions/{made.subscription.id}/pause", {"type": "subscription"})
        await at.kit.subscriptions.sync("acme")
        await at.kit.customers.set_status("acme", "active")
        at.go(timedelta(days=2))
        await at.kit.record("acme", "tokens", 150)
        for customer in everyone:
            await at.kit.subscriptions.cancel(customer, immediately=True)
        at.go(END)
        for customer in everyone:
            await at.kit.subscriptions.create(customer, "pro")
        await drain_all(at.kit, url)
        periods = [await simulate_period(at, url, START + timedelta(days=days)) for days in (6, 19, 22)]
        found = {who: [(of[who].plan, of[who].now_cents) for of in periods] for who in everyone}
        assert found["acme"] == [("tried", 0), ("tried", 3_100), ("tried", 0)]
        assert found["linked"] == [("tried", 0), ("tried", 2_000), ("tried", 2_000)]
        assert found["hasty"] == [("tried", 2_000)] * 3
        assert [of["acme"].then_cents for of in periods] == [0, 3_100, 0]


async def test_purchases_within_a_period_make_estimates(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with addon_shop(store_url, url) as at:
        for customer in ("acme", "buyer", "seated", "priced", "given"):
            await subscribe(at, customer, "team")
            await at.kit.record(customer, "tokens", 120)
        more = {"tokens": {"included": 500}}
        await at.kit.customers.override("given", more, until=END + timedelta(days=3))
        await drain_all(at.kit, url)
        at.clock.set(HALF)
        await at.kit.subscriptions.set_addons("buyer", {"storage_pack": 1})
        await at.kit.subscriptions.set_seats("seated", 7)
        cheaper = {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 1}}}}
        await at.kit.customers.override("priced", cheaper)
        why = ("plan, seats, add-ons, overrides or prices changed within the period",)
        found = {who: one.estimates for who, one in (await simulate_period(at, url)).items()}
        assert found == {"acme": (), "buyer": why, "seated": why, "priced": why, "given": ()}
        at.go(END + timedelta(days=4))
        for customer in ("priced", "given"):
            await at.kit.subscriptions.sync(customer)
        found = {
            who: one.estimates
            for who, one in (await simulate_period(at, url, END + timedelta(hours=1))).items()
        }
        # An override that ends in a period is another one in the rest of it.
        assert (found["priced"], found["given"]) == ((), why)
