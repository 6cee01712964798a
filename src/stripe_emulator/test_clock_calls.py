"""API calls about test clocks, and the time of a call: that of its customer's test clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_boundary
from stripe_emulator.call_table import PAGING, CallTable
from stripe_emulator.customer_calls import delete_customer
from stripe_emulator.customers import TestClock
from stripe_emulator.prices import PriceInterval
from stripe_emulator.protocol import ApiError, JsonObject, new_id
from stripe_emulator.scheduled_transitions import run_due_transitions
from stripe_emulator.subscriptions import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call

CALLS: Final = CallTable()
CALLS.retrieve("/v1/test_helpers/test_clocks/{id}", lambda account: account.clocks, expandable=())
INTERVALS_MAX: Final = 2
TWO_YEARS: Final = PriceInterval(interval="year", interval_count=2)


@CALLS("POST /v1/test_helpers/test_clocks", "frozen_time name", expandable=())
def _create_clock(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/test_clocks/create: in the past or in the future."""
    params = call.params
    if call.livemode:
        raise ApiError("Test clocks can only be used in test mode.")
    frozen = params.required_integer("frozen_time")
    clock = TestClock(
        id=new_id("clock_1", length=23),
        created=account.now,
        frozen_time=frozen,
        name=params.nonempty_text("name", length_max=300),
    )
    return account.add(account.clocks, clock, "test_helpers.test_clock.created")


@CALLS("GET /v1/test_helpers/test_clocks", PAGING, expandable=())
def _list_clocks(account: Account, call: Call) -> JsonObject:
    """List test clocks, newest first (https://docs.stripe.com/api/test_clocks/list)."""
    return call.page(clock.to_json() for clock in reversed(account.clocks))


@CALLS("POST /v1/test_helpers/test_clocks/{id}/advance", "frozen_time", expandable=())
def _advance_clock(account: Account, call: Call) -> JsonObject:
    """Answer that the clock is advancing; the next call finds it ready.

    "Advance time in intervals of up to two. The length of the interval is based on the shortest service
    period associated with the subscription [...] If you haven't set any subscriptions or subscription
    schedules, you can advance up to two years"
    (https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage).
    """
    clock = account.clocks.find(call.object_id)
    target = call.params.required_integer("frozen_time")
    if target <= clock.frozen_time:
        message = "A test clock can only be advanced: `frozen_time` must be after that of the clock."
        raise ApiError(message, param="frozen_time")
    latest = _latest_time(account, clock)
    if target > latest:
        message = (
            "A test clock cannot be advanced by more than two intervals of its shortest subscription at a "
            f"time: `frozen_time` must be at most {latest}."
        )
        raise ApiError(message, param="frozen_time")
    clock.target = target
    answer = account.publish("test_helpers.test_clock.advancing", clock)
    clock.frozen_time = target
    run_due_transitions(account)
    clock.target = None
    account.emit("test_helpers.test_clock.ready", clock.to_json())
    return answer


def _latest_time(account: Account, clock: TestClock) -> int:
    """Return the latest time that a clock may be advanced to."""
    cycles = [
        item.price.cycle
        for subscription in account.subscriptions
        if account.clock_of(subscription.customer) is clock and subscription.status not in ENDED
        for item in subscription.items
    ]
    cycles += [
        item.price.cycle
        for schedule in account.schedules
        if account.clock_of(schedule.customer) is clock and schedule.status == "not_started"
        for item in schedule.phases[0].items
    ]
    if not cycles:
        return period_boundary(clock.frozen_time, TWO_YEARS, 1)
    return min(period_boundary(clock.frozen_time, cycle, INTERVALS_MAX) for cycle in cycles)


@CALLS("DELETE /v1/test_helpers/test_clocks/{id}", expandable=())
def _delete_clock(account: Account, call: Call) -> JsonObject:
    """Delete a test clock and its customers, and cancel their subscriptions.

    https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage#delete-clock
    """
    clock = account.clocks.find(call.object_id)
    for customer in account.customers.ids_of_clock(clock.id):
        with account.customer_time(customer):
            delete_customer(account, account.customers.find(customer))
    account.clocks.delete(clock)
    account.emit("test_helpers.test_clock.deleted", clock.to_json())
    return {"id": clock.id, "object": "test_helpers.test_clock", "deleted": True}


# Sessions of pages and of usage keep the emulator's own time, for any customer.
OWN_TIME: Final = ("/v1/billing", "/v1/checkout", "/v1/test_helpers", "/v2/")
OWNER_PARAMS: Final = ("customer", "subscription", "from_subscription", "invoice")


def clock_time(account: Account, call: Call) -> int | None:
    """Return the test clock's time for the objects of a call; None: the emulator's own time."""
    if not any(True for _ in account.clocks) or call.path.startswith(OWN_TIME):
        return None
    named = call.params.text("test_clock") or ""
    if call.method == "POST" and call.path == "/v1/customers" and named in account.clocks:
        return account.clocks.find(named).frozen_time
    for customer in _customer_ids(account, call):
        clock = account.clock_of(customer)
        if clock is not None:
            return clock.frozen_time
    return None


def _customer_ids(account: Account, call: Call) -> Iterator[str]:
    given = [call.object_id]
    given += [text for name in OWNER_PARAMS if name in call.params and (text := _read_id(call, name))]
    items = {item.id: each.customer for each in account.subscriptions for item in each.items}
    for name in given:
        if account.customers.exists(name):
            yield name
        if name in items:
            yield items[name]
        for registry in (account.subscriptions, account.invoices, account.schedules):
            if name in registry:
                yield registry.find(name).customer


def _read_id(call: Call, name: str) -> str | None:
    return None if call.params.is_hash(name) else call.params.text(name)
