"""Add-ons beside a plan: more at once and paid, fewer when the period ends; through changes of plan."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest

from drivers.delivery import kit_for
from drivers.plans import plans_text
from drivers.sampled import some, whole
from drivers.shop import END, HALF, START, Shop, shop
from meterkit import (
    AddonLimitError,
    InvoiceOpenError,
    MeterkitError,
    Proration,
    QuantityError,
    SeatsInUseError,
    StripeError,
    StripeUnavailableError,
    Subscription,
    SubscriptionError,
    UnknownAddonError,
)
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from subscriptions.looks import known, linked_of, synced

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("addon_shop")
AT_ONCE: Final = PLANS + "billing: {changes: {downgrade: now}}\n"
LATER: Final = PLANS + "billing: {changes: {upgrade: period_end}}\n"
BY_LINES: Final = PLANS + "billing: {usage: lines}\n"
CHANGES: Final = {"as usual": PLANS, "at once": AT_ONCE, "later": LATER}
PLAN_CHANGES: Final = {"same": ("pro", None), "up": ("team", "pro"), "down": ("pro", "team")}
DAY: Final = timedelta(days=1)
PAGE: Final = "https://app.example"


def opened(store_url: str, plans: str = PLANS) -> Any:
    return shop(store_url, catalog=loads(plans), selling=StripeEmulator.add_plans)


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Shop]:
    async with opened(store_url) as found:
        yield found


async def begun(at: Shop, plan: str = "team", addons: Mapping[str, int] | None = None, seats: int = 1) -> str:
    """Subscribe on the first day; the subscription's id. It is mid-period then."""
    made = await at.kit.subscriptions.create("acme", plan, seats, addons=addons)
    if made.client_secret is not None:
        is_trial = made.subscription.status == "trialing"
        (at.emulator.confirm_setup if is_trial else at.emulator.confirm_payment)(made.client_secret)
    await synced(at)
    at.clock.set(HALF)
    return made.subscription.id


async def bought(at: Shop, **addons: int) -> Subscription:
    return (await at.kit.subscriptions.set_addons("acme", addons)).subscription


def waiting(found: Subscription) -> tuple[str | None, dict[str, int], object] | None:
    """The plan and add-ons that are scheduled, and when they begin."""
    change = found.pending_change
    return None if change is None else (change.plan, dict(change.addons), change.effective_at)


async def paid(at: Shop) -> list[int]:
    return [invoice["amount_paid"] for invoice in await at.invoices()]


async def totals(at: Shop) -> list[int]:
    return [invoice["total"] for invoice in await at.invoices()]


async def addon_items(at: Shop, subscription: str) -> dict[str, int | None]:
    items = await at.items(subscription)
    return {price.removeprefix("price_addon_"): n for price, n in items.items() if "addon" in price}


async def included(at: Shop, meter: str) -> object:
    return (await at.kit.usage("acme"))["meters"][meter]["included"]


@pytest.mark.parametrize("plans", some({"meters": PLANS, "lines": BY_LINES}, {"meters"}))
async def test_more_is_paid_at_once_on_its_own_invoice(store_url: str, plans: str) -> None:
    async with opened(store_url, {"meters": PLANS, "lines": BY_LINES}[plans]) as at:
        subscription = await begun(at)
        preview = await at.kit.subscriptions.preview("acme", addons={"storage_pack": 2})
        cost = preview.proration
        assert (cost.charge_cents, cost.credit_cents, cost.effective_at) == (1000, 0, HALF)
        assert cost.description.startswith(
            "0 to 2 Extra storage now, prorated to 2031-07-01 00:00 UTC: $10.00"
        )
        assert cost.description.endswith("From the next period on it costs $35.00 a month, before usage.")
        assert await paid(at) == [1500]
        done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2})
        assert (done.proration, done.client_secret, done.ended_addons) == (cost, None, {})
        assert (done.subscription.addons, done.subscription.pending_change) == ({"storage_pack": 2}, None)
        assert await included(at, "storage") == 250_000_000
        assert await paid(at) == [1500, 1000]
        changes = len(at.changes())
        again = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2})
        assert (again.subscription.addons, again.proration.charge_cents) == ({"storage_pack": 2}, 0)
        assert len(at.changes()) == changes
        assert await addon_items(at, subscription) == {"storage_pack": 2}
        at.go(END)
        assert await totals(at) == [1500, 1000, 3500]


