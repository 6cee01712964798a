"""A price of overage that an override gives is the customer's own price at Stripe: shown, limited, billed."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, Final, Literal

import pytest

from drivers.customer_states import closed_period_cents
from drivers.delivery import kit_for
from drivers.priced_shop import CATALOG, PLANS, renewed, sell, usage_lines
from drivers.sampled import whole
from drivers.shop import END, HALF, Shop, sell_nothing, shop
from drivers.sync_queue import due_price_ms, forget_due_price, queue_sync
from drivers.webhooks import DAY
from meterkit import MeterkitError, StripeError, StripeUnavailableError
from meterkit.catalog import Catalog, loads
from meterkit.testing import StripeEmulator, check_bill

pytestmark = pytest.mark.anyio

SOLD: Final = {
    f"price_{plan}{meter}" for plan in CATALOG.plans for meter in ("", "_tokens", "_pages", "_seat")
}


BASIC: Final = {"price_basic": 1, "price_basic_tokens": None}


def priced(cents: int) -> dict[str, Any]:
    return {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": cents}}}}


async def given(at: Shop, cents: int) -> str:
    """Override the price of tokens; the price at Stripe."""
    await at.kit.customers.override("acme", priced(cents))
    return (await own_prices(at))[0]


SEATED: Final = loads(
    re.sub(
        r"stripe_price: price_(basic|cheaper)}",
        r"\g<0>\n    seat_price: {amount_cents: 300, stripe_price: price_\1_seat}",
        PLANS.replace("meters:\n  tokens", "meters:\n  seats: {unit: seat, kind: gauge}\n  tokens", 1),
    )
)


def sell_seats(emulator: StripeEmulator, catalog: Catalog) -> None:
    sell(emulator, catalog)
    for plan in ("basic", "cheaper"):
        emulator.add_price(300, price_id=f"price_{plan}_seat")


async def own_prices(at: Shop) -> list[str]:
    return [price["id"] for price in await at.stripe_list("/v1/prices") if price["id"] not in SOLD]


async def shown(at: Shop) -> int | None:
    return (await at.kit.usage("acme"))["meters"]["tokens"]["overage_cents"]


async def billed(at: Shop) -> list[tuple[int, int]]:
    """Units and cents a unit of all invoice lines of usage, after the period's end."""
    await renewed(at)
    await at.kit.flush(everything=True)
    return [(units, cents // units) for _, units, cents in await usage_lines(at)]


async def own_line_cents(at: Shop) -> list[int]:
    """Cents of each invoice line that meterkit has written, oldest first."""
    lines = [line for invoice in await at.invoices() for line in invoice["lines"]["data"]]
    return [line["amount"] for line in lines if "meterkit_line" in line["metadata"]]


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with shop(store_url, catalog=CATALOG, selling=sell) as opened:
        yield opened


async def test_a_falling_price_is_shown_and_billed_from_then_on(at: Shop) -> None:
    await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    await at.kit.customers.override("acme", priced(2))
    assert await shown(at) == 50
    await at.kit.record("acme", "tokens", 20)
    await queue_sync(at.kit, cause="evt_1")  # No webhook takes it for a change by others.
    assert ((await at.kit.usage("acme"))["meters"]["tokens"]["late"], await shown(at)) == (0, 90)
    assert (await at.kit.subscriptions.check(), await billed(at)) == ({}, [(10, 5), (20, 2)])
    assert all(one.agrees for one in await at.kit.reconcile("acme", at=HALF))


BILLED_PAGES: Final = loads(
    re.sub(r", stripe_price: \w+", "", PLANS).replace(
        "pages:  {included: 0, overage: deny}\n  cheaper:",
        "pages:  {included: 0, overage: {bill: {per: 9, amount_cents: 7}}}\n  cheaper:",
    )
)


async def test_an_override_parts_no_usage_of_another_meter(store_url: str) -> None:
    """Pages before and after it were rounded apart, as 38 cents: the invoice has one line of them, of 37."""
    async with shop(store_url, catalog=BILLED_PAGES, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="basic")
        at.clock.set(HALF)
        await at.kit.record("acme", {"tokens": 110, "pages": 19})
        await at.kit.customers.override("acme", priced(2))
        await at.kit.record("acme", {"tokens": 20, "pages": 29})
        used = (await at.kit.usage("acme"))["meters"]
        await renewed(at)
        lines = {(units, cents) for _, units, cents in await usage_lines(at)}
        assert lines == {(10, 50), (20, 40), (48, 37)}
        assert (used["tokens"]["overage_cents"], used["pages"]["overage_cents"]) == (90, 37)


async def test_a_price_that_rises_takes_effect_when_the_period_ends(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    given = await at.kit.customers.override("acme", {"tokens": {"included": 50, **priced(9)["tokens"]}})
    assert (given.price_changes, await shown(at)) == ({"tokens": END}, 50)
    await at.kit.record("acme", "tokens", 20)
    assert (await shown(at), await at.items(begun.id)) == (150, BASIC)
    assert (await at.kit.subscriptions.check(), await billed(at)) == ({}, [(30, 5)])
    await at.kit.subscriptions.sync("acme")
    await at.kit.subscriptions.retry_accepted()
    await at.kit.record("acme", "tokens", 60)
    assert (await shown(at), await at.kit.subscriptions.check()) == (90, {})
    assert (await at.kit.customers.get("acme")).price_changes == {}


async def test_a_price_that_is_taken_back_holds_until_the_period_ends(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    own = await given(at, 2)
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    await at.kit.customers.override("acme", {"tokens": {}})
    assert await at.items(begun.id) == {"price_basic": 1, own: None}
    await at.kit.record("acme", "tokens", 10)
    assert (await shown(at), await billed(at)) == (40, [(20, 2)])
    await at.kit.subscriptions.sync("acme")
    await at.kit.subscriptions.retry_accepted()
    assert await at.items(begun.id) == BASIC
    await at.kit.record("acme", "tokens", 101)
    assert (await shown(at), await at.kit.subscriptions.check()) == (5, {})


@pytest.mark.parametrize(("plan", "expected"), [("cheaper", [(20, 2)]), whole("none", [(10, 2)])])
async def test_an_upgrade_keeps_a_billed_price(at: Shop, plan: str, expected: list[tuple[int, int]]) -> None:
    begun = await at.subscribed(plan="basic")
    own = await given(at, 2)
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    await at.kit.subscriptions.change_plan("acme", plan)
    assert (own in await at.items(begun.id)) == (plan == "cheaper")
    assert await at.kit.subscriptions.check() == {}
    await at.kit.record("acme", "tokens", 10)
    assert await billed(at) == expected


async def test_a_meter_outside_the_plan_gets_an_item_and_loses_it(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.customers.override("acme", {"pages": {"overage": {"bill": {"per": 1, "amount_cents": 4}}}})
    (own,) = await own_prices(at)
    assert own in await at.items(begun.id)
    assert await at.kit.subscriptions.check() == {}
    await at.kit.record("acme", "pages", 6)
    assert (await at.kit.usage("acme"))["meters"]["pages"]["overage_cents"] == 24
    at.clock.advance(timedelta(minutes=5))
    await at.kit.customers.override("acme", {"pages": {}})
    assert (await at.items(begun.id), await at.kit.subscriptions.check()) == (BASIC, {})
    assert await billed(at) == [(6, 4)]


async def test_a_new_subscription_has_an_earlier_overrides_price(at: Shop) -> None:
    await at.subscribed(plan="basic")
    own = await given(at, 2)
    await at.kit.subscriptions.cancel("acme", immediately=True)
    assert await at.items((await at.subscribed(plan="basic")).id) == {"price_basic": 1, own: None}
    assert await at.kit.subscriptions.check() == {}


@pytest.mark.parametrize("immediately", [True, False])
async def test_a_price_that_no_item_bills_admits_nothing(at: Shop, *, immediately: bool) -> None:
    """After the subscription, the default plan denies overage; the override had admitted all, for nothing."""
    await at.subscribed(plan="basic")
    await given(at, 2)
    assert (await at.kit.check("acme", "tokens", 1_000)).allowed
    await at.kit.subscriptions.cancel("acme", immediately=immediately)
    at.clock.set(END)
    refused = await at.kit.check("acme", "tokens")
    assert (refused.plan, refused.allowed, refused.reason) == ("free", False, "included")
    await at.kit.record("acme", "tokens", 50)
    await at.kit.flush(everything=True)
    tokens = (await check_bill(at.kit, at.emulator, {"acme": {"tokens": 50}}))[0]
    assert (tokens.meter, tokens.due, tokens.is_right) == ("tokens", 0, True)
    at.clock.set(END + timedelta(days=32))
    assert await closed_period_cents(at.kit, await at.kit.usage("acme", period=END)) == 0
    await at.subscribed(plan="basic")
    price = (await at.kit.usage("acme"))["meters"]["tokens"].get("price")
    assert price is not None
    assert price["amount_cents"] == 2


BY_LINES: Final = loads(re.sub(r", stripe_price: \w+", "", PLANS) + "billing: {usage: lines}\n")


@pytest.mark.parametrize(
    ("ends", "billed"), [("canceled", [20]), ("at its period's end", [20]), ("for a plan by hand", [20, 150])]
)
async def test_f_306_a_price_by_override_ends_with_the_subscription(
    store_url: str, ends: str, billed: list[int]
) -> None:
    """The default plan denies overage: the override's price had admitted all, and billed it."""
    async with shop(store_url, catalog=BY_LINES, selling=sell_nothing) as at:
        await at.kit.stripe.sync()
        await at.subscribed(plan="basic")
        await at.kit.customers.override("acme", priced(2))
        await at.kit.record("acme", "tokens", 110)
        at.clock.set(HALF)
        await at.kit.subscriptions.cancel("acme", immediately=ends != "at its period's end")
        if ends == "for a plan by hand":
            await at.kit.customers.set_plan("acme", "cheaper")
        at.go(END + timedelta(minutes=3))
        await at.kit.subscriptions.sync("acme")
        assert (await at.kit.check("acme", "tokens")).allowed == (ends == "for a plan by hand")
        await at.kit.record("acme", "tokens", 150)
        for _ in range(2):
            await at.kit.flush(everything=True, timeout_s=0)
            at.go(END + timedelta(days=40))
        assert await own_line_cents(at) == billed
        with pytest.raises(MeterkitError, match="has no active subscription"):
            await at.kit.customers.override("acme", priced(1))


@pytest.mark.parametrize(
    ("path", "skip", "how"),
    [
        ("/v1/prices", 2, "error"),
        ("/v1/billing/meter_events", 0, "error"),
        ("/v1/subscriptions/ID", 1, "drop"),
        ("/v1/subscriptions", 1, "error"),
    ],
)
async def test_a_retry_finishes_after_stripe_failed_between_steps(
    at: Shop, path: str, skip: int, how: Literal["error", "drop"]
) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    more: dict[str, Any] = {"status": 503} if how == "error" else {"when": "after"}
    at.emulator.fail_next(how, times=9, skip=skip, path=path.replace("ID", begun.id), **more)
    with suppress(StripeError):  # The client repeats a request that has no answer.
        await at.kit.customers.override("acme", priced(2))
    at.emulator.clear_faults()
    is_stored = "tokens" in (await at.kit.customers.get("acme")).overrides
    has_price = bool(set(await own_prices(at)) & (await at.items(begun.id)).keys())
    assert has_price or not is_stored
    at.clock.advance(timedelta(minutes=10))
    await at.kit.flush(everything=True)
    await at.kit.customers.override("acme", priced(2))
    (own,) = await own_prices(at)
    assert await at.items(begun.id) == {"price_basic": 1, own: None}
    await at.kit.record("acme", "tokens", 10)
    assert (await shown(at), await billed(at)) == (70, [(10, 5), (10, 2)])


@pytest.mark.parametrize(
    ("report", "words"), [("usage", "its free tier restarts"), ("none", "its usage is not sent to Stripe")]
)
async def test_a_price_no_invoice_can_bill_is_refused(store_url: str, report: str, words: str) -> None:
    catalog = loads(PLANS.replace("event_name: ai_tokens", f"event_name: ai_tokens, report: {report}"))
    async with shop(store_url, catalog=catalog, selling=sell) as at:
        await at.subscribed(plan="basic")
        with pytest.raises(MeterkitError, match=words):
            await at.kit.customers.override("acme", priced(2))
        assert (await at.kit.customers.get("acme")).overrides == {}


async def test_without_a_subscription_or_key_only_prices_are_refused(at: Shop, store_url: str) -> None:
    with pytest.raises(MeterkitError, match=r"'acme' has no active subscription.*begin a subscription"):
        await at.kit.customers.override("acme", priced(2))
    await at.kit.customers.override("acme", {"tokens": {"included": 7, "overage": {"bill": {"cap": 9}}}})
    stored = (await at.kit.customers.get("acme")).overrides
    assert stored["tokens"]["included"] == 7
    await at.subscribed(plan="basic")
    async with kit_for(store_url, at.url, clock=at.clock, catalog=CATALOG, stripe_api_key=None) as keyless:
        with pytest.raises(MeterkitError, match="set METERKIT_STRIPE_API_KEY"):
            await keyless.customers.override("acme", priced(2))
        assert (await keyless.customers.get("acme")).overrides == stored


async def test_a_host_that_is_ahead_ends_no_price_early(store_url: str) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + DAY
    async with shop(store_url, catalog=CATALOG, selling=sell, is_real_time=True) as at:
        begun = await at.subscribed(plan="basic")
        await at.kit.customers.override("acme", priced(4), until=until)
        (own,) = await own_prices(at)
        at.kit.store.clock = lambda: time() + 3 * 86_400
        await at.kit.subscriptions.retry_accepted()
        assert own in await at.items(begun.id)
        await at.kit.customers.override("acme", priced(2), until=until)
        at.kit.store.clock = time
        assert await due_price_ms(at.kit) == until.timestamp() * 1000
        (changed,) = set(await own_prices(at)) - {own}
        assert changed in await at.items(begun.id)
        assert (await at.kit.customers.get("acme")).override_ends["tokens"] == until


async def test_seats_changed_before_a_price_ends_leave_its_item(store_url: str) -> None:
    async with shop(store_url, catalog=SEATED, selling=sell_seats) as at:
        begun = await at.subscribed(plan="cheaper", seats=1)
        await at.kit.customers.override("acme", priced(2), until=HALF)
        (own,) = await own_prices(at)
        await at.kit.subscriptions.change_plan("acme", "basic")
        at.clock.set(HALF)
        await at.kit.record("acme", "tokens", 110)
        await at.kit.subscriptions.set_seats("acme", 4)
        assert own in await at.items(begun.id)
        await at.kit.subscriptions.retry_accepted()
        assert own not in await at.items(begun.id)
        await at.kit.record("acme", "tokens", 10)
        assert (await shown(at), await billed(at)) == (50, [(10, 2), (10, 3)])
        assert await at.items(begun.id) == BASIC | {"price_basic_seat": 4}


async def test_a_change_in_doubt_is_settled_by_the_store(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 110)
    path = f"/v1/subscriptions/{begun.id}"
    at.emulator.fail_next("error", status=503, when="after", times=9, skip=1, path=path)
    with pytest.raises(StripeUnavailableError):
        await at.kit.customers.override("acme", priced(2))
    at.emulator.clear_faults()
    (own,) = await own_prices(at)
    assert own in await at.items(begun.id)
    assert (await at.kit.customers.get("acme")).overrides == {}
    at.clock.advance(timedelta(minutes=5))
    await at.kit.subscriptions.retry_accepted()
    assert (await at.items(begun.id), await at.kit.subscriptions.check()) == (BASIC, {})
    assert await billed(at) == [(10, 5)]


async def test_the_nightly_sync_finds_a_price_that_ended(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    await at.kit.customers.override("acme", priced(2), until=HALF)
    await forget_due_price(at.kit)
    at.clock.set(HALF)
    await queue_sync(at.kit, cause="reconcile")
    await at.kit.subscriptions.retry_accepted()
    assert (await at.items(begun.id), await at.kit.subscriptions.check()) == (BASIC, {})


async def test_a_price_that_is_to_end_sooner_ends_then(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    await at.kit.customers.override("acme", priced(2), until=HALF + timedelta(days=1))
    await at.kit.customers.override("acme", priced(2), until=HALF)
    assert await due_price_ms(at.kit) == HALF.timestamp() * 1000
    at.clock.set(HALF)
    await at.kit.subscriptions.retry_accepted()
    assert (await at.items(begun.id), await at.kit.subscriptions.check()) == (BASIC, {})


async def test_a_price_ends_at_its_until(at: Shop) -> None:
    begun = await at.subscribed(plan="basic")
    await at.kit.record("acme", "tokens", 100)
    await at.kit.customers.override("acme", priced(2), until=HALF)
    await at.kit.record("acme", "tokens", 10)
    at.clock.set(HALF)
    await at.kit.record("acme", "tokens", 10)
    await at.kit.subscriptions.retry_accepted()
    assert await at.items(begun.id) == BASIC
    await at.kit.record("acme", "tokens", 10)
    assert (await shown(at), await at.kit.subscriptions.check()) == (90, {})
    assert await billed(at) == [(20, 2), (10, 5)]


@pytest.mark.parametrize("uses", [True, False], ids=["used since", "quiet"])
async def test_an_override_changes_no_cost_of_a_closed_period(at: Shop, *, uses: bool) -> None:
    """Its overage, which was invoiced, cost nothing once an override denied overage."""
    await at.subscribed(plan="basic")
    await at.kit.record("acme", "tokens", 110)
    await renewed(at)
    await at.kit.subscriptions.sync("acme")
    if uses:
        await at.kit.record("acme", "tokens", 1)
    await at.kit.customers.override("acme", {"tokens": {"included": 100, "overage": "deny"}})
    assert await closed_period_cents(at.kit, await at.kit.usage("acme", period=HALF)) == 50


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{included: 100, overage: {bill: {per: 1, amount_cents: 5}}}", "{included: 100, overage: deny}"),
        ("  basic:", "  simple:"),
    ],
    ids=["overage", "key"],
)
async def test_an_edit_changes_no_cost_of_a_closed_period(at: Shop, old: str, new: str) -> None:
    """Its overage, which was invoiced, cost nothing once the plans file bills none or lacks the plan."""
    await at.subscribed(plan="basic")
    await at.kit.record("acme", "tokens", 110)
    await renewed(at)
    await at.kit.subscriptions.sync("acme")
    at.kit.store.use(loads(PLANS.replace(old, new, 1)))
    assert await closed_period_cents(at.kit, await at.kit.usage("acme", period=HALF)) == 50
