"""Whose time a call is made in: that of its customer's test clock, or the emulator's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.call import Call

__all__ = ["clock_time"]

# Sessions of pages and of usage keep the emulator's own time, whoever they are for.
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