async def test_a_declined_purchase_changes_nothing(at: Shop) -> None:
    subscription = await begun(at, addons={"storage_pack": 1})
    before = await at.stripe_subscription(subscription)
    await at.fail_payments()
    for asked in ({"storage_pack": 2}, {"call_pack": 1, "storage_pack": 0}):
        with pytest.raises(StripeError) as refused:
            await at.kit.subscriptions.set_addons("acme", asked)
        assert refused.value.type == "card_error"
        found = await synced(at)
        assert (found.addons, found.pending_change, found.status) == ({"storage_pack": 1}, None, "active")
    after = await at.stripe_subscription(subscription)
    assert (after["items"], after["schedule"]) == (before["items"], None)
    assert await included(at, "requests") == 100


async def test_fewer_wait_for_the_periods_end(at: Shop) -> None:
    subscription = await begun(at, addons={"storage_pack": 3})
    await at.kit.gauges.set("acme", "storage", 200_000_000)
    preview = await at.kit.subscriptions.preview("acme", addons={"storage_pack": 1})
    assert (preview.proration.net_cents, preview.proration.effective_at) == (0, END)
    assert preview.proration.description.startswith("3 to 1 Extra storage when the period ends")
    assert "$25.00 a month" in preview.proration.description
    assert [(one.meter, one.limit) for one in preview.over_limit] == [("storage", 150_000_000)]
    done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 1})
    assert (done.proration, done.subscription.addons) == (preview.proration, {"storage_pack": 3})
    assert waiting(done.subscription) == ("team", {"storage_pack": 1}, END)
    assert await included(at, "storage") == 350_000_000
    changes = len(at.changes())
    assert waiting(await bought(at, storage_pack=1)) == ("team", {"storage_pack": 1}, END)
    assert len(at.changes()) == changes
    assert waiting(await bought(at, storage_pack=2)) == ("team", {"storage_pack": 2}, END)
    at.clock.set(END)  # It binds before a webhook tells of it.
    assert await included(at, "storage") == 250_000_000
    at.emulator.advance()
    found = await synced(at)
    assert (found.plan, found.addons, found.pending_change) == ("team", {"storage_pack": 2}, None)
    assert await addon_items(at, subscription) == {"storage_pack": 2}
    assert await totals(at) == [4500, 3500]


async def test_fewer_wait_for_the_end_of_a_year_whatever_the_file_says(store_url: str) -> None:
    yearly = AT_ONCE.replace("interval: month", "interval: year").replace(
        "1500, interval: year", "1500, interval: year, included_per: interval"
    )
    async with opened(store_url, yearly) as at:
        await begun(at, addons={"storage_pack": 3})
        found = await bought(at, storage_pack=1)
        year_end = (await at.kit.usage("acme"))["period"]["end"]
        assert found.addons == {"storage_pack": 3}
        assert waiting(found) == ("team", {"storage_pack": 1}, year_end)


async def test_the_present_quantity_takes_a_scheduled_one_back(at: Shop) -> None:
    subscription = await begun(at, addons={"storage_pack": 3, "call_pack": 2})
    assert waiting(await bought(at, storage_pack=0)) == ("team", {"call_pack": 2}, END)
    both = await bought(at, call_pack=1)
    assert waiting(both) == ("team", {"call_pack": 1}, END)
    assert waiting(await bought(at, storage_pack=3)) == ("team", {"call_pack": 1, "storage_pack": 3}, END)
    found = await bought(at, call_pack=2)
    assert (found.addons, found.pending_change) == ({"call_pack": 2, "storage_pack": 3}, None)
    assert (await at.stripe_subscription(subscription))["schedule"] is None
    at.go(END)
    assert await addon_items(at, subscription) == {"call_pack": 2, "storage_pack": 3}
    assert await totals(at) == [5500, 5500]


