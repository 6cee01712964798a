"""Lines bill each unit at the price at which it was recorded, whatever changes that price."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.usage_lines import ITEMS, end_period, shop_of_lines, usage_lines
from meterkit.catalog import Catalog, loads

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("invoice_lines")


def sold_by_default_at(cents: int) -> Catalog:
    """The plans file, its default plan with a price of words beyond a hundred."""
    denied = "words: {included: 100, overage: deny}"
    billed = f"words: {{included: 100, overage: {{bill: {{per: 1, amount_cents: {cents}}}}}}}"
    return loads(PLANS.replace(denied, billed, 1))


async def shown(at: Shop, customer: str) -> int | None:
    return (await at.kit.usage(customer))["meters"]["words"]["overage_cents"]


async def billed(at: Shop, customer: str) -> list[tuple[str, int]]:
    """Units and cents of each line, after the period; the books agree."""
    at.go(END + timedelta(minutes=3))
    for _ in range(2):
        await at.kit.flush(everything=True, timeout_s=0)
        at.go(timedelta(hours=3))
    assert all(one.agrees for one in await at.kit.reconcile(customer, at=HALF))
    return sorted((units, cents) for _, units, _, cents in await usage_lines(at))


@pytest.mark.parametrize("moved", ["never", "late"])
async def test_f_307_a_price_ends_without_stripe_and_workers(store_url: str, moved: str) -> None:
    """All units cost what the first ones did on the invoice, and what the last ones did in `kit.usage`."""
    async with shop_of_lines(store_url) as at:
        await at.kit.record("acme", "words", 100)
        at.clock.advance(timedelta(days=1))
        cheaper = {"overage": {"bill": {"per": 1, "amount_cents": 3}}}
        await at.kit.customers.override("acme", {"words": cheaper}, until=HALF)
        await at.kit.record("acme", "words", 100)
        at.clock.set(HALF)
        assert await shown(at, "acme") == 300
        await at.kit.record("acme", "words", 100)
        if moved == "late":
            await at.kit.subscriptions.retry_accepted()
        await at.kit.record("acme", "words", 1)
        assert await shown(at, "acme") == 704
        await end_period(at)
        assert await billed(at, "acme") == [("100", 300), ("101", 404)]


async def test_i13_an_override_of_a_cap_changes_no_price(store_url: str) -> None:
    """An override of the cap alone gave a subscriber the price that the plans file has by now."""
    async with shop_of_lines(store_url) as at:
        at.kit.store.use(loads(PLANS.replace("amount_cents: 4}", "amount_cents: 9}")))
        await at.kit.customers.override("acme", {"words": {"overage": {"bill": {"cap": 50}}}})
        await at.kit.record("acme", "words", 110)
        assert await shown(at, "acme") == 40
        assert await billed(at, "acme") == [("10", 40)]


async def test_f_307_reconcile_compares_lines_with_recorded_prices(store_url: str) -> None:
    """Lines at another price than `kit.usage` shows agreed with themselves."""
    async with shop_of_lines(store_url) as at:
        await at.kit.record("acme", "words", 126)
        await end_period(at)
        await at.kit.flush(everything=True, timeout_s=0)
        (item,) = [one for one in await at.stripe_list(ITEMS) if "meterkit_line" in one["metadata"]]
        changed = {"metadata[meterkit_price]": "$0.03 each", "metadata[meterkit_price_label]": "1/3"}
        await at.stripe_change(f"{ITEMS}/{item['id']}", unit_amount_decimal="3", **changed)
        (found,) = await at.kit.reconcile("acme", at=HALF)
        assert (found.mispriced, found.agrees) == (26, False)
        assert "26 units were recorded at $0.04 each and are billed at $0.03 each" in found.advice


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("used", [("10", 50), ("20", 180)]),
        ("idle", [("10", 50)]),
        ("a plan by hand", [("10", 50), ("20", 80)]),
        ("used, then a plan by hand", [("10", 50), ("20", 180), ("5", 20)]),
        ("edited after the period", [("10", 50)]),
    ],
)
async def test_f_302_an_edit_of_the_default_plan_prices_later_usage(
    store_url: str, then: str, expected: list[tuple[str, int]]
) -> None:
    """The whole month cost the new price, on the invoice and in `kit.usage`."""
    async with shop(store_url, catalog=sold_by_default_at(5), selling=sell_nothing) as at:
        at.emulator.add_customer("cus_bob")
        await at.kit.customers.link("bob", "cus_bob")
        await at.kit.record("bob", "words", 110)
        at.clock.set(END if then == "edited after the period" else HALF)
        at.kit.store.use(sold_by_default_at(9))
        if then.startswith("used"):
            await at.kit.record("bob", "words", 20)
        if then.endswith("by hand"):
            await at.kit.customers.set_plan("bob", "pro")
            await at.kit.record("bob", "words", int(expected[-1][0]))
        if then != "edited after the period":
            assert await shown(at, "bob") == sum(cents for _, cents in expected)
        assert await billed(at, "bob") == expected


async def test_f_302_two_files_at_once_price_each_unit_in_little_room(store_url: str) -> None:
    """In a deployment each request may have another price than the one before."""
    async with shop(store_url, catalog=sold_by_default_at(5), selling=sell_nothing) as at:
        at.emulator.add_customer("cus_bob")
        await at.kit.customers.link("bob", "cus_bob")
        await at.kit.record("bob", "words", 100)
        files = sold_by_default_at(5), sold_by_default_at(9)
        for nth in range(120):
            at.kit.store.use(files[nth % 2])
            await at.kit.record("bob", "words", 1 + nth % 2)
        admin = await at.kit.store.admin()
        kept = await admin.ask(admin.client.hgetall(at.kit.store.keys.customer("bob").totals))
        assert max(map(len, kept.values())) <= 1_000
        assert await shown(at, "bob") == 60 * 5 + 120 * 9
        assert await billed(at, "bob") == [("120", 1080), ("60", 300)]
