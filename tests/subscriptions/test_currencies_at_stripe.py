"""Subscriptions in another currency than the default one of their prices: read, compared, invoiced."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import pytest

from drivers.delivery import kit_for
from drivers.health_findings import findings
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import Drift
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from subscriptions.looks import known

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("two_currencies")
ITEMS: Final = ("price_pro", "price_pro_requests", "price_pro_tokens")
MICRO: Final = 1_000_000


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=loads(PLANS), selling=StripeEmulator.add_plans) as opened:
        yield opened


async def by_hand(at: Shop, *more: tuple[str, int], currency: str = "eur", customer: str = "acme") -> str:
    """A linked customer with plan pro in a currency, as a person has made it in Stripe's dashboard."""
    linked = f"cus_{customer}"
    at.emulator.add_customer(linked)
    at.emulator.add_payment_method(linked)
    items = {f"items[{place}][price]": price for place, price in enumerate(ITEMS)}
    for place, (price, quantity) in enumerate(more, len(ITEMS)):
        items |= {f"items[{place}][price]": price, f"items[{place}][quantity]": str(quantity)}
    await at.stripe_change("/v1/subscriptions", customer=linked, currency=currency, **items)
    await at.kit.customers.link(customer, linked)
    (made,) = await at.stripe_list("/v1/subscriptions", customer=linked)
    return str(made["id"])


def kinds(found: dict[str, tuple[Drift, ...]]) -> dict[str, list[str]]:
    return {customer: sorted(drift.kind for drift in drifts) for customer, drifts in found.items()}


async def brought(at: Shop, customer: str) -> list[str | None]:
    return [entry.after for entry in await at.kit.customers.history(customer) if entry.kind == "mrr"]


async def test_amounts_are_those_of_its_currency(at: Shop) -> None:
    await by_hand(at, ("price_addon_pack", 2), ("price_pro_seats", 1))
    await by_hand(at, ("price_addon_pack", 2), ("price_pro_seats", 1), currency="usd", customer="other")
    assert await brought(at, "acme") == [f"{(2700 + 2 * 450 + 800) * MICRO} eur"]
    assert await brought(at, "other") == [f"{(2900 + 2 * 500 + 900) * MICRO} usd"]
    found = await known(at)
    assert (found.plan, found.seats, found.addons) == ("pro", 3, {"pack": 2})
    for customer, currency, per_request in (("acme", "eur", 2), ("other", "usd", 3)):
        usage = await at.kit.usage(customer)
        price: Any = usage["meters"]["requests"].get("price")
        assert (usage["currency"], price["amount_cents"], price["per"]) == (currency, per_request, 1)
        assert (price["currency"], price.get("estimated", False)) == (currency, False)
    assert await at.kit.subscriptions.check() == {}


async def test_its_usage_is_invoiced_as_shown(at: Shop) -> None:
    await by_hand(at)
    at.clock.set(HALF)
    await at.kit.record("acme", "requests", 1_010)
    await at.kit.record("acme", "tokens", 300)
    usage = await at.kit.usage("acme")
    shown = {meter: usage["meters"][meter]["overage_cents"] for meter in ("requests", "tokens")}
    assert shown == {"requests": 20, "tokens": 22}
    await at.kit.flush(everything=True)
    at.go(END)
    invoice = (await at.invoices())[-1]
    assert (invoice["currency"], invoice["total"]) == ("eur", 2700 + 20 + 22)


async def test_a_repair_leaves_the_currency(at: Shop) -> None:
    subscription = await by_hand(at)
    items = (await at.stripe_subscription(subscription))["items"]["data"]
    (tokens,) = [item["id"] for item in items if item["price"]["id"] == "price_pro_tokens"]
    await at.stripe_delete(f"/v1/subscription_items/{tokens}")
    await at.kit.subscriptions.sync("acme")
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["missing_meter"]}
    await at.kit.subscriptions.repair("acme")
    assert await at.items(subscription) == dict.fromkeys(ITEMS) | {"price_pro": 1}
    assert (await at.stripe_subscription(subscription))["currency"] == "eur"
    assert await at.kit.subscriptions.check() == {}