async def test_a_lower_max_lets_the_present_quantity_stay(at: Shop, store_url: str) -> None:
    await begun(at, addons={"storage_pack": 5})
    await bought(at, storage_pack=2)
    catalog = loads(PLANS.replace("max: 5", "max: 3"))
    async with kit_for(store_url, at.url, clock=at.clock, catalog=catalog) as kit:
        with pytest.raises(AddonLimitError, match="from 0 to 3"):
            await kit.subscriptions.set_addons("acme", {"storage_pack": 4})
        found = (await kit.subscriptions.set_addons("acme", {"storage_pack": 5})).subscription
        assert (found.addons, found.pending_change) == ({"storage_pack": 5}, None)


async def test_more_and_fewer_in_one_call(at: Shop) -> None:
    subscription = await begun(at, addons={"storage_pack": 3})
    asked = {"call_pack": 2, "storage_pack": 1}
    preview = (await at.kit.subscriptions.preview("acme", addons=asked)).proration
    assert (preview.net_cents, preview.effective_at) == (500, HALF)
    assert "When the period ends: 3 to 1 Extra storage." in preview.description
    assert "$35.00 a month" in preview.description
    done = await at.kit.subscriptions.set_addons("acme", asked)
    assert (done.proration, done.subscription.addons) == (preview, {"call_pack": 2, "storage_pack": 3})
    assert waiting(done.subscription) == ("team", asked, END)
    assert (await included(at, "requests"), await paid(at)) == (150, [4500, 500])  # Half of 100 more.
    more = await bought(at, call_pack=3)
    assert (more.addons, waiting(more)) == (
        {"call_pack": 3, "storage_pack": 3},
        ("team", {"call_pack": 3, "storage_pack": 1}, END),
    )
    at.go(END)
    assert await addon_items(at, subscription) == {"call_pack": 3, "storage_pack": 1}
    assert await totals(at) == [4500, 500, 250, 4000]


async def test_a_change_of_plan_keeps_what_the_new_plan_lists(at: Shop) -> None:
    subscription = await begun(at, addons={"call_pack": 2, "storage_pack": 1})
    preview = await at.kit.subscriptions.preview("acme", plan="pro")
    assert preview.ended_addons == {"call_pack": 2}
    assert (preview.proration.charge_cents, preview.proration.credit_cents) == (1450, 1250)
    assert "team to pro, 5 to 10 seats, 2 to 0 call_pack now" in preview.proration.description
    up = await at.kit.subscriptions.change_plan("acme", "pro")
    assert (up.ended_addons, up.proration) == (preview.ended_addons, preview.proration)
    assert (up.subscription.addons, await paid(at)) == ({"storage_pack": 1}, [3500, 200])
    assert await addon_items(at, subscription) == {"storage_pack": 1}
    assert not await at.kit.allows("acme", "exports")
    assert (await bought(at, exports=1)).addons == {"exports": 1, "storage_pack": 1}
    assert await at.kit.allows("acme", "exports")

    down = await at.kit.subscriptions.change_plan("acme", "team")
    assert (down.ended_addons, down.subscription.addons) == (
        {"exports": 1},
        {"exports": 1, "storage_pack": 1},
    )
    assert waiting(down.subscription) == ("team", {"storage_pack": 1}, END)
    back = await at.kit.subscriptions.change_plan("acme", "pro")
    assert (back.ended_addons, back.subscription.pending_change) == ({}, None)
    await at.kit.subscriptions.change_plan("acme", "team")
    at.go(END)
    assert (await synced(at)).addons == {"storage_pack": 1} == await addon_items(at, subscription)
    assert not await at.kit.allows("acme", "exports")


