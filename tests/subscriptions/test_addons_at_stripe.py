"""Add-ons as Stripe's items say them: read, compared with the plans file, repaired, imported, counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from drivers.audit_database import drain_all
from drivers.delivery import kit_for
from drivers.health_findings import findings
from drivers.plans import plans_text
from drivers.served_traffic import Call, simulated
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import Drift, UnknownAddonError
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from subscriptions.looks import known

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("addon_shop")
DEARER: Final = PLANS.replace("amount_cents: 500", "amount_cents: 700")
TEAM: Final = {"items[0][price]": "price_team", "items[1][price]": "price_team_tokens"}


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=loads(PLANS), selling=StripeEmulator.add_plans) as opened:
        yield opened


async def by_hand(at: Shop, *addons: tuple[str, int], customer: str = "acme") -> str:
    """A linked customer with plan team and add-ons that a person has sold in Stripe's dashboard."""
    linked = f"cus_{customer}"
    at.emulator.add_customer(linked)
    at.emulator.add_payment_method(linked)
    items = dict(TEAM)
    for place, (addon, quantity) in enumerate(addons, 2):
        items |= {
            f"items[{place}][price]": f"price_addon_{addon}",
            f"items[{place}][quantity]": f"{quantity}",
        }
    await at.stripe_change("/v1/subscriptions", customer=linked, **items)
    await at.kit.customers.link(customer, linked)
    (made,) = await at.stripe_list("/v1/subscriptions", customer=linked)
    return str(made["id"])


def kinds(found: dict[str, tuple[Drift, ...]]) -> dict[str, list[str]]:
    return {customer: sorted(drift.kind for drift in drifts) for customer, drifts in found.items()}


async def included(at: Shop, meter: str) -> Any:
    return (await at.kit.usage("acme"))["meters"][meter]["included"]


async def test_items_say_what_is_bought(at: Shop) -> None:
    subscription = await by_hand(at, ("call_pack", 2))
    assert ((await known(at)).addons, await included(at, "requests")) == ({"call_pack": 2}, 200)
    assert await at.kit.subscriptions.check() == {}
    (item,) = [
        one["id"]
        for one in (await at.stripe_subscription(subscription))["items"]["data"]
        if one["price"]["id"] == "price_addon_call_pack"
    ]
    await at.stripe_change(f"/v1/subscription_items/{item}", quantity="3")
    # Without a webhook: the check finds that the stored state is outdated.
    assert await at.kit.subscriptions.check() == {}
    assert ((await known(at)).addons, await included(at, "requests")) == ({"call_pack": 3}, 250)


async def test_one_that_the_plan_lacks_is_removed_and_credited(at: Shop) -> None:
    subscription = await by_hand(at, ("call_pack", 1), ("exports", 1), ("seat_pack", 2))
    assert (await at.kit.usage("acme"))["addons"] == {"call_pack": 1}
    assert await included(at, "seats") == 5
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["addon", "addon"]}
    at.clock.set(HALF)
    tried = await at.kit.subscriptions.repair("acme", dry_run=True)
    assert [drift.message for drift in tried.mended] == [
        f"price_addon_{addon} sells {quantity} of the add-on {addon}, which plan team does not list: it gives"
        " nothing"
        for addon, quantity in (("exports", 1), ("seat_pack", 2))
    ]
    done = await at.kit.subscriptions.repair("acme")
    assert (done.mended, done.left) == (tried.mended, ())
    items = {"price_team": 1, "price_team_tokens": None, "price_addon_call_pack": 1}
    assert await at.items(subscription) == items
    assert await at.kit.subscriptions.check() == {}
    at.go(END)
    amounts = sorted(line["amount"] for line in (await at.invoices())[-1]["lines"]["data"] if line["amount"])
    # Half of June's 6 and 2 x 30 dollars is credited; July's plan and call pack are charged.
    assert amounts == [-3000, -300, 500, 1500]


