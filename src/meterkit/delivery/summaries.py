"""Meter event summaries: read the units that Stripe has counted, and wait until it has counted a delivery."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.customers.states import CustomerStates
from meterkit.decisions.periods import first_minute_s, to_ms
from meterkit.delivery.invoices import units_of
from meterkit.delivery.late_usage_items import late_units_at_stripe
from meterkit.store.event_names import find_former_events, read_meters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_MINUTE_S: Final = 60
_AHEAD_S: Final = 240
_SKEW_S: Final = 2
"""Largest delay of Stripe's clock behind ours."""
_PAUSE_S: Final = 0.5
_STILL_S: Final = 2.0


async def counted(api: StripeApi, meter: str, stripe_customer: str, start_s: int, end_s: int) -> Decimal:
    """Read the sum of a span (https://docs.stripe.com/api/billing/meter-event-summary/list).

    Args:
        api: the way to Stripe.
        meter: its id.
        stripe_customer: the customer at Stripe.
        start_s: the first second, a whole minute.
        end_s: the first one after it, a whole minute.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    span: dict[str, str | int] = {"customer": stripe_customer, "start_time": start_s, "end_time": end_s}
    found = await api.list(f"/v1/billing/meters/{meter}/event_summaries", span)
    # Floats, exact for whole numbers of up to 15 digits.
    return sum((Decimal(repr(summary["aggregated_value"])) for summary in found), Decimal(0))


class StripeSummaries:
    """Reads summaries of all meters of an event name.

    Each method raises :class:`~meterkit.errors.StripeError` if Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` if it does not answer.
    """

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._meters: Mapping[str, Sequence[str]] = {}
        self._has_meters = False

    @property
    def server_time_s(self) -> int | None:
        """Stripe's clock at its last response, in Unix seconds; None: not known."""
        return self._api.server_time_s

    async def refresh(self) -> None:
        """List the meters, deactivated ones included. Call it before the others."""
        found: dict[str, list[str]] = {}
        for meter in await self._api.list("/v1/billing/meters"):
            found.setdefault(meter["event_name"], []).append(meter["id"])
        self._meters = found
        self._has_meters = True

    async def refresh_once(self) -> None:
        """List the meters, unless they are listed already."""
        if not self._has_meters:
            await self.refresh()

    def meter_ids(self, event_name: str) -> Sequence[str]:
        """The ids of the meters of an event name, by the last refresh."""
        return self._meters.get(event_name, ())

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """Sum the units that all meters of an event name have counted for a customer.

        Args:
            event_name: of the meters.
            stripe_customer: the customer at Stripe.
            start_s: the first second, a whole minute.
            end_s: the first one after it, a whole minute.

        Returns:
            The units; None: there is no such meter.
        """
        meters = self._meters.get(event_name)
        if meters is None:
            return None
        total = Decimal(0)
        for meter in meters:
            total += await counted(self._api, meter, stripe_customer, start_s, end_s)
        return total.to_integral_value() if total == total.to_integral_value() else total

    async def item_units(self, stripe_customer: str, since_ms: int) -> Mapping[str, int]:
        """Sum the units of a customer's invoice items for late usage, by their usage keys.

        Args:
            stripe_customer: the customer at Stripe.
            since_ms: when the first of them may have been made.
        """
        items = await late_units_at_stripe(self._api, stripe_customer, since_ms)
        return {key: int(sum(map(units_of, found))) for key, found in items.items()}

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._api.close()


async def wait_until_counted(
    store: Store, api: StripeApi, customer: str, stripe_customer: str, *, timeout_s: float
) -> int:
    """Wait until Stripe has counted a customer's deliveries of this period; return the units it lacks.

    Stripe counts meter events after it has accepted them, mostly within seconds
    (https://docs.stripe.com/api/billing/meter-event-summary). This gives up after ``timeout_s`` real seconds.
    An invoice made now covers events stamped before now. Usage sealed soon after other usage may be stamped
    up to three minutes ahead: this waits for that instant without a limit, unless the clock stands still.

    Raises:
        StoreError: the store does not answer.
        StripeError: Stripe refuses, or does not answer.
    """
    (usage,) = await store.usage_of_many([customer], former=True)
    sent = await _delivered_units(store, usage)
    if not sent:
        return 0
    listed = await api.list("/v1/billing/meters", {"status": "active"})
    meters = {
        ids: quantity
        for events, quantity in sent.items()
        if (ids := tuple(meter["id"] for meter in listed if meter["event_name"] in events))
    }
    start_s = first_minute_s(to_ms(usage["period"]["start"]))
    missing = partial(_count_missing, api, meters, stripe_customer, start_s)
    deadline = monotonic() + timeout_s
    while left := await missing(_last_minute_end_s(store)):
        if not await missing(_last_minute_end_s(store) + _AHEAD_S):
            goes_on = await _wait_for_instant(store, _last_minute_end_s(store) + _SKEW_S)
        elif goes_on := monotonic() < deadline:
            await anyio.sleep(_PAUSE_S)
        if not goes_on:
            return left
    return 0


async def _delivered_units(store: Store, usage: CustomerUsage) -> Mapping[tuple[str, ...], int]:
    """Sum the delivered units of all meters, former ones too, by their present and former event names."""
    customer, catalog = usage["customer"], store.catalog
    known = await read_meters(await store.admin(), store.keys, catalog, customer)
    _, state = await CustomerStates(store).read(customer)
    former = find_former_events(state, catalog, to_ms(usage["period"]["start"]))
    sent = Counter[tuple[str, ...]]()
    for one in known.values():
        if one.meter in usage["meters"]:
            events = (one.event_name, *former.get(one.event_name, ()))
            sent[events] += usage["meters"][one.meter]["delivered"]
    return +sent


def _last_minute_end_s(store: Store) -> int:
    """Compute the end of the last minute that has begun at Stripe (Unix seconds)."""
    return ((store.now_ms() // 1000 - _SKEW_S) // _MINUTE_S + 1) * _MINUTE_S


async def _wait_for_instant(store: Store, instant_s: int) -> bool:
    """Wait for an instant by the store's clock; False: the clock stands still, as in a test."""
    seen_ms, still_since = store.now_ms(), monotonic()
    while (now_ms := store.now_ms()) < instant_s * 1000:
        if now_ms != seen_ms:
            seen_ms, still_since = now_ms, monotonic()
        elif monotonic() >= still_since + _STILL_S:
            return False
        await anyio.sleep(_PAUSE_S)
    return True


async def _count_missing(
    api: StripeApi, sent: Mapping[tuple[str, ...], int], stripe_customer: str, start_s: int, end_s: int
) -> int:
    """Count the delivered units that Stripe has not counted in a span (Unix seconds)."""
    if end_s <= start_s:  # The first minute of the period has not begun.
        return sum(sent.values())
    missing = 0
    for meters, quantity in sent.items():
        found = [await counted(api, meter, stripe_customer, start_s, end_s) for meter in meters]
        missing += max(0, quantity - int(sum(found)))
    return missing