async def test_fewer_stay_scheduled_through_changes_of_plan(at: Shop) -> None:
    linked = at.emulator.add_customer("cus_acme")
    at.emulator.add_payment_method(linked)
    await at.kit.customers.link("acme", linked)
    subscription = await begun(at, "tried", {"storage_pack": 3})
    at.go(START + 20 * DAY)  # The trial is over.
    end = (await synced(at)).current_period_end
    await bought(at, storage_pack=1)
    up = await at.kit.subscriptions.change_plan("acme", "pro")
    assert "3 to 1 Extra storage" in up.proration.description
    assert (up.subscription.plan, up.subscription.addons) == ("pro", {"storage_pack": 3})
    assert waiting(up.subscription) == ("pro", {"storage_pack": 1}, end)
    down = await at.kit.subscriptions.change_plan("acme", "team")
    assert waiting(down.subscription) == ("team", {"storage_pack": 1}, end)
    more = await bought(at, exports=1, storage_pack=4)
    assert more.addons == {"exports": 1, "storage_pack": 4}
    assert waiting(more) == ("team", {"storage_pack": 4}, end)
    assert waiting(await bought(at, storage_pack=2)) == ("team", {"storage_pack": 2}, end)
    at.go(end)
    assert await addon_items(at, subscription) == {"storage_pack": 2}


async def test_a_downgrade_taken_back_leaves_fewer_addons(at: Shop) -> None:
    """The active plan dropped them, so July cost $20.00 more than was agreed."""
    subscription = await begun(at, "pro", {"exports": 1, "storage_pack": 3}, seats=12)
    fewer = await bought(at, storage_pack=1)
    assert waiting(fewer) == ("pro", {"exports": 1, "storage_pack": 1}, END)
    changes = len(at.changes())
    await taken_back(at, fewer)  # Nothing but add-ons is scheduled.
    assert len(at.changes()) == changes
    for _ in range(2):
        down = await at.kit.subscriptions.change_plan("acme", "team")
        assert waiting(down.subscription) == ("team", {"storage_pack": 1}, END)
        await taken_back(at, fewer)
    at.go(END)
    assert await addon_items(at, subscription) == {"exports": 1, "storage_pack": 1}
    assert (await synced(at)).seats == 12
    assert await totals(at) == [8300, 6300]


async def taken_back(at: Shop, fewer: Subscription) -> None:
    """Ask for the active plan; its preview, its response and the subscription name what stays scheduled."""
    preview = (await at.kit.subscriptions.preview("acme", plan="pro")).proration
    assert preview.description == (
        "No change: nothing is due for this period. When the period ends: 3 to 1 Extra storage."
        " From the next period on it costs $63.00 a month, before usage."
    )
    back = await at.kit.subscriptions.change_plan("acme", "pro")
    assert (back.proration, back.subscription) == (preview, fewer)


async def test_seats_and_addons_do_not_change_each_other(at: Shop) -> None:
    subscription = await begun(at, "pro", {"storage_pack": 2}, seats=12)
    packed = await at.kit.subscriptions.set_addons("acme", {"seat_pack": 1})
    assert (packed.subscription.seats, packed.proration.charge_cents) == (17, 1500)
    assert (await at.items(subscription))["price_pro_seats"] == 2
    assert await included(at, "seats") == 17
    await at.kit.gauges.set("acme", "seats", 16)
    over = (await at.kit.subscriptions.preview("acme", addons={"seat_pack": 0})).over_limit
    assert [(one.used, one.limit) for one in over] == [(16, 12)]
    fewer = await bought(at, seat_pack=0, storage_pack=1)
    assert waiting(fewer) == ("pro", {"storage_pack": 1}, END)
    assert fewer.pending_change is not None
    assert (fewer.seats, fewer.pending_change.seats) == (17, 12)
    with pytest.raises(SeatsInUseError):
        await at.kit.subscriptions.set_seats("acme", 15)
    less = (await at.kit.subscriptions.set_seats("acme", 16)).subscription
    assert (less.seats, waiting(less)) == (16, waiting(fewer))
    assert (await at.items(subscription))["price_pro_seats"] == 1
    at.go(END)
    found = await synced(at)
    assert (found.seats, found.addons, await included(at, "seats")) == (11, {"storage_pack": 1}, 11)


