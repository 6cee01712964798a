"""One HTTP 500 of Stripe's at any call of any operation: repeated, the operation is done once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import pytest

from drivers.plans import plans_text
from drivers.sampled import whole
from drivers.shop import HALF, Shop, shop
from drivers.top_ups import BACK, CATALOG
from meterkit import MeterKit, NoSubscriptionError, StripeUnavailableError, SubscriptionExistsError
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

PLANS: Final = (
    plans_text("addon_shop")
    + """
  payg:
    rank: 1
    price: {amount_cents: 0, interval: month, stripe_price: price_payg}
    payment_method: required
    meters: {tokens: {included: 10, overage: {bill: {per: 1, amount_cents: 2}}}}
"""
)
Step = Callable[[MeterKit, str], Awaitable[object]]


class Operation(NamedTuple):
    """An operation, the customer's plan before it (or only a card, or nothing), and steps in between."""

    run: Step
    starts: str = "team"
    before: tuple[Step, ...] = ()


def _step(name: str, *args: Any, **more: Any) -> Step:
    return lambda kit, customer: getattr(kit.subscriptions, name)(customer, *args, **more)


def _top_up(**urls: Any) -> Step:
    return lambda kit, customer: kit.credits.buy(customer, 1000, idempotency_key="order 1", **urls)


async def _release_price(kit: MeterKit, customer: str) -> None:
    await kit.customers.override(customer, {"tokens": {"overage": {"bill": {"per": 1, "amount_cents": 1}}}})


PACKS: Final = _step("set_addons", {"storage_pack": 3})
DOWN: Final = _step("change_plan", "team")
END: Final = _step("cancel")
OPERATIONS: Final = {
    "create": Operation(_step("create", "team", addons={"storage_pack": 3}), ""),
    "create with a card": Operation(_step("create", "payg"), "card"),
    "create for a card": Operation(_step("create", "payg"), ""),
    "create another": Operation(_step("create", "pro"), "", (_step("create", "payg"),)),
    "create on trial": Operation(_step("create", "tried"), ""),
    "checkout": Operation(_step("checkout", "team", **BACK), ""),
    "portal": Operation(_step("portal", return_url="https://app.example")),
    "upgrade": Operation(_step("change_plan", "pro")),
    "downgrade": Operation(DOWN, "pro"),
    "seats": Operation(_step("set_seats", 8)),
    "add-ons": Operation(PACKS),
    "fewer add-ons": Operation(_step("set_addons", {"storage_pack": 1}), "team", (PACKS,)),
    "cancel": Operation(END),
    "cancel a downgrade": Operation(END, "pro", (DOWN,)),
    "end": Operation(_step("cancel", immediately=True, give_back=True)),
    "end unpaid": Operation(_step("cancel", immediately=True), "", (_step("create", "team"),)),
    "resume": Operation(_step("resume"), "team", (END,)),
    "own price": Operation(_release_price),
}
TOP_UPS: Final = {"by card": Operation(_top_up(), "card"), "on a page": Operation(_top_up(**BACK), "card")}


async def _begin(at: Shop, customer: str, operation: Operation) -> None:
    """Have a customer at the point where the operation begins. A card alone is saved, and not the default."""
    if operation.starts:
        linked = at.emulator.add_customer(f"cus_{customer}")
        if operation.starts == "card":
            await at.stripe_change("/v1/payment_methods/pm_card_visa/attach", customer=linked)
        else:
            at.emulator.add_payment_method(linked)
        await at.kit.customers.link(customer, linked)
    if operation.starts not in {"", "card"}:
        await at.kit.subscriptions.create(customer, operation.starts)
        (invoice,) = await at.stripe_list("/v1/invoices", customer=f"cus_{customer}")
        await at.stripe_change(f"/v1/invoices/{invoice['id']}/pay")
        await at.kit.subscriptions.sync(customer)
    for step in operation.before:
        await step(at.kit, customer)


async def _state_at_stripe(at: Shop, customer: str) -> dict[str, list[object]]:
    """All that Stripe has of a customer, without ids and marks."""
    linked = (await at.kit.customers.get(customer)).stripe_customer
    assert linked is not None
    found: dict[str, list[object]] = {"schedules": [], "setups": []}
    found["subscriptions"] = [
        [
            one["status"],
            {item["price"]["id"]: item.get("quantity") for item in one["items"]["data"]},
            one["cancel_at_period_end"],
            bool(one["default_payment_method"]),
        ]
        for one in await at.stripe_list("/v1/subscriptions", customer=linked, status="all")
    ]
    for one in await at.stripe_list("/v1/subscription_schedules", customer=linked):
        phases = [[item["price"] for item in phase["items"]] for phase in one["phases"]]
        found["schedules"].append([one["status"], phases])
    pages = await at.stripe_list("/v1/checkout/sessions", customer=linked)
    found["pages"] = [one["status"] for one in pages]
    invoices = await at.stripe_list("/v1/invoices", customer=linked)
    found["invoices"] = [[one["status"], one["total"], len(one["lines"]["data"])] for one in invoices]
    return found


async def _fail_each_call(at: Shop, operation: Operation, when: Any) -> None:
    """Repeat the operation after a 500 at each call that may change something; each ends as usual."""
    at.clock.set(HALF)
    await _begin(at, "usual", operation)
    since = len(at.emulator.requests)
    await operation.run(at.kit, "usual")
    calls = [one.method for one in at.emulator.requests[since:]]
    wanted = await _state_at_stripe(at, "usual")
    for skip, method in enumerate(calls):
        if method == "GET":
            continue
        customer = f"c{skip}"
        await _begin(at, customer, operation)
        at.emulator.fail_next("error", path="*", skip=skip, when=when)
        with suppress(StripeUnavailableError):
            await operation.run(at.kit, customer)
        with suppress(NoSubscriptionError, SubscriptionExistsError):  # It is done.
            await operation.run(at.kit, customer)
        assert await _state_at_stripe(at, customer) == wanted


@pytest.mark.dear("each call fails once, for a customer of its own")
@pytest.mark.parametrize("when", ["before", whole("after")])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_f_30f_a_500_locks_no_change(store_url: str, name: str, when: str) -> None:
    async with shop(store_url, catalog=loads(PLANS), selling=StripeEmulator.add_plans) as at:
        await _fail_each_call(at, OPERATIONS[name], when)


@pytest.mark.parametrize("when", ["before", whole("after")])
@pytest.mark.parametrize("name", TOP_UPS)
async def test_f_30f_a_500_locks_no_top_up(store_url: str, name: str, when: str) -> None:
    async with shop(store_url, catalog=CATALOG, selling=StripeEmulator.add_plans) as at:
        await _fail_each_call(at, TOP_UPS[name], when)
