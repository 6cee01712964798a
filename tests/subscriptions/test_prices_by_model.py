"""Overage whose price depends on the model: an invoice line for each price, exact to unit and cent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import anyio
import pytest

from drivers.customer_states import store_overrides
from drivers.delivery import deliver, kit_for, until
from drivers.health_findings import findings
from drivers.plans import plans_text
from drivers.priced_shop import item_lines, renewed, usage_lines
from drivers.sampled import whole
from drivers.shop import HALF, Shop, sell_nothing, shop
from meterkit.catalog import loads
from meterkit.errors import MeterkitError
from subscriptions.looks import synced

pytestmark = pytest.mark.anyio

TABLE: Final = """{default: 4 per 1000, models: {"gpt-*-mini": 0.5 per 1000, "claude-opus-*": 20 per 1000}}"""
REORDERED: Final = (
    """{models: {"claude-opus-*": 20 per 1000, "gpt-*-mini": 0.5 per 1000}, default: 4 per 1000}"""
)
PLANS: Final = plans_text("prices_by_model")
CATALOG: Final = loads(PLANS.replace("TABLE", TABLE))
FLAT: Final[dict[str, Any]] = {"output_tokens": {"overage": {"bill": {"per": 100, "amount_cents": 1}}}}
MINI, OPUS = "gpt-5-mini", "claude-opus-4"


def answer(model: str, tokens: int) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": {"content": "Four."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
    }


async def use(at: Shop, **tokens: int) -> None:
    models = {"mini": MINI, "opus": OPUS, "other": "grok-4"}
    for model, quantity in tokens.items():
        await at.kit.record_usage("acme", answer(models[model], quantity))


async def lines(at: Shop) -> list[tuple[str, int, int]]:
    """All lines of usage on all invoices: product, units, cents."""
    names = {product["id"]: product["name"] for product in await at.stripe_list("/v1/products")}
    return [(names[price["product"]], units, cents) for price, units, cents in await usage_lines(at)]


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell_nothing) as opened:
        yield opened


async def test_a_month_of_three_models_has_a_line_for_each_price(at: Shop) -> None:
    await at.begun("pro")
    await at.kit.customers.override("acme", {"output_tokens": {"overage": {"bill": {"cap": 900_000}}}})
    await use(at, opus=1_000, mini=300_000)
    await use(at, opus=70_000, other=2_500)
    await at.kit.record("acme", "output_tokens", 2_500)
    meters = (await at.kit.usage("acme"))["meters"]
    assert meters["output_tokens"]["overage"] == 375_000
    assert meters["output_tokens"]["overage_cents"] == 150 + 1_400 + 20
    assert meters["output_tokens:claude-opus-*"]["overage_cents"] == 1_400
    await renewed(at)
    assert sorted(await lines(at)) == [
        ("Output tokens", 5_000, 20),
        ("Output tokens: claude-opus-*", 70_000, 1_400),
        ("Output tokens: gpt-*-mini", 300_000, 150),
    ]
    closed = (await at.kit.usage("acme", period=HALF))["meters"]
    assert closed["output_tokens"]["overage_cents"] == 150 + 1_400 + 20
    assert closed["output_tokens:claude-opus-*"]["overage_cents"] == 1_400
    compared = await at.kit.reconcile("acme", at=HALF)
    assert [one.difference for one in compared if one.invoiced] == [0, 0, 0]
    assert all(one.agrees for one in compared)


@pytest.mark.parametrize(
    ("plan", "after", "cents"),
    [
        ("flat", [("Output tokens", 15_000, 150)], 150),
        ("dear", [("Output tokens", 10_000, 80), ("Output tokens: claude-*", 5_000, 250)], 330),
    ],
)
async def test_i13_a_change_of_plan_bills_each_unit_as_recorded(
    at: Shop, plan: str, after: list[tuple[str, int, int]], cents: int
) -> None:
    await at.begun("pro")
    await use(at, other=3_500, mini=100_000, opus=10_000)
    change = await at.kit.subscriptions.change_plan("acme", plan)
    assert (change.confirmed, change.subscription.plan) == (True, plan)
    await use(at, mini=10_000, opus=5_000)
    assert (await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"] == 260 + cents
    await renewed(at)
    before = [
        ("Output tokens", 2_500, 10),
        ("Output tokens: gpt-*-mini", 100_000, 50),
        ("Output tokens: claude-opus-*", 10_000, 200),
    ]
    assert sorted(await lines(at)) == sorted([*before, *after])
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def changed_by_others(at: Shop, subscription: str, plan: str) -> None:
    """Give a subscription the items of another plan, as a person does in the Dashboard."""
    prices = {price["nickname"]: price["id"] for price in await at.stripe_list("/v1/prices")}
    items = await at.stripe_list("/v1/subscription_items", subscription=subscription)
    (base,) = (item["id"] for item in items if item["price"]["id"] == prices["pro, base"])
    change = {"items[0][id]": base, "items[0][price]": prices[f"{plan}, base"]}
    for nth, item in enumerate((item for item in items if item["id"] != base), 1):
        change |= {f"items[{nth}][id]": item["id"], f"items[{nth}][deleted]": "true"}
    wanted = [price for name, price in prices.items() if name.startswith(f"{plan}, output_tokens")]
    change |= {f"items[{nth}][price]": price for nth, price in enumerate(wanted, len(items))}
    await at.stripe_change(f"/v1/subscriptions/{subscription}", **change)


@pytest.mark.parametrize("plan", ["flat", "dear", whole("more")])
async def test_i13_late_usage_keeps_its_price(at: Shop, plan: str, caplog: pytest.LogCaptureFixture) -> None:
    await at.kit.stripe.sync()
    begun = await at.subscribed(plan="pro")
    at.clock.set(HALF + timedelta(seconds=20))
    await use(at, mini=101_000)
    await at.kit.flush(everything=True)
    at.clock.advance(timedelta(minutes=5))
    await use(at, opus=500, other=300)
    await changed_by_others(at, begun.id, plan)
    assert (await synced(at)).plan == plan
    for units in (
        "500 units of output_tokens:claude-opus-* that customer 'acme' used at $0.01 per 50 were",
        "300 units of output_tokens that customer 'acme' used at $0.01 per 250 were",
    ):
        assert caplog.text.count(units) == 1
    meters = (await at.kit.usage("acme"))["meters"]
    late = {name: (one["late"], one["pending"]) for name, one in meters.items() if one["late"]}
    is_same = plan == "more"
    assert late == {
        "output_tokens": (300, 300 * is_same),
        "output_tokens:claude-opus-*": (500, 500 * is_same),
    }
    await renewed(at)
    own = [("Output tokens", 300, 1), ("Output tokens: claude-opus-*", 500, 10)]
    by_item = [(name.partition(",")[0], units, cents) for name, units, cents in await item_lines(at)]
    assert sorted(by_item) == own * (not is_same)
    assert sorted(await lines(at)) == sorted([("Output tokens: gpt-*-mini", 100_000, 50), *own * is_same])
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


async def test_sync_makes_each_price_once_in_any_order(at: Shop, store_url: str) -> None:
    planned = await at.kit.stripe.sync(dry_run=True)
    told = [(line.name, line.price, line.action) for line in planned.lines if line.what == "price"]
    assert ("pro, output_tokens:claude-opus-*", "$0.0002 per token, each month", "to make") in told
    made = await at.kit.stripe.sync()
    ids = {line.name: line.id for line in made.lines if line.what == "price"}
    async with shop(
        store_url, catalog=loads(PLANS.replace("TABLE", REORDERED)), selling=sell_nothing
    ) as other:
        other.kit.stripe._api = at.kit.stripe._api  # pyright: ignore[reportPrivateUsage] - one account
        again = await other.kit.stripe.sync()
    assert {line.action for line in again.lines} == {"is there"}
    assert {line.name: line.id for line in again.lines if line.what == "price"} == ids


async def problems(at: Shop) -> list[str]:
    return [one.problem for one in await findings(at.kit, "stripe")]


async def test_the_doctor_names_models_missing_at_stripe(at: Shop) -> None:
    missing = await problems(at)
    event = "output_tokens:claude-opus-*"
    assert f"meter {event}: Stripe has no active meter with the event name {event}" in missing
    assert "plan pro: Stripe has no price for the plan itself" in missing
    await at.kit.stripe.sync()
    assert await problems(at) == []
    prices = {price["lookup_key"]: price["id"] for price in await at.stripe_list("/v1/prices")}
    for key in ("pro:meter:output_tokens:gpt-*-mini", "pro:meter:output_tokens", "dear:base"):
        await at.stripe_change(f"/v1/prices/{prices[f'meterkit:{key}']}", active="false")
    assert await problems(at) == [
        "plan pro: Stripe has no price for output_tokens, output_tokens:gpt-*-mini",
        "plan dear: Stripe has no price for the plan itself",
    ]
    at.emulator.fail_next("error", status=403, path="/v1/prices", times=2)
    assert await problems(at) == []  # The key may not list them.


def table_of(prefix: str) -> str:
    """Eighteen patterns: with the default and the plan's price that is all that a subscription takes."""
    rows = ", ".join(f'"{prefix}{nth}-*": {nth} per 1000' for nth in range(1, 19))
    return f"{{default: 40 per 1000, models: {{{rows}}}}}"