SAMPLED: Final = {
    ("as usual", "same", 1, 14),  # Nothing was due for the seats.
    ("as usual", "up", 1, None),  # The add-ons were credited at once.
    ("as usual", "down", 4, 14),  # Neither add-ons nor seats were charged.
    ("at once", "down", 1, 6),
    ("later", "up", 4, 14),
}
COMBINED: Final = [
    one if one in SAMPLED else whole(*one)
    for one in product(CHANGES, PLAN_CHANGES, (None, 4, 1), (None, 14, 6))
]


@pytest.mark.parametrize(("when", "plan", "storage", "seats"), COMBINED)
async def test_a_preview_of_several_changes_is_what_they_cost(
    store_url: str, when: str, plan: str, storage: int | None, seats: int | None
) -> None:
    start, wanted = PLAN_CHANGES[plan]
    asked: dict[str, Any] = {"plan": wanted, "seats": seats}
    asked["addons"] = None if storage is None else {"storage_pack": storage}
    async with opened(store_url, CHANGES[when]) as at:
        await begun(at, start, {"storage_pack": 3}, seats=12)
        service = at.kit.subscriptions
        preview = (await service.preview("acme", **asked)).proration
        costs: list[Proration] = []
        if wanted is not None:
            costs.append((await service.change_plan("acme", wanted)).proration)
        if seats is not None:
            costs.append((await service.set_seats("acme", seats)).proration)
        if storage is not None:
            costs.append((await service.set_addons("acme", asked["addons"])).proration)
        assert preview.net_cents == sum(cost.net_cents for cost in costs)
        left = (await service.preview("acme")).proration.description
        _, then, price = left.partition(" From the next period on it costs $")
        assert preview.description.endswith(then + price)
        at.go(END)
        assert sum((await totals(at))[1:]) == preview.net_cents + round(100 * float(price.split()[0]))


async def test_a_preview_names_what_comes_with_a_waiting_plan(at: Shop) -> None:
    await begun(at, "pro")
    await at.kit.gauges.set("acme", "storage", 160_000_000)
    asked = {"call_pack": 2, "storage_pack": 1}  # The present plan sells no call packs.
    preview = await at.kit.subscriptions.preview("acme", plan="team", addons=asked)
    assert preview.proration.description == (
        "0 to 1 Extra storage now, prorated to 2031-07-01 00:00 UTC: $5.00 charged, $0.00 credited."
        " When the period ends: pro to team, 10 to 5 seats, 0 to 2 call_pack."
        " From the next period on it costs $35.00 a month, before usage."
    )
    assert [(one.meter, one.limit) for one in preview.over_limit] == [("storage", 150_000_000)]


async def test_seats_that_only_the_next_plan_sells_come_with_it(store_url: str) -> None:
    async with opened(store_url, LATER) as at:
        await begun(at, "tried")
        preview = (await at.kit.subscriptions.preview("acme", plan="pro", seats=12)).proration
        assert preview.description.startswith("tried to pro, 0 to 12 seats when the period ends")
        assert "it costs $47.00 a month" in preview.description
        with pytest.raises(SubscriptionError, match="sells no seats"):
            await at.kit.subscriptions.set_seats("acme", 12)


async def test_a_new_subscription_begins_with_addons(at: Shop) -> None:
    first = await at.kit.subscriptions.create("acme", "team", addons={"storage_pack": 2, "call_pack": 0})
    same = await at.kit.subscriptions.create("acme", "team", addons={"storage_pack": 2})
    assert same.subscription.id == first.subscription.id
    assert await included(at, "storage") == "unlimited"  # It is not paid for.
    other = await at.kit.subscriptions.create("acme", "team", addons={"storage_pack": 1})
    assert other.subscription.id != first.subscription.id
    with pytest.raises(InvoiceOpenError):
        await bought(at, storage_pack=3)
    asked: dict[str, Any] = {"success_url": PAGE, "cancel_url": PAGE, "addons": {"storage_pack": 5}}
    page = await at.kit.subscriptions.checkout("acme", "team", **asked)
    assert page.id == (await at.kit.subscriptions.checkout("acme", "team", **asked)).id
    at.emulator.complete_checkout(page.id)
    found = await synced(at)
    assert (found.status, found.addons, await paid(at)) == ("active", {"storage_pack": 5}, [0, 0, 6500])
    assert await included(at, "storage") == 550_000_000