async def test_one_that_the_plan_lacks_can_be_given_up(at: Shop) -> None:
    subscription = await by_hand(at, ("call_pack", 1), ("exports", 2))
    at.clock.set(HALF)
    assert (await at.kit.subscriptions.preview("acme", addons={"exports": 0})).proration.charge_cents <= 0
    with pytest.raises(UnknownAddonError):
        await at.kit.subscriptions.set_addons("acme", {"exports": 1})
    await at.kit.subscriptions.set_addons("acme", {"exports": 0})
    assert await at.items(subscription) == {
        "price_team": 1,
        "price_team_tokens": None,
        "price_addon_call_pack": 1,
    }
    assert (await known(at)).addons == {"call_pack": 1}
    # Half of June's 2 x 6 dollars is credited at once.
    lines = (await at.invoices())[-1]["lines"]["data"]
    assert [line["amount"] for line in lines if line["amount"]] == [-600]


async def test_an_older_price_is_still_the_addon(at: Shop, store_url: str) -> None:
    subscription = await by_hand(at, ("call_pack", 2))
    async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(DEARER)) as kit:
        now, done = replace(at, kit=kit), await kit.stripe.sync()
        (line,) = [line for line in done.lines if line.action == "made"]
        assert (line.name, line.instead_of) == ("add-on call_pack", "price_addon_call_pack")
        await kit.subscriptions.sync("acme")
        assert ((await known(now)).addons, await kit.subscriptions.check()) == ({"call_pack": 2}, {})
        # One more is sold at the price that the customer has.
        await kit.subscriptions.set_addons("acme", {"call_pack": 3})
        assert (await at.items(subscription))["price_addon_call_pack"] == 3


async def test_one_that_the_file_has_lost_is_named(at: Shop) -> None:
    """It was taken for an item of another program: its buyer got nothing, and no check named it."""
    subscription = await by_hand(at, ("call_pack", 2))
    without = PLANS.replace("addons: [call_pack, ", "addons: [").replace("  call_pack:", "  another:")
    at.kit.store.use(loads(without))
    assert (await at.kit.usage("acme"))["addons"] == {}
    (drift,) = (await at.kit.subscriptions.check())["acme"]
    assert (drift.kind, drift.can_repair) == ("lost_addon", False)
    assert "sells 2 of the add-on call_pack, which the plans file does not have" in drift.message
    assert (await at.kit.subscriptions.repair("acme")).left == (drift,)
    assert (await at.items(subscription))["price_addon_call_pack"] == 2


async def test_two_items_of_an_addon_are_joined(at: Shop) -> None:
    subscription = await by_hand(at, ("call_pack", 1))
    old = at.emulator.add_price(400, price_id="price_old", metadata={"meterkit": "meterkit:addon:call_pack"})
    more = {"items[0][price]": old, "items[0][quantity]": "2", "proration_behavior": "none"}
    await at.stripe_change(f"/v1/subscriptions/{subscription}", **more)
    await at.kit.subscriptions.sync("acme")
    assert (await known(at)).addons == {"call_pack": 3}
    assert kinds(await at.kit.subscriptions.check()) == {"acme": ["addon"]}
    await at.kit.subscriptions.repair("acme")
    assert (await at.items(subscription))["price_addon_call_pack"] == 3
    assert await at.kit.subscriptions.check() == {}


async def test_a_schedule_says_what_comes(at: Shop) -> None:
    subscription = await by_hand(at, ("call_pack", 2))
    made = await at.post("/v1/subscription_schedules", {"from_subscription": subscription})
    now = made["phases"][0]
    present = [
        {name: item[name] for name in ("price", "quantity") if item.get(name) is not None}
        for item in now["items"]
    ]
    later = [{**item, **({"quantity": 5} if "call_pack" in item["price"] else {})} for item in present]
    phases = [
        {"items": present, "start_date": now["start_date"], "end_date": now["end_date"]},
        {"items": later},
    ]
    await at.post(f"/v1/subscription_schedules/{made['id']}", {"phases": phases})
    await at.kit.subscriptions.sync("acme")
    change = (await known(at)).pending_change
    assert change is not None
    assert (change.plan, change.addons, change.effective_at) == ("team", {"call_pack": 5}, END)
    assert await included(at, "requests") == 200
    at.clock.set(END)  # It binds at its second, before any webhook.
    assert await included(at, "requests") == 350


