"""Earlier periods whose usage no invoice has yet, as amid a paid year: negative events take units back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.customers.history import read_billed_links
from meterkit.customers.links import read_recent_deliveries
from meterkit.decisions.periods import DAY_MS, MINUTE_MS, to_ms
from meterkit.outbox.operator_commands import Intents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_TAKEN_MS: Final = 35 * DAY_MS - 3_600_000
"""Stripe takes events of the last 35 days (https://docs.stripe.com/api/billing/meter-event/create)."""
_RESERVED: Final = 30
"""Minutes at the end of a period that usage may be sealed for after it has closed."""
_MINUTES: Final = 8


async def read_unbilled_periods(
    store: Store, view: CustomerView, start_ms: int, billed_until_s: int
) -> Sequence[tuple[int, Sequence[int]]]:
    """Read the earlier periods of this invoice: first instants, and free minutes (ms), youngest first.

    Args:
        store: has the periods and intents.
        view: of the customer.
        start_ms: the first instant of the open period.
        billed_until_s: the end of the latest invoice line with usage; 0: there is none.

    Raises:
        StoreError: the store does not answer.
    """
    subscription, linked, now_ms = view.state.subscription, view.state.stripe_customer, store.now_ms()
    if subscription is None or linked is None:
        return ()
    since_ms = max(subscription.usage_start_ms or subscription.start_ms, 1000 * billed_until_s)
    if since_ms >= start_ms:
        return ()
    periods = await _read_periods(store, view.customer, since_ms, start_ms)
    links = await read_billed_links(store, view.customer, linked, since_ms // 1000, now_ms // 1000)
    if not periods or [one.stripe_customer for one in links] != [linked]:
        return ()
    used = await _read_used_minutes(store, view)
    return [
        (period_ms, _free_minutes(max(period_ms, now_ms - _TAKEN_MS), periods[period_ms], used))
        for period_ms in sorted(periods, reverse=True)
    ]


async def _read_periods(store: Store, customer: str, since_ms: int, until_ms: int) -> dict[int, int]:
    """Read the ends of a customer's periods of a span that Stripe takes events for, by their starts."""
    found, oldest_ms = dict[int, int](), store.now_ms() - _TAKEN_MS
    while until_ms > max(since_ms, oldest_ms):
        period = (await store.usage(customer, at_ms=until_ms - 1))["period"]
        found[to_ms(period["start"])], until_ms = to_ms(period["end"]), to_ms(period["start"])
    return {start_ms: end_ms for start_ms, end_ms in found.items() if start_ms >= since_ms}


def _free_minutes(since_ms: int, end_ms: int, used: set[int]) -> list[int]:
    """The latest minutes of a span that no intent has, in order."""
    first, last = -(-since_ms // MINUTE_MS), end_ms // MINUTE_MS - _RESERVED
    free = (minute * MINUTE_MS for minute in range(last, first - 1, -1) if minute * MINUTE_MS not in used)
    return sorted(minute for minute, _ in zip(free, range(_MINUTES), strict=False))


async def _read_used_minutes(store: Store, view: CustomerView) -> set[int]:
    """The minutes (ms) of the customer's intents, delivered ones of the last 35 days included."""
    admin, customer = await store.admin(), view.customer
    waiting = await Intents(store).list(customer=customer, limit=100_000)
    used = {int(one.minute.timestamp()) * 1000 for one in waiting}
    async for one in read_recent_deliveries(admin, store.keys, view.keys.shard):
        if one.customer == customer:
            used.add(one.time_s * 1000)
    return used