REFUSED: Final[dict[str, tuple[Any, type[MeterkitError], str]]] = {
    "unknown": ({"storage": 1}, UnknownAddonError, "call_pack, storage_pack; did you mean 'storage_pack'"),
    "of another plan": ({"exports": 1}, UnknownAddonError, "add-ons of plan 'team': call_pack, storage_pack"),
    "too many": ({"storage_pack": 6}, AddonLimitError, "an integer from 0 to 5"),
    "negative": ({"call_pack": -1}, AddonLimitError, "an integer from 0 to 1000000"),
    "no integer": ({"call_pack": 1.5}, QuantityError, r"found 1\.5 of 'call_pack'"),
    "a truth": ({"call_pack": True}, QuantityError, "a value of type bool"),
    "no mapping": (["call_pack"], MeterkitError, "a value of type list; allowed is a mapping"),
    "no name": ({7: 1}, UnknownAddonError, "a value of type int"),
}


async def test_what_cannot_be_bought_is_refused(at: Shop) -> None:
    service = at.kit.subscriptions
    await begun(at)
    changes = len(at.changes())
    for given, error, words in REFUSED.values():
        for call in (
            service.set_addons("acme", given),
            service.preview("acme", addons=given),
            service.create("bolt", "team", addons=given),
            service.checkout("bolt", "team", addons=given, success_url=PAGE, cancel_url=PAGE),
        ):
            with pytest.raises(error, match=words):
                await call
    with pytest.raises(UnknownAddonError, match=r"'call_pack'.*exports, seat_pack, storage_pack"):
        await service.preview("acme", plan="pro", addons={"call_pack": 1})
    assert len(at.changes()) == changes


async def test_an_addon_without_a_price_at_stripe_names_the_cure(store_url: str) -> None:
    async with shop(store_url, catalog=loads(PLANS), selling=sell_plans_only) as at:
        await begun(at)
        for call in (
            at.kit.subscriptions.set_addons("acme", {"storage_pack": 1}),
            at.kit.subscriptions.create("bolt", "team", addons={"storage_pack": 1}),
        ):
            with pytest.raises(
                UnknownAddonError, match="'meterkit:addon:storage_pack'; `meterkit stripe sync`"
            ):
                await call


def sell_plans_only(emulator: StripeEmulator, _: object) -> None:
    """Make the prices of a plans file that had no add-ons yet."""
    head, _, rest = PLANS.partition("addons:\n")
    plans = rest[rest.index("plans:") :]
    emulator.add_plans(loads(head + "\n".join(x for x in plans.splitlines() if "addons:" not in x)))


async def test_an_addon_in_a_trial_is_paid_after_it(at: Shop) -> None:
    made = await at.kit.subscriptions.create("acme", "tried")
    at.emulator.confirm_setup(made.client_secret or "")
    at.clock.set(START + 7 * DAY)
    done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2})
    assert (done.proration.net_cents, done.subscription.status) == (0, "trialing")
    assert await included(at, "storage") == 250_000_000
    fewer = await bought(at, storage_pack=1)
    assert waiting(fewer) == ("tried", {"storage_pack": 1}, START + 14 * DAY)
    at.go(START + 15 * DAY)
    assert ((await synced(at)).addons, sum(await paid(at))) == ({"storage_pack": 1}, 3000)


async def test_a_purchase_waits_for_its_authentication(at: Shop) -> None:
    subscription = await begun(at)
    method = at.emulator.add_payment_method(await linked_of(at), "pm_card_authenticationRequiredOnSetup")
    await at.stripe_change(f"/v1/subscriptions/{subscription}", default_payment_method=method)
    asked = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 1})
    assert (asked.client_secret or "").startswith("seti_")
    assert asked.subscription.addons == {}
    at.emulator.confirm_setup(asked.client_secret or "")
    done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 1})
    assert (done.client_secret, done.subscription.addons) == (None, {"storage_pack": 1})


