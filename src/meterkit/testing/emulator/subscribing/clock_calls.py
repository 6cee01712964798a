"""The calls about test clocks, and which clock a call goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.protocol import ApiError, missing_parameter, new_id
from meterkit.testing.emulator.selling.customer_calls import delete_customer
from meterkit.testing.emulator.selling.customers import TestClock
from meterkit.testing.emulator.selling.prices import Recurring
from meterkit.testing.emulator.subscribing.billing_cycle import boundary
from meterkit.testing.emulator.subscribing.scheduled_transitions import advance
from meterkit.testing.emulator.subscribing.subscriptions import ENDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.protocol import JsonObject

# Sessions of pages and of usage keep the emulator's own time, for any customer.
OWN_TIME: Final = ("/v1/billing", "/v1/checkout", "/v1/test_helpers", "/v2/")
NAMES: Final = ("customer", "subscription", "from_subscription", "invoice")


def clock_time(account: Account, call: Call) -> int | None:
    """Return the time of the test clock that the objects of a call go by; None: the emulator's own time."""
    if not any(True for _ in account.clocks) or call.path.startswith(OWN_TIME):
        return None
    named = call.params.text("test_clock") or ""
    if call.method == "POST" and call.path == "/v1/customers" and named in account.clocks:
        return account.clocks.find(named).frozen_time
    for customer in _customers(account, call):
        clock = account.clock_of(customer)
        if clock is not None:
            return clock.frozen_time
    return None


def _customers(account: Account, call: Call) -> Iterator[str]:
    given = [call.object_id]
    given += [text for name in NAMES if name in call.params and (text := _text(call, name))]
    items = {item.id: each.customer for each in account.subscriptions for item in each.items}
    for name in given:
        if account.customers.exists(name):
            yield name
        if name in items:
            yield items[name]
        for registry in (account.subscriptions, account.invoices, account.schedules):
            if name in registry:
                yield registry.find(name).customer


def _text(call: Call, name: str) -> str | None:
    return None if call.params.is_hash(name) else call.params.text(name)


INTERVALS_MAX: Final = 2
TWO_YEARS: Final = Recurring(interval="year", interval_count=2)


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/test_clocks/create: in the past or in the future."""
    params = call.params
    params.only("frozen_time", "name")
    if call.livemode:
        raise ApiError("Test clocks can only be used in test mode.")
    frozen = params.integer("frozen_time")
    if frozen is None:
        raise missing_parameter("frozen_time")
    clock = TestClock(
        id=new_id("clock_1", length=23),
        created=account.now,
        frozen_time=frozen,
        name=params.given("name", length_max=300),
    )
    account.clocks.add(clock)
    account.emit("test_helpers.test_clock.created", clock.to_json())
    return clock.to_json()


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return account.clocks.find(call.object_id).to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/test_clocks/list)."""
    call.params.only(*PAGING)
    found = [clock.to_json() for clock in reversed(tuple(account.clocks))]
    return call.page(found)


def _advance(account: Account, call: Call) -> JsonObject:
    """Answer that the clock is advancing; the next call finds it ready.

    "Advance time in intervals of up to two. The length of the interval is based on the shortest service
    period associated with the subscription [...] If you haven't set any subscriptions or subscription
    schedules, you can advance up to two years"
    (https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage).
    """
    call.params.only("frozen_time")
    clock = account.clocks.find(call.object_id)
    target = call.params.integer("frozen_time")
    if target is None:
        raise missing_parameter("frozen_time")
    if target <= clock.frozen_time:
        message = "A test clock can only be advanced: `frozen_time` must be after that of the clock."
        raise ApiError(message, param="frozen_time")
    latest = _latest(account, clock)
    if target > latest:
        message = (
            "A test clock cannot be advanced by more than two intervals of its shortest subscription at a "
            f"time: `frozen_time` must be at most {latest}."
        )
        raise ApiError(message, param="frozen_time")
    clock.target = target
    answer = clock.to_json()
    account.emit("test_helpers.test_clock.advancing", answer)
    clock.frozen_time = target
    advance(account)
    clock.target = None
    account.emit("test_helpers.test_clock.ready", clock.to_json())
    return answer


def _latest(account: Account, clock: TestClock) -> int:
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
        return boundary(clock.frozen_time, TWO_YEARS, 1)
    return min(boundary(clock.frozen_time, cycle, INTERVALS_MAX) for cycle in cycles)


def _delete(account: Account, call: Call) -> JsonObject:
    """Its customers are deleted and their subscriptions canceled.

    https://docs.stripe.com/billing/testing/test-clocks/api-advanced-usage#delete-clock
    """
    call.params.only()
    clock = account.clocks.find(call.object_id)
    for customer in account.customers.of_clock(clock.id):
        with account.in_time_of(customer):
            delete_customer(account, account.customers.find(customer))
    account.clocks.delete(clock)
    account.emit("test_helpers.test_clock.deleted", clock.to_json())
    return {"id": clock.id, "object": "test_helpers.test_clock", "deleted": True}


CLOCK_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/test_helpers/test_clocks", _create),
    ("GET", "/v1/test_helpers/test_clocks", _list),
    ("GET", "/v1/test_helpers/test_clocks/{id}", _retrieve),
    ("DELETE", "/v1/test_helpers/test_clocks/{id}", _delete),
    ("POST", "/v1/test_helpers/test_clocks/{id}/advance", _advance),
)
