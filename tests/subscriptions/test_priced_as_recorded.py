"""I13: usage is billed at the price that was in force when it was recorded, whatever changes afterwards."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import anyio
import pytest

from drivers.priced_shop import CATALOG, PLANS, item_lines, metered_lines, renewed, sell
from drivers.sampled import whole
from drivers.shop import HALF, shop
from meterkit.catalog import loads
from meterkit.errors import StripeUnavailableError
from subscriptions.looks import known, linked_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.shop import Shop
    from meterkit import SubscriptionChanged

pytestmark = pytest.mark.anyio


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        yield opened


@pytest.mark.parametrize(
    ("plan", "to", "lines"),
    [
        ("basic", "cheaper", [("price_basic_tokens", 1_000, 5), ("price_cheaper_tokens", 70, 3)]),
        ("basic", "other", [("price_basic_tokens", 1_000, 5)]),
        ("cheaper", "basic", [("price_cheaper_tokens", 1_000, 3), ("price_basic_tokens", 70, 5)]),
    ],
    ids=["upgrade", "upgrade to another meter", "downgrade"],
)
async def test_i13_usage_pending_at_an_upgrade_has_the_old_price(
    store_url: str, plan: str, to: str, lines: list[tuple[str, int, int]]
) -> None:
    """And at a downgrade at once."""
    catalog = loads(PLANS.replace("plans:\n  free:", "billing: {changes: {downgrade: now}}\nplans:\n  free:"))
    async with shop(store_url, catalog=catalog, selling=sell) as at:
        await at.subscribed(plan=plan)
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        change = await at.kit.subscriptions.change_plan("acme", to)
        assert (change.confirmed, change.subscription.plan) == (True, to)
        await at.kit.record("acme", "tokens", 70)
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await metered_lines(at) == lines


DOWN_NOW: Final = loads(
    PLANS.replace("plans:\n  free:", "billing: {changes: {downgrade: now}}\nplans:\n  free:")
)


async def test_i13_a_downgrade_at_once_bills_earlier_usage_as_before(
    store_url: str,
) -> None:
    async with shop(store_url, catalog=DOWN_NOW, selling=sell) as at:
        await at.subscribed(plan="cheaper")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        change = await at.kit.subscriptions.change_plan("acme", "basic")
        assert (change.confirmed, change.subscription.plan) == (True, "basic")
        await at.kit.record("acme", "tokens", 70)
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await metered_lines(at) == [("price_cheaper_tokens", 1_000, 3), ("price_basic_tokens", 70, 5)]


async def test_i13_overage_costs_what_it_cost_when_recorded(at: Shop) -> None:
    await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 160)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 300
    await at.kit.subscriptions.change_plan("acme", "cheaper")
    await at.kit.record("acme", "tokens", 20)
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 360
    await at.kit.customers.set_plan("acme", "basic")
    await at.kit.record("acme", "tokens", 1)
    # A plan that is set by hand changes no item at Stripe: that bills 3 cents a unit.
    assert (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"] == 363


@pytest.mark.parametrize("path", ["/v1/billing/meter_events", "/v1/billing/meters"])
async def test_i13_undeliverable_usage_refuses_the_change(at: Shop, path: str) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 1_100)
    items = await at.items(begun.id)
    at.emulator.fail_next("error", status=503, times=100, path=path)
    with pytest.raises(StripeUnavailableError):
        await at.kit.subscriptions.change_plan("acme", "cheaper")
    assert await at.items(begun.id) == items
    found = await known(at)
    assert (found.plan, found.pending_change) == ("basic", None)
    at.emulator.clear_faults()
    # The customer's own requests were counted meanwhile; they are delivered, and the change goes through.
    await at.kit.record("acme", "tokens", 30)
    at.clock.advance(timedelta(minutes=10, seconds=20))
    await at.kit.flush(everything=True)
    assert (await at.kit.subscriptions.change_plan("acme", "cheaper")).subscription.plan == "cheaper"
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 1_030, 5)]


async def test_i13_usage_recorded_during_a_change_has_the_new_price(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF + timedelta(seconds=20))
    await at.kit.record("acme", "tokens", 1_100)
    at.emulator.fail_next("delay", delay_s=1.5, skip=2, path=f"/v1/subscriptions/{begun.id}")
    async with anyio.create_task_group() as changing:
        changing.start_soon(at.kit.subscriptions.change_plan, "acme", "cheaper")
        while not at.emulator.events:  # noqa: ASYNC110 - the emulator tells nobody
            await anyio.sleep(0.02)
        await at.kit.record("acme", "tokens", 40)
        await at.kit.flush()
        assert (await at.kit.usage("acme"))["meters"]["tokens"]["pending"] == 40
    await at.kit.flush(everything=True)
    await renewed(at)
    assert await metered_lines(at) == [("price_basic_tokens", 1_000, 5), ("price_cheaper_tokens", 40, 3)]


async def test_i13_a_slow_change_goes_on_and_reports_its_outcome(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.service._ANSWER_S", 2.0)
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        told: list[SubscriptionChanged] = []
        at.kit.on("subscription.changed")(told.append)
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        at.emulator.summary_lag_s = 60  # Stripe counts what it accepts a minute later.
        change = await at.kit.subscriptions.change_plan("acme", "cheaper")
        assert (change.confirmed, change.subscription.plan) == (False, "basic")
        assert change.subscription.pending_change is not None
        assert change.subscription.pending_change.plan == "cheaper"
        at.clock.advance(timedelta(minutes=3))
        await at.kit.subscriptions.retry_accepted()
        found = await known(at)
        assert (found.plan, found.pending_change) == ("cheaper", None)
        await renewed(at)
        assert await metered_lines(at) == [("price_basic_tokens", 1_000, 5)]
        with anyio.fail_after(240):
            while not told or told[-1].plan != "cheaper":  # noqa: ASYNC110 - another task tells
                await anyio.sleep(0.05)


async def test_a_change_refused_after_acceptance_leaves_the_plan(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.service._ANSWER_S", 2.0)
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        at.emulator.summary_lag_s = 60
        assert not (await at.kit.subscriptions.change_plan("acme", "cheaper")).confirmed
        linked = await linked_of(at)
        at.emulator.fail_payments(linked)
        at.clock.advance(timedelta(minutes=3))
        await at.kit.subscriptions.retry_accepted()
        found = await known(at)
        assert (found.plan, found.pending_change) == ("basic", None)


async def test_a_change_that_stripe_never_confirms_is_given_up(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.subscriptions.service.service._ANSWER_S", 2.0)
    monkeypatch.setattr("meterkit.subscriptions.service.pending_changes._PATIENCE_S", 0.5)
    async with shop(store_url, catalog=CATALOG, selling=sell) as at:
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 1_100)
        at.emulator.summary_lag_s = 86_400
        assert not (await at.kit.subscriptions.change_plan("acme", "cheaper")).confirmed
        for minutes, pending in ((3, "cheaper"), (20, None)):
            at.clock.set(HALF + timedelta(minutes=minutes))
            await at.kit.subscriptions.retry_accepted()
            found = await known(at)
            assert found.plan == "basic"
            assert (found.pending_change.plan if found.pending_change else None) == pending


@pytest.mark.parametrize(
    ("plan", "late_usage"),
    [("cheaper", "next_period"), whole("none", "next_period"), ("cheaper", "dead_letter")],
)
async def test_i13_usage_that_missed_a_foreign_change_is_late(
    store_url: str, plan: str, late_usage: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = loads(
        PLANS.replace("plans:\n  free:", f"billing: {{late_usage: {late_usage}}}\nplans:\n  free:")
    )
    async with shop(store_url, catalog=catalog, selling=sell) as at:
        begun = await at.subscribed(plan="basic")
        at.clock.set(HALF + timedelta(seconds=20))
        await at.kit.record("acme", "tokens", 600)
        await at.kit.flush(everything=True)
        at.clock.advance(timedelta(minutes=5))
        await at.kit.record("acme", "tokens", 50)
        items = {
            item["price"]["id"]: item["id"]
            for item in (await at.stripe_subscription(begun.id))["items"]["data"]
        }
        metered = (
            {"items[1][price]": "price_cheaper_tokens"}
            if plan == "cheaper"
            else {"items[1][deleted]": "true"}
        )
        await at.stripe_change(
            f"/v1/subscriptions/{begun.id}",
            **{"items[0][id]": items["price_basic"], "items[0][price]": f"price_{plan}"},
            **{"items[1][id]": items["price_basic_tokens"], **metered},
        )
        await at.kit.subscriptions.sync("acme")
        found = await at.kit.subscriptions.sync("acme")  # Looked at again: nothing more is late.
        assert found is not None
        assert found.plan == plan
        assert "50 units of tokens that customer 'acme' used at USD 0.05 each" in caplog.text
        tokens = (await at.kit.usage("acme"))["meters"]["tokens"]
        assert tokens["late"] == 50
        assert tokens["pending"] == 0
        await at.kit.flush(everything=True)
        await renewed(at)
        assert await metered_lines(at) == [("price_basic_tokens", 500, 5)]
        billed = [(units, cents) for _, units, cents in await item_lines(at)]
        assert billed == ([(50, 250)] if late_usage == "next_period" else [])