async def test_with_an_open_invoice_nothing_is_bought(at: Shop) -> None:
    await begun(at, addons={"storage_pack": 2})
    await at.fail_payments()
    at.go(END + timedelta(hours=2))
    assert (await synced(at)).status == "past_due"
    with pytest.raises(InvoiceOpenError):
        await bought(at, storage_pack=3)
    assert waiting(await bought(at, storage_pack=1)) is not None


async def test_cancelled_and_resumed_with_addons(at: Shop) -> None:
    await begun(at, addons={"storage_pack": 3})
    await bought(at, storage_pack=1)
    ending = await at.kit.subscriptions.cancel("acme")
    assert (ending.addons, ending.pending_change) == ({"storage_pack": 3}, None)
    with pytest.raises(SubscriptionError, match="resume it"):
        await bought(at, storage_pack=1, call_pack=1)
    assert (await known(at)).addons == {"storage_pack": 3}
    assert (await at.kit.subscriptions.resume("acme")).addons == {"storage_pack": 3}
    ended = await at.kit.subscriptions.cancel("acme", immediately=True, give_back=True)
    assert (ended.addons, ended.status) == ({}, "canceled")
    with pytest.raises(SubscriptionError, match="no active subscription"):
        await bought(at, storage_pack=1)


async def test_the_plans_file_says_when_more_and_fewer_take_effect(store_url: str) -> None:
    async with opened(store_url, AT_ONCE) as at:
        subscription = await begun(at, addons={"storage_pack": 3})
        done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 1, "call_pack": 1})
        assert (done.proration.charge_cents, done.proration.credit_cents) == (750, 1500)
        assert (done.subscription.addons, done.subscription.pending_change) == (
            {"call_pack": 1, "storage_pack": 1},
            None,
        )
        assert await addon_items(at, subscription) == {"call_pack": 1, "storage_pack": 1}


async def test_more_can_wait_as_an_upgrade_does(store_url: str) -> None:
    async with opened(store_url, LATER) as at:
        await begun(at)
        done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2})
        assert (done.subscription.addons, done.proration.net_cents) == ({}, 0)
        assert waiting(done.subscription) == ("team", {"storage_pack": 2}, END)
        assert (await bought(at, storage_pack=0)).pending_change is None
        await bought(at, storage_pack=1)
        at.go(END)
        assert ((await synced(at)).addons, await totals(at)) == ({"storage_pack": 1}, [1500, 2500])


async def test_one_that_the_plan_lacks_goes_with_the_next_change(at: Shop) -> None:
    """A person adds the item of an add-on of another plan in Stripe's Dashboard."""
    subscription = await begun(at)
    added = {"subscription": subscription, "price": "price_addon_exports"}
    await at.stripe_change("/v1/subscription_items", **added)
    assert (await synced(at)).addons == {"exports": 1}
    assert not await at.kit.allows("acme", "exports")
    assert (await bought(at, call_pack=1)).addons == {"call_pack": 1}
    assert await addon_items(at, subscription) == {"call_pack": 1}


async def test_the_old_price_of_an_addon_stays(at: Shop) -> None:
    subscription = await begun(at, addons={"storage_pack": 1})
    key = "meterkit:addon:storage_pack"
    dearer = {"currency": "usd", "unit_amount": 1200, "recurring": {"interval": "month"}, "lookup_key": key}
    product = {
        "product": "prod_addon_storage_pack",
        "transfer_lookup_key": True,
        "metadata": {"meterkit": key},
    }
    await at.post("/v1/prices", {**dearer, **product})
    done = await at.kit.subscriptions.set_addons("acme", {"storage_pack": 2})
    assert (done.subscription.addons, done.proration.net_cents) == ({"storage_pack": 2}, 500)
    assert await addon_items(at, subscription) == {"storage_pack": 2}