async def test_the_doctor_names_a_billed_meter_without_a_price(store_url: str) -> None:
    """A plan begins to bill a meter that Stripe has: its usage was delivered and on no invoice."""
    plans = PLANS.replace("TABLE", REORDERED, 1).replace(
        "meters:\n", "meters:\n  images: {unit: image, stripe: {event_name: images}}\n", 1
    )
    output = "{price: prices.output}}}"
    billed = "{included: 0, overage: {bill: {per: 1, amount_cents: 5}}}"
    plans = plans.replace(f"{output}}}", f"{output}, images: {billed}}}", 1)
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        assert await problems(at) == []
        (price,) = (
            one
            for one in await at.stripe_list("/v1/prices")
            if one["lookup_key"] == "meterkit:pro:meter:images"
        )
        await at.stripe_change(f"/v1/prices/{price['id']}", active="false")
        assert await problems(at) == ["plan pro: Stripe has no price for images"]


async def test_the_doctor_asks_for_the_prices_of_eight_plans_at_once(store_url: str) -> None:
    """The operator pages wait three seconds: the prices of one plan after another take longer."""
    plans = PLANS.replace("TABLE", TABLE) + "".join(
        f"  p{nth}: {{extends: pro, rank: {nth}}}\n" for nth in range(20, 40)
    )
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        at.emulator.fail_next("hang", path="/v1/prices", times=9)  # One lists the plans' own prices.
        async with anyio.create_task_group() as group:
            group.start_soon(at.kit.health)
            await until(lambda: not at.emulator.faults, within_s=10)
            await anyio.sleep(0.1)  # A tenth would be answered.
            assert [one for one in at.emulator.requests if one.path == "/v1/prices"] == []
            group.cancel_scope.cancel()


