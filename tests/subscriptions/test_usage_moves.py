"""Usage moves from metered prices to invoice lines at a period's end, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Any

import pytest

from drivers.period_ends import look_at_closes
from drivers.plans import plans_text
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from meterkit import MeterUsage, NoSubscriptionError, SubscriptionError
from meterkit.catalog import loads

pytestmark = pytest.mark.anyio

LINES = loads(plans_text("invoice_lines"))
METERS = loads(plans_text("invoice_lines").replace("{usage: lines}", "{usage: meters}"))
NEXT_END = datetime.fromisoformat("2031-08-01T00:00:00+00:00")
LAST_END = datetime.fromisoformat("2031-09-01T00:00:00+00:00")


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    """A subscriber with metered items, and a plans file that bills usage by lines now."""
    async with shop(store_url, catalog=METERS, selling=sell_nothing) as opened:
        await opened.kit.stripe.sync()
        await opened.subscribed(plan="pro")
        opened.kit.store.use(LINES)
        yield opened


async def billed(at: Shop) -> list[tuple[bool, int, int]]:
    """Whether meterkit wrote it, units and cents of each line for usage, oldest first."""
    return [
        ("meterkit_line" in line["metadata"], int(line["quantity_decimal"]), line["amount"])
        for invoice in await at.invoices()
        for line in invoice["lines"]["data"]
        if 0 < line["amount"] < 1000
    ]


async def words(at: Shop, when: datetime) -> MeterUsage:
    return (await at.kit.usage("acme", period=when))["meters"]["words"]


async def pass_end(at: Shop, end: datetime) -> None:
    """Let a period end, deliver its usage, and finalize its invoice."""
    at.go(end + timedelta(minutes=3))
    await at.kit.subscriptions.sync("acme")
    report = await at.kit.flush(everything=True)
    assert report.why == ""
    at.clock.advance(timedelta(minutes=10))
    await look_at_closes(at.kit)
    at.go(timedelta(hours=2))


def overage(cents: int) -> dict[str, Any]:
    return {"words": {"overage": {"bill": {"per": 1, "amount_cents": cents}}}}


async def advice(at: Shop, when: datetime) -> list[str]:
    return [found.advice for found in await at.kit.reconcile("acme", at=when) if found.advice]


async def drift(at: Shop) -> list[str]:
    return [one.kind for one in (await at.kit.subscriptions.check()).get("acme", ())]


async def test_usage_moves_to_lines_at_the_end_of_the_period(at: Shop) -> None:
    assert await drift(at) == ["usage"]
    await at.kit.record("acme", "words", 126)
    assert await at.kit.subscriptions.move_usage("acme", dry_run=True) == END
    assert await drift(at) == ["usage"]
    assert await at.kit.subscriptions.move_usage("acme") == END
    assert await drift(at) == []
    changes = len(at.changes())
    assert await at.kit.subscriptions.move_usage("acme") is None
    assert len(at.changes()) == changes
    await at.kit.record("acme", "words", 10)
    await pass_end(at, END)
    assert await billed(at) == [(False, 36, 144)]
    await at.kit.record("acme", "words", 120)
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(False, 36, 144), (True, 20, 80)]
    assert await advice(at, HALF) == []
    assert await advice(at, NEXT_END - timedelta(days=1)) == []
    assert [(await words(at, when))["delivered"] for when in (HALF, NEXT_END - timedelta(days=1))] == [36, 20]
    assert await drift(at) == []


async def test_a_later_override_prices_no_usage_from_before_the_move(at: Shop) -> None:
    """The advice was to credit what the metered item had rightly charged."""
    at.kit.store.use(METERS)
    await at.kit.customers.override("acme", overage(2))
    await at.kit.record("acme", "words", 126)
    at.kit.store.use(LINES)
    await at.kit.subscriptions.move_usage("acme")
    await pass_end(at, END)
    await at.kit.customers.override("acme", overage(1))
    assert (await billed(at), await advice(at, HALF)) == ([(False, 26, 52)], [])


async def test_usage_moves_back_to_metered_prices(at: Shop) -> None:
    await at.kit.subscriptions.repair("acme")
    await pass_end(at, END)
    await at.kit.record("acme", "words", 126)
    at.kit.store.use(METERS)
    assert await drift(at) == ["usage"]
    assert (await at.kit.subscriptions.repair("acme")).left == ()
    await at.kit.record("acme", "words", 10)
    assert (await at.kit.flush(everything=True)).left == 0
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(True, 36, 144)]
    await at.kit.record("acme", "words", 120)
    await pass_end(at, LAST_END)
    assert await billed(at) == [(True, 36, 144), (False, 20, 80)]
    for end in (END, NEXT_END, LAST_END):
        assert await advice(at, end - timedelta(days=1)) == []
    assert await drift(at) == []


async def test_an_upgrade_before_the_move_keeps_metered_items(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.change_plan("acme", "team")
    assert await drift(at) == ["usage"]
    await at.kit.record("acme", "words", 10)
    await pass_end(at, END)
    assert sorted(await billed(at)) == [(False, 10, 70), (False, 26, 104)]


async def test_a_plan_without_metered_prices_waits_for_the_move(at: Shop) -> None:
    for price in await at.stripe_list("/v1/prices", active="true"):
        if price["lookup_key"] == "meterkit:team:meter:words":
            await at.stripe_change(f"/v1/prices/{price['id']}", active="false")
    with pytest.raises(SubscriptionError, match="plan team has no metered price for words at Stripe: bill"):
        await at.kit.subscriptions.change_plan("acme", "team")


async def test_a_scheduled_plan_and_a_move_are_one_phase(at: Shop) -> None:
    await at.kit.subscriptions.change_plan("acme", "team")
    at.clock.set(HALF)
    await at.kit.record("acme", "words", 101)
    await at.kit.subscriptions.change_plan("acme", "pro")
    assert await drift(at) == ["usage"]
    await at.kit.subscriptions.move_usage("acme")
    found = await at.kit.subscriptions.sync("acme")
    pending = None if found is None else found.pending_change
    assert pending is not None
    assert (pending.plan, pending.effective_at) == ("pro", END)
    await pass_end(at, END)
    await at.kit.record("acme", "words", 102)
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(False, 1, 7), (True, 2, 8)]


async def test_a_move_before_a_scheduled_plan_is_kept(at: Shop) -> None:
    await at.kit.subscriptions.change_plan("acme", "team")
    await at.kit.subscriptions.move_usage("acme")
    await at.kit.subscriptions.change_plan("acme", "pro")
    assert await drift(at) == []
    await at.kit.record("acme", "words", 101)
    await pass_end(at, END)
    await at.kit.record("acme", "words", 102)
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(False, 1, 7), (True, 2, 8)]


async def test_a_move_that_is_released_at_stripe_does_not_take_place(at: Shop) -> None:
    await at.kit.subscriptions.move_usage("acme")
    (schedule,) = await at.stripe_list("/v1/subscription_schedules")
    await at.stripe_change(f"/v1/subscription_schedules/{schedule['id']}/release")
    await pass_end(at, END)
    assert await drift(at) == ["usage"]
    await at.kit.record("acme", "words", 102)
    await pass_end(at, NEXT_END)
    assert await billed(at) == [(False, 2, 8)]


async def test_a_cancellation_now_bills_metered_usage(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    at.clock.set(HALF)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    assert await billed(at) == [(False, 26, 104)]
    for dry_run in (True, False):
        with pytest.raises(NoSubscriptionError):
            await at.kit.subscriptions.move_usage("acme", dry_run=dry_run)


async def test_metered_items_removed_at_stripe_leave_usage_to_lines(at: Shop) -> None:
    await at.kit.record("acme", "words", 126)
    found = await at.kit.subscriptions.get("acme")
    assert found is not None
    shown = await at.stripe_subscription(found.id)
    removed = [item["id"] for item in shown["items"]["data"] if item.get("quantity") is None]
    await at.post(
        f"/v1/subscriptions/{found.id}",
        {"items": [{"id": item, "deleted": True} for item in removed]},
    )
    at.clock.set(HALF)
    await at.kit.subscriptions.sync("acme")
    await at.kit.record("acme", "words", 10)
    await pass_end(at, END)
    await pass_end(at, NEXT_END)
    assert sum(units for _, units, _ in await billed(at)) == 36
    assert sum(cents for _, _, cents in await billed(at)) == 144