async def test_an_estimate_counts_addons(at: Shop) -> None:
    await begun(at, addons={"call_pack": 1})
    cost: list[Proration] = []
    for _ in range(2):
        cost.append((await at.kit.subscriptions.preview("acme", addons={"storage_pack": 2})).proration)
        at.emulator.fail_next("error", status=400, path="/v1/invoices/create_preview")
    exact, estimated = cost
    assert estimated.description.startswith(exact.description)
    assert estimated.description.endswith("Stripe gave no preview.")
    assert (estimated.charge_cents, exact.charge_cents) == (1000, 1000)


@pytest.mark.parametrize("part", ["subscriptions", "subscription_schedules"])
async def test_a_repeat_after_a_lost_answer_does_the_rest_once(at: Shop, part: str) -> None:
    subscription = await begun(at, addons={"storage_pack": 3})
    asked = {"call_pack": 2, "storage_pack": 1}
    path = f"/v1/subscriptions/{subscription}" if part == "subscriptions" else f"/v1/{part}"
    at.emulator.fail_next("drop", when="after", path=path, skip=int(part == "subscriptions"))
    with contextlib.suppress(StripeUnavailableError):
        await at.kit.subscriptions.set_addons("acme", asked)
    done = await at.kit.subscriptions.set_addons("acme", asked)
    assert done.subscription.addons == {"call_pack": 2, "storage_pack": 3}
    assert waiting(done.subscription) == ("team", asked, END)
    assert await paid(at) == [4500, 500]


@pytest.mark.parametrize("change", ["plan", "addons"])
async def test_a_later_change_names_an_archived_price(at: Shop, change: str) -> None:
    async def ask() -> None:
        if change == "plan":
            await at.kit.subscriptions.change_plan("acme", "team")
        else:
            await at.kit.subscriptions.set_addons("acme", {"seat_pack": 1})

    found = await at.stripe_subscription(await begun(at, "pro", {"seat_pack": 2}))
    ids = [item["price"]["id"] for item in found["items"]["data"] if item["price"]["unit_amount"]]
    await at.stripe_change(f"/v1/prices/{ids[0]}", active="false")
    await at.kit.stripe.sync()  # New customers get another price.
    with pytest.raises(SubscriptionError, match=rf"archived at Stripe.*: {ids[0]}\. Make them active again"):
        await ask()
    await at.stripe_change(f"/v1/prices/{ids[0]}", active="true")
    await ask()
    pending = (await known(at)).pending_change
    assert pending is not None


async def test_f_308_an_addon_adds_to_what_an_override_includes(at: Shop) -> None:
    """Contract: overrides replace what the plan gives, add-ons add to it; it gave nothing, in silence."""
    await begun(at)
    await at.kit.customers.override("acme", {"requests": {"included": 500}, "storage": {"included": "1GB"}})
    assert await included(at, "requests") == 500
    await bought(at, call_pack=2, storage_pack=1)
    # Two packs of 50 for half of the month.
    assert (await included(at, "requests"), await included(at, "storage")) == (550, 1_100_000_000)
    at.go(END)
    await synced(at)
    assert await included(at, "requests") == 600
    await at.kit.customers.override("acme", {"requests": {}})
    assert await included(at, "requests") == 200


@pytest.mark.parametrize("plans", CHANGES)
async def test_f_30h_while_ending_addons_change_as_plans_do(store_url: str, plans: str) -> None:
    """What begins at once is bought or given up; what would begin with the next period is refused."""
    async with opened(store_url, CHANGES[plans]) as at:
        await begun(at, "pro", {"storage_pack": 2})
        await at.kit.subscriptions.cancel("acme")
        for change, is_made in (
            (at.kit.subscriptions.set_addons("acme", {"storage_pack": 1}), plans == "at once"),
            (at.kit.subscriptions.change_plan("acme", "team"), plans == "at once"),
            (at.kit.subscriptions.set_addons("acme", {"storage_pack": 4}), plans != "later"),
            (at.kit.subscriptions.change_plan("acme", "pro"), True),
        ):
            refused = pytest.raises(SubscriptionError, match="is ending: resume it before it is changed")
            with contextlib.nullcontext() if is_made else refused:
                await change
            found = await known(at)
            assert (found.pending_change, found.cancel_at_period_end) == (None, True)
