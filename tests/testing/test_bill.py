"""Bills are checked from what was served to what Stripe has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from drivers.emulated_account import account
from drivers.plans import plans_text
from drivers.shop import shop
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock, StripeEmulator, check_bill

CATALOG = loads("""
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request, stripe: {event_name: requests, report: usage}}
  tokens: {unit: token, stripe: {event_name: tokens}}
  images: {unit: image, stripe: {event_name: images}}
  large_images: {unit: image, from: images, where: {model: "*-large*"}, stripe: {event_name: large_images}}
  pages: {unit: page}
credits:
  ai: {costs: {tokens: 1 per 100}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 40, overage: deny}
      tokens: {included: 5_000, overage: deny}
      images: {included: 1, overage: deny}
  pro:
    price: {amount_cents: 2900, interval: month}
    meters:
      requests: {included: unlimited}
      tokens: {included: 8_000, overage: {bill: {cap: 5_000}}}
      images: {included: 1, overage: deny}
""")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stripe(clock: Clock) -> StripeEmulator:
    emulator = StripeEmulator(clock=clock)
    emulator.add_customer("cus_ada")
    emulator.add_meters(CATALOG)
    return emulator


@pytest.fixture
async def kit(stripe: StripeEmulator, clock: Clock, store_url: str) -> AsyncIterator[MeterKit]:
    with stripe.running() as url:
        settings: Any = {"redis_url": store_url, "stripe_api_key": "sk_test_bill", "stripe_api_base": url}
        async with MeterKit(CATALOG, clock=clock, flush=False, **settings) as kit:
            await kit.customers.set_plan("ada", "pro")
            await kit.customers.link("ada", "cus_ada")
            yield kit


async def deliver(kit: MeterKit) -> None:
    assert (await kit.flush(everything=True)).is_complete


async def tokens_of(kit: MeterKit, stripe: StripeEmulator, tokens: int) -> tuple[int, int, bool]:
    lines = await check_bill(kit, stripe, {"ada": {"tokens": tokens}})
    (line,) = [line for line in lines if line.meter == "tokens"]
    return line.due, line.billed, line.is_right


@pytest.mark.anyio
async def test_a_bill_is_checked_from_served_to_stripe(
    kit: MeterKit, stripe: StripeEmulator, clock: Clock
) -> None:
    await kit.customers.override("ada", {"tokens": {"included": 7_000}})
    await kit.grants.add("ada", {"ai": 5}, grant_id="inv_1")
    await kit.grants.add("ada", {"tokens": 100}, grant_id="gift", priority=1)
    await kit.record("ada", "requests", 3)
    await kit.record("ada", "tokens", 8_000)
    await deliver(kit)

    served = {"ada": {"requests": 3, "tokens": 8_000}}
    requests, tokens = await check_bill(kit, stripe, served)
    assert (requests.is_right, requests.billed) == (True, 3)
    assert (tokens.included, tokens.prepaid, tokens.due, tokens.billed) == (7_000, 600, 400, 400)
    assert tokens.is_right

    stripe.fail_next("lose")
    await kit.record("ada", "requests", 2)
    clock.advance(timedelta(minutes=5))
    await deliver(kit)
    requests, _ = await check_bill(kit, stripe, {"ada": {"requests": 5, "tokens": 8_000}})
    assert str(requests) == "ada, requests: 5 served, 5 recorded, 5 to be billed, but Stripe has 3."
    assert not requests.is_right
    requests, tokens = await check_bill(kit, stripe, {"ada": {"requests": 6, "tokens": 8_001}})
    assert (tokens.is_right, tokens.recorded) == (False, 8_000), "one more was served than was recorded"
    clock.set((await kit.usage("ada"))["period"]["end"] + timedelta(seconds=1))
    lines = await check_bill(kit, stripe, {"ada": {}})
    assert [(line.billed, line.is_right) for line in lines] == [(0, True), (0, True)]


@pytest.mark.anyio
@pytest.mark.parametrize("change", ["plan", "overrides"])
async def test_a_bill_is_right_after_a_change_in_the_period(
    kit: MeterKit, stripe: StripeEmulator, clock: Clock, change: str
) -> None:
    await kit.record("ada", "tokens", 8_300)
    if change == "plan":
        await kit.customers.set_plan("ada", "free")
    else:
        await kit.customers.override("ada", {"tokens": {"overage": {"bill": {"cap": 100}}}})
    await kit.record("ada", "tokens", 40)
    await deliver(kit)
    assert await tokens_of(kit, stripe, 8_340) == (300, 300, True)

    stripe.fail_next("lose")
    await kit.customers.override("ada", {"tokens": {"overage": {"bill": {"cap": 5_000}}}})
    await kit.customers.set_plan("ada", "pro")
    await kit.record("ada", "tokens", 7)
    clock.advance(timedelta(minutes=5))
    await deliver(kit)
    assert await tokens_of(kit, stripe, 8_347) == (307, 300, False)


@pytest.mark.anyio
async def test_a_bill_is_right_where_an_override_ended_in_the_period(
    kit: MeterKit, stripe: StripeEmulator, clock: Clock
) -> None:
    end = (await kit.usage("ada"))["period"]["end"]
    await kit.customers.override("ada", {"tokens": {"included": 9_000}}, until=end + timedelta(days=9))
    clock.set(end)
    await kit.record("ada", "tokens", 8_600)
    clock.advance(timedelta(days=9))
    await kit.record("ada", "tokens", 70)
    await deliver(kit)
    assert await tokens_of(kit, stripe, 8_670) == (70, 70, True)


@pytest.mark.anyio
async def test_a_bill_without_meters_has_what_lines_will_have(store_url: str, clock: Clock) -> None:
    catalog, emulator = loads(plans_text("invoice_lines")), StripeEmulator(clock=clock)
    emulator.add_plans(catalog)
    emulator.add_customer("cus_ada")
    async with account(emulator) as client:
        assert (await client.billing.meters.list()).data == []
    with emulator.running() as url:
        settings: Any = {"redis_url": store_url, "stripe_api_key": "sk_test_bill", "stripe_api_base": url}
        async with MeterKit(catalog, clock=clock, flush=False, **settings) as kit:
            await kit.customers.link("ada", "cus_ada")
            await kit.customers.set_plan("ada", "pro")
            await kit.record("ada", "words", 126)
            assert (await kit.flush(everything=True)).is_complete
            words, pages = await check_bill(kit, emulator, {"ada": {"words": 126}})
    assert (words.due, words.billed, words.is_right, pages.is_right) == (26, 26, True, True)


@pytest.mark.anyio
async def test_units_that_addons_include_are_not_due(store_url: str) -> None:
    plans = plans_text("addon_shop").replace("{requests: {included: 50}}", "{tokens: {included: 50}}")
    async with shop(store_url, catalog=loads(plans), selling=StripeEmulator.add_plans) as at:
        made = await at.kit.subscriptions.create("ada", "team", addons={"call_pack": 1})
        at.emulator.confirm_payment(made.client_secret or "")
        await at.kit.subscriptions.sync("ada")
        at.go(timedelta(days=30))  # In June the plan began, which is a change.
        await at.kit.subscriptions.sync("ada")
        await at.kit.record("ada", "tokens", 153)
        await deliver(at.kit)
        assert await tokens_of(at.kit, at.emulator, 153) == (3, 3, True)
        await at.kit.subscriptions.set_addons("ada", {"call_pack": 2})
        await at.kit.record("ada", "tokens", 40)
        await deliver(at.kit)
        assert await tokens_of(at.kit, at.emulator, 193) == (3, 3, True)


@pytest.mark.anyio
async def test_a_bill_is_right_after_another_link_in_the_period(
    kit: MeterKit, stripe: StripeEmulator, clock: Clock
) -> None:
    await kit.record("ada", "tokens", 8_300)
    await deliver(kit)
    await kit.customers.unlink("ada")
    await kit.customers.link("ada", stripe.add_customer("cus_new"))
    await kit.record("ada", "tokens", 40)
    clock.advance(timedelta(minutes=5))
    await deliver(kit)
    assert stripe.accepted("cus_new", "tokens") == 40
    assert await tokens_of(kit, stripe, 8_340) == (340, 340, True)