async def test_an_import_brings_them_and_names_what_the_plan_lacks(at: Shop) -> None:
    for customer, addon in (("acme", "call_pack"), ("other", "exports")):
        at.emulator.add_customer(f"cus_{customer}")
        at.emulator.add_payment_method(f"cus_{customer}")
        items = {**TEAM, "items[2][price]": f"price_addon_{addon}", "items[2][quantity]": "2"}
        named = {"metadata[meterkit_customer]": customer}
        await at.stripe_change("/v1/subscriptions", customer=f"cus_{customer}", **items, **named)
    done = await at.kit.subscriptions.import_from_stripe()
    assert done.linked == 2
    assert [(one.customer, one.kind, one.linked) for one in done.misfits] == [("other", "addon", True)]
    assert ((await known(at)).addons, await included(at, "requests")) == ({"call_pack": 2}, 200)
    before = await at.kit.usage("acme")
    await at.kit.subscriptions.sync("acme")
    assert await at.kit.usage("acme") == before


async def test_they_are_recurring_revenue(at: Shop) -> None:
    await by_hand(at, ("call_pack", 2), ("storage_pack", 1))
    history = await at.kit.customers.history("acme")
    brings = [entry.after for entry in history if entry.kind == "mrr"]
    assert brings == [f"{(1500 + 2 * 500 + 1000) * 1_000_000} usd"]


async def test_doctor_names_those_that_stripe_does_not_sell(store_url: str) -> None:
    async with shop(store_url, catalog=loads(PLANS), selling=sell_nothing) as at:
        problems = [one.problem for one in await findings(at.kit, "stripe")]
        named = "Stripe has no price for these add-ons: call_pack, Exports, Seat pack, Extra storage"
        assert named in problems
        await at.kit.stripe.sync()
        assert await findings(at.kit, "stripe") == []


@pytest.mark.dear("a month is served and tried again")
async def test_a_simulation_has_them(store_url: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    catalog = loads(PLANS)
    async with shop(store_url, catalog=catalog, selling=StripeEmulator.add_plans, audit_url=url) as at:
        await by_hand(at, ("call_pack", 1))
        for _ in range(7):
            await at.kit.record("acme", "requests", 20)
        await drain_all(at.kit, url)
        tried: dict[str, Any] = {}
        for name, plans in {
            "same": PLANS,
            "dearer": DEARER,
            "without": PLANS.replace("addons: [call_pack, storage_pack]", "addons: [storage_pack]"),
        }.items():
            found = await simulated(at.kit, url, plans, [Call(HALF, "acme", "", (0, 0))])
            (one,) = [one for one in found.customers if one.customer == "acme"]
            assert found.disagreeing == []
            tried[name] = (one.now_cents, one.then_cents, dict(one.refused))
        more: dict[str, Any] = {"audit_url": url, "stripe_api_key": None}
        async with kit_for(store_url, at.url, clock=at.clock, catalog=catalog, **more) as kit:
            lines = (await kit.statement("acme")).lines
        fixed = [(line.id, line.quantity, line.amount_cents) for line in lines if line.kind == "subscription"]
        assert fixed == [("plan", 1, 1500), ("addon/call_pack", 1, 500)]
    assert tried == {
        "same": (2000, 2000, {}),
        "dearer": (2000, 2200, {}),
        "without": (2000, 1500, {"requests": 40}),
    }
