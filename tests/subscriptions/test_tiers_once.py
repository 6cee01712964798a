"""Plans that bill a meter with `report: usage`: no change of plan begins the tiers of a price again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, shop
from meterkit import MeterkitError, SubscriptionError
from meterkit.catalog import loads
from subscriptions.looks import known, synced

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.catalog import Catalog
    from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

CATALOG: Final = loads(plans_text("tiers_once"))


def sell(emulator: StripeEmulator, catalog: Catalog) -> None:
    emulator.add_plans(catalog)


async def usage_cents(at: Shop) -> int:
    lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
    return sum(line["amount"] for line in lines if "Requests" in line["description"])


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        yield opened


async def test_f_224_an_upgrade_waits_for_the_end_of_the_period(at: Shop) -> None:
    await at.subscribed(plan="team")
    await at.kit.record("acme", "requests", 195)
    at.clock.set(HALF)
    preview = (await at.kit.subscriptions.preview("acme", plan="pro")).proration
    assert (preview.effective_at, preview.net_cents, preview.charge_cents) == (END, 0, 0)
    change = await at.kit.subscriptions.change_plan("acme", "pro")
    assert change.proration == preview
    pending = change.subscription.pending_change
    assert change.subscription.plan == "team"
    assert pending is not None
    assert (pending.plan, pending.effective_at) == ("pro", END)
    await at.kit.record("acme", "requests", 95)
    shown = (await at.kit.usage("acme"))["meters"]["requests"]["overage_cents"]
    await at.kit.flush(everything=True)
    at.clock.set(END)
    found = await synced(at)
    assert (found.plan, found.pending_change) == ("pro", None)
    assert (shown, await usage_cents(at)) == (1900, 1900)


@pytest.mark.parametrize(
    ("way", "plan_now"),
    [
        (["flat", "back"], "flat"),  # It has begun the tiers of `team` in this period.
        (["flat", "flat_too"], "flat_too"),
    ],
)
async def test_f_224_a_way_around_does_not_begin_tiers_again(at: Shop, way: list[str], plan_now: str) -> None:
    await at.subscribed(plan="team")
    for plan in way:
        at.clock.advance(timedelta(days=1))
        preview = (await at.kit.subscriptions.preview("acme", plan=plan)).proration
        assert (await at.kit.subscriptions.change_plan("acme", plan)).proration == preview
    found = await known(at)
    assert found.plan == plan_now
    assert (found.pending_change is not None) == (plan_now != way[-1])


async def test_a_new_subscription_keeps_an_unpaid_periods_tiers(at: Shop) -> None:
    await at.subscribed(plan="payg")
    await at.kit.record("acme", "requests", 100)
    at.clock.advance(timedelta(hours=1))
    await at.kit.subscriptions.cancel("acme", immediately=True)
    for plan in ("payg", "team"):
        with pytest.raises(SubscriptionError, match="until 2031-07-01 00:00 UTC"):
            await at.kit.subscriptions.create("acme", plan)
    with pytest.raises(SubscriptionError, match="tiers"):
        await at.kit.subscriptions.checkout("acme", "team", success_url="https://a", cancel_url="https://a")
    await at.subscribed(plan="flat")
    await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    with pytest.raises(SubscriptionError, match="tiers"):
        await at.kit.subscriptions.create("acme", "payg")
    at.clock.set(END + timedelta(hours=2))
    assert (await at.subscribed(plan="payg")).plan == "payg"


@pytest.mark.parametrize(
    "given",
    [{"included": 50}, {"included": 150, "overage": "deny"}],
)
async def test_an_included_quantity_stripes_tiers_lack_is_refused(at: Shop, given: dict[str, object]) -> None:
    """The price at Stripe has the free tier: the override was stored, and invoices went by the tier."""
    await at.subscribed(plan="team")
    with pytest.raises(MeterkitError, match=r"override of requests: found `included: .*kit\.grants\.add"):
        await at.kit.customers.override("acme", {"requests": given})
    assert (await at.kit.customers.get("acme")).overrides == {}
    # Without a subscription no invoice bills it, and its own quantity differs from no tier.
    for customer, included in (("bob", 7), ("acme", 100)):
        await at.kit.customers.override(customer, {"requests": {"included": included}})
    await at.kit.grants.add("acme", {"requests": 50}, grant_id="more")
    await at.kit.record("acme", "requests", 160)
    shown = (await at.kit.usage("acme"))["meters"]["requests"]
    assert (shown["included"], shown["overage"], shown["overage_cents"]) == (100, 10, 100)
    await at.kit.flush(everything=True)
    at.clock.set(END + timedelta(hours=3))
    at.emulator.advance()
    assert await usage_cents(at) == 100


async def test_f_224_tiers_of_a_former_period_hold_up_no_change(store_url: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        await at.subscribed(plan="team")
        await at.kit.subscriptions.change_plan("acme", "flat")
        at.clock.set(END + timedelta(days=1))
        await at.kit.subscriptions.sync("acme")
        change = await at.kit.subscriptions.change_plan("acme", "back")
        assert change.subscription.plan == "back"