async def test_the_doctor_counts_prices_that_only_stripe_has(store_url: str) -> None:
    """With the table's 19 and the plan's own the price of images is the twenty-first of a subscription."""
    plans = PLANS.replace("TABLE", table_of("gpt-"), 1).replace(
        "meters:\n", "meters:\n  images: {unit: image, stripe: {event_name: images}}\n", 1
    )
    output = "{price: prices.output}}}"
    plans = plans.replace(f"{output}}}", f"{output}, images: {{included: 0, overage: bill}}}}", 1)
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        assert await problems(at) == []
        keyed = {price["lookup_key"]: price for price in await at.stripe_list("/v1/prices")}
        meters = {one["event_name"]: one["id"] for one in await at.stripe_list("/v1/billing/meters")}
        recurring = {"interval": "month", "usage_type": "metered", "meter": meters["images"]}
        product = keyed["meterkit:pro:base"]["product"]
        price = {"product": product, "currency": "usd", "unit_amount": 5, "recurring": recurring}
        await at.post("/v1/prices", price)
        (problem,) = await problems(at)
        assert problem.startswith("plan pro has 21 prices at Stripe")


async def test_an_override_of_a_table_is_refused_and_changes_no_cost(at: Shop) -> None:
    """F-22i: 230 cents were shown for 200 once the price was overridden, and 0 once it was not."""
    await at.begun("pro")
    await use(at, other=3_500, mini=100_000, opus=7_000)
    with pytest.raises(MeterkitError, match="has prices by model for it, which one price cannot replace"):
        await at.kit.customers.override("acme", FLAT)
    assert (await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"] == 10 + 50 + 140


async def test_a_tables_segment_ends_where_a_flat_price_follows(store_url: str) -> None:
    """F-22i: an override and its end."""
    plans = f"{PLANS.replace('TABLE', TABLE)}billing: {{usage: lines}}\n"
    async with shop(store_url, catalog=loads(plans), selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="pro")
        at.clock.set(HALF)
        await use(at, other=3_500, mini=100_000, opus=7_000)
        cents = list[int | None]()
        for overrides, tokens in (({}, 0), (FLAT, 3_000), ({}, 1_000)):
            at.clock.advance(timedelta(minutes=1))
            await store_overrides(at.kit, overrides)
            cents.append((await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"])
            await use(at, opus=tokens)
            cents.append((await at.kit.usage("acme"))["meters"]["output_tokens"]["overage_cents"])
        assert cents == [200, 200, 200, 230, 230, 250]


PRO: Final = """  pro:
    rank: 1
    price: {{amount_cents: 1000, interval: month}}
    meters: {{output_tokens: {{included: 1000, overage: {{bill: {}}}}}}}"""
ADDED: Final = [("Output tokens", 2_500, 10), ("claude-opus-*", 2_000, 40), ("gpt-*-mini", 5_000, 3)]
REMOVED: Final = [("Output tokens", 4_500, 18), ("claude-opus-*", 2_000, 40), ("gpt-*-mini", 3_000, 2)]
FLATTENED: Final = [("Output tokens", 5_500, 22), ("claude-opus-*", 1_000, 20), ("gpt-*-mini", 3_000, 2)]
FLAT_PRO: Final = PRO.format("{per: 1000, amount_cents: 6}")


@pytest.mark.parametrize(
    ("plan", "old", "new", "billed"),
    [
        # A model is added, or removed.
        ("pro", "0.5 per 1000, ", '0.5 per 1000, "grok-*": 9 per 1000, ', ADDED),
        ("pro", '"gpt-*-mini": 0.5 per 1000, ', "", REMOVED),
        # A flat price in place of the table of one plan, and a table in place of a flat price.
        ("pro", PRO.format("{price: prices.output}"), FLAT_PRO, FLATTENED),
        ("flat", "{per: 100, amount_cents: 1}", "{price: prices.output}", [("Output tokens", 9_500, 95)]),
    ],
)
async def test_an_edited_table_leaves_present_customers_their_prices(
    store_url: str, plan: str, old: str, new: str, billed: list[tuple[str, int, int]]
) -> None:
    """F-221: a new model was on no invoice, and units at prices that are gone were shown at others."""
    before = PLANS.replace("TABLE", TABLE)
    async with shop(store_url, catalog=loads(before), selling=sell_nothing) as at:
        await at.begun(plan)
        await use(at, opus=2_000, mini=3_000, other=1_000)  # 1,000 are included.
        after = before.replace(old, new)
        assert after != before
        async with kit_for(store_url, at.url, clock=at.clock, catalog=loads(after)) as kit:
            assert (await kit.stripe.sync()).problems == []
            edited = replace(at, kit=kit)
            await use(edited, opus=1_000, mini=2_000, other=1_500)
            usage = (await kit.usage("acme"))["meters"]["output_tokens"]
            await kit.flush(everything=True)
            await renewed(edited)
            found = [(name.removeprefix("Output tokens: "), *more) for name, *more in await lines(edited)]
            assert sorted(found) == sorted(billed)
            assert usage["overage_cents"] == sum(cents for _, _, cents in billed)
            assert all(one.agrees for one in await kit.reconcile("acme", at=HALF))


@pytest.mark.parametrize("is_sent", [False, True])
async def test_f_30d_the_model_used_last_is_taken_back_first(at: Shop, *, is_sent: bool) -> None:
    await at.begun("pro")
    for model, tokens in (("mini", 1_000), ("opus", 3_000), ("other", 5_000), ("mini", 2_000)):
        await use(at, **{model: tokens})  # The first 1,000 are included.
    if is_sent:
        await deliver(at.kit, everything=True)
        at.clock.advance(timedelta(minutes=10))

    async def left_after(units: int) -> list[int]:
        """Overage of opus, the others and mini that a correction has left."""
        (found,) = await at.kit.correct(
            "acme", {"output_tokens": units}, reason="a loop", correction_id=f"c{units}"
        )
        assert (found.taken_back, found.overage) == (units, units)
        meters = (await at.kit.usage("acme"))["meters"]
        names = ("claude-opus-*", "(default)", "gpt-*-mini")
        return [meters[f"output_tokens:{name}"]["overage"] for name in names]

    assert await left_after(1_500) == [3_000, 5_000, 500]
    assert await left_after(5_600) == [2_900, 0, 0]
    for model, tokens in (("other", 30), ("opus", 50), ("mini", 40)):
        await use(at, **{model: tokens})
    assert await left_after(60) == [2_930, 30, 0]