async def test_an_own_price_is_taxed_like_its_currency(at: Shop) -> None:
    """It was taxed like the plan's price in dollars: customers in euros paid the tax on top."""
    option = "currency_options[eur]"
    euros = {f"{option}[unit_amount_decimal]": "0.11", f"{option}[tax_behavior]": "inclusive"}
    await at.stripe_change("/v1/prices/price_pro_tokens", tax_behavior="exclusive", **euros)
    subscription = await by_hand(at)
    own = {"overage": {"bill": {"per": 100, "amount_cents": 1}}}
    await at.kit.customers.override("acme", {"tokens": own})
    items = (await at.stripe_subscription(subscription))["items"]["data"]
    (price,) = [item["price"] for item in items if item["price"]["id"] not in ITEMS]
    assert (price["currency"], price["tax_behavior"]) == ("eur", "inclusive")


async def test_a_currency_that_the_file_lacks_differs(at: Shop) -> None:
    at.emulator.add_price(
        2500, price_id="price_gbp", currency="gbp", metadata={"meterkit": "meterkit:pro:base"}
    )
    at.emulator.add_customer("cus_acme")
    at.emulator.add_payment_method("cus_acme")
    await at.stripe_change("/v1/subscriptions", customer="cus_acme", **{"items[0][price]": "price_gbp"})
    await at.kit.customers.link("acme", "cus_acme")
    drifts = (await at.kit.subscriptions.check())["acme"]
    message = next(drift.message for drift in drifts if drift.kind == "currency")
    assert message == "it is billed in gbp; the plans file has usd, eur"


async def test_a_restricted_key_leaves_other_amounts_unknown(at: Shop) -> None:
    at.emulator.fail_next("error", status=403, path="/v1/prices/price_pro_requests", times=None)
    await by_hand(at)
    assert await brought(at, "acme") == []
    price: Any = (await at.kit.usage("acme"))["meters"]["tokens"].get("price")
    # As the plans file has it.
    assert (price["currency"], price["amount_cents"], price["per"], price["estimated"]) == (
        "eur",
        11,
        100,
        True,
    )


async def test_an_import_reads_each_currency(at: Shop) -> None:
    for customer, currency in (("acme", "eur"), ("other", "usd")):
        at.emulator.add_customer(f"cus_{customer}")
        at.emulator.add_payment_method(f"cus_{customer}")
        items = {f"items[{place}][price]": price for place, price in enumerate(ITEMS)}
        named = {"metadata[meterkit_customer]": customer, "currency": currency}
        await at.stripe_change("/v1/subscriptions", customer=f"cus_{customer}", **items, **named)
    done = await at.kit.subscriptions.import_from_stripe()
    assert (done.linked, done.misfits) == (2, ())
    assert await brought(at, "acme") == [f"{2700 * MICRO} eur"]
    assert await brought(at, "other") == [f"{2900 * MICRO} usd"]


async def test_doctor_names_prices_without_a_currency(store_url: str) -> None:
    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as at:
        at.emulator.add_price(
            2900, lookup_key="meterkit:pro:base", metadata={"meterkit": "meterkit:pro:base"}
        )
        problems = [one.problem for one in await findings(at.kit, "stripe")]
        assert "prices at Stripe lack a currency of the plans file: pro, base (EUR)" in problems
        assert "Stripe has no price for these add-ons: Word pack" in problems
        await at.kit.stripe.sync()
        assert await findings(at.kit, "stripe") == []


async def test_doctor_names_amounts_that_are_not_synced(at: Shop, store_url: str) -> None:
    """Only ``stripe sync --dry-run`` said that new customers still paid the price before."""
    assert await findings(at.kit, "stripe") == []
    dearer = PLANS.replace("2700", "2800").replace("usd: 12,", "usd: 13,")
    async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(dearer)) as kit:
        (found,) = await findings(kit, "stripe")
        assert "pro, base ($29.00 per month; €27.00 per month; in the file" in found.problem
        assert "pro, tokens ($0.0012 per token" in found.problem
        await kit.stripe.sync()
        assert await findings(kit, "stripe") == []
