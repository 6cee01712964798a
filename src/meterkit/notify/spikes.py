"""Usage spikes: compare this hour and day with those of four weeks; one process checks every five minutes.

The spread of hourly usage grows with it, and jobs repeat by the week. So spans are compared by factors, and
with the same hours and weekdays.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import exp, log
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from meterkit.catalog.value_parsers import rounded_cents
from meterkit.decisions.periods import DAY_MS, HOUR_MS
from meterkit.notify.storage_and_period_watches import LeasedWatch, currency_attribute, digest_of, notify_once
from meterkit.store.unreadable_data import UNREADABLE, skip_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.store import Store

DAYS: Final = 28
"""Days before today that usage is compared with."""
FLOOR: Final = 100
"""Fewer units than this are never a spike."""
_DAYS_LEAST: Final = 14
_HOURS_A_DAY: Final = 24
_WEEK: Final = 7
_FACTOR: Final = 3
_FACTOR_MOST: Final = 20
_SPREADS: Final = 4
_TO_DEVIATION: Final = 1.4826
"""Scales a median absolute deviation to a standard deviation."""
_RARE: Final = 2
"""This many of the days may be outliers: they are no precedent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Usage far above the usual.

    Attributes:
        span: an ``hour``, compared with the same hours of other days, or a ``day``.
        used: the units recorded in it so far.
        usual: the median of the compared spans.
    """

    span: Literal["hour", "day"]
    used: int
    usual: int


def find_spike(hours: Mapping[int, int], now_ms: int) -> Spike | None:
    """Find the spike in the hour or the day of an instant; None: there is none.

    The current hour is compared as if it were over, so a spike is found within the hour.

    Args:
        hours: units by hour since 1970, of a customer and a meter; hours without units may be left out.
        now_ms: the instant.
    """
    hour = now_ms // HOUR_MS
    first = min(hours, default=hour)
    days = min(DAYS, (hour - first) // _HOURS_A_DAY)
    if days < _DAYS_LEAST:
        return None
    used = hours.get(hour, 0)
    past = [hours.get(hour - _HOURS_A_DAY * back, 0) for back in range(1, days + 1)]
    if used >= FLOOR and used > _FACTOR * median(past):
        # The same job may run an hour earlier or later; those hours also show how much usage varies.
        near = [
            [hours.get(hour - _HOURS_A_DAY * back + by, 0) for back in range(1, days + 1)] for by in (-1, 1)
        ]
        if _is_unusual(used, past, [past, *near]) and used > _FACTOR * _peak_hour(hours, hour, days):
            return Spike(span="hour", used=used, usual=int(median(past)))
    midnight = hour - hour % _HOURS_A_DAY
    used = sum(hours.get(at, 0) for at in range(midnight, hour + 1))
    if used < FLOOR:
        return None
    totals = [_day(hours, midnight - _HOURS_A_DAY * back) for back in range(1, days + 1)]
    if _is_unusual(used, totals, [totals]):
        return Spike(span="day", used=used, usual=int(median(totals)))
    return None


class FourWeekPace(NamedTuple):
    """Units of four weeks.

    Attributes:
        ahead: if each hour or day is like the spike.
        behind: before today.
    """

    ahead: int
    behind: int


def project_spike(spike: Spike, hours: Mapping[int, int], now_ms: int) -> FourWeekPace:
    """Project a spike to four weeks, next to the usage of the last four.

    Args:
        spike: the spike.
        hours: units by hour since 1970; hours without units may be left out.
        now_ms: now.
    """
    hour = now_ms // HOUR_MS
    midnight = hour - hour % _HOURS_A_DAY
    times = DAYS * _HOURS_A_DAY if spike.span == "hour" else DAYS
    behind = sum(hours.get(at, 0) for at in range(midnight - DAYS * _HOURS_A_DAY, midnight))
    return FourWeekPace(ahead=spike.used * times, behind=behind)


def _is_unusual(used: int, past: Sequence[int], samples: Sequence[Sequence[int]]) -> bool:
    """Whether usage is far above the median, by the spread, and above all precedents but the rarest."""
    middle = median(past)
    if used <= _FACTOR * median(past[_WEEK - 1 :: _WEEK]):  # Same weekdays.
        return False
    precedent = max(sorted(sample)[-1 - _RARE] for sample in samples)
    if not middle:
        return used > _FACTOR * precedent
    # Noise grows with usage: the spread of logarithms is a factor.
    distances = [abs(log((one + 1) / (median(sample) + 1))) for sample in samples for one in sample]
    spread = exp(_TO_DEVIATION * median(distances))
    factor = min(max(_FACTOR, spread**_SPREADS), _FACTOR_MOST)
    return used > factor * middle and used > max(_FACTOR / 2, spread) * precedent


def _peak_hour(hours: Mapping[int, int], hour: int, days: int) -> int:
    """Return the busiest hour of the days, without outliers; 0 if these hours are rarely idle."""
    past = [hours.get(hour - _HOURS_A_DAY * back, 0) for back in range(1, days + 1)]
    if median(past):
        return 0
    peaks = (
        max(hours.get(hour - _HOURS_A_DAY * back - by, 0) for by in range(_HOURS_A_DAY))
        for back in range(1, days + 1)
    )
    return sorted(peaks)[-1 - _RARE]


def _day(hours: Mapping[int, int], midnight: int) -> int:
    return sum(hours.get(at, 0) for at in range(midnight, midnight + _HOURS_A_DAY))


class CustomerSpike(NamedTuple):
    """A spike of a customer's meter.

    Attributes:
        at_ms: when it was found.
        span: ``hour`` or ``day``.
        used, usual: in that span, in the meter's unit.
    """

    customer: str
    meter: str
    at_ms: int
    span: str
    used: int
    usual: int


class SpikesToday:
    """Spikes of today, in a hash per shard and day. Each method raises StoreError if the store is down.

    Args:
        store: has the hashes.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, spike: CustomerSpike) -> None:
        """Add a spike; it replaces one of the same customer, meter and day."""
        keys = self._store.keys
        key = keys.spikes(keys.customer(spike.customer).shard, spike.at_ms)
        admin = await self._store.admin()
        stored = ("hset", key, f"{spike.meter} {spike.customer}", json.dumps(spike[2:]))
        await admin.ask_all([stored, ("pexpire", key, 2 * DAY_MS)])

    async def count(self) -> int:
        """Count the spikes of today (UTC)."""
        return sum(await self._ask_shards("hlen"))

    async def all(self) -> Sequence[CustomerSpike]:
        """List the spikes of today (UTC), newest first."""
        kept: list[dict[bytes, bytes]] = await self._ask_shards("hgetall")
        found: list[CustomerSpike] = []
        for name, data in (entry for each in kept for entry in each.items()):
            with suppress(*UNREADABLE):  # The next check finds it again.
                meter, _, customer = name.decode().partition(" ")
                at_ms, span, used, usual = json.loads(data)
                found.append(CustomerSpike(customer, meter, int(at_ms), str(span), int(used), int(usual)))
        return sorted(found, key=lambda spike: (-spike.at_ms, spike.customer, spike.meter))

    async def _ask_shards(self, command: str) -> list[Any]:
        admin, keys, now_ms = await self._store.admin(), self._store.keys, self._store.now_ms()
        return await admin.ask_all((command, keys.spikes(shard, now_ms)) for shard in range(keys.shards))


EVENT: Final = "usage.spike"


class UsageHistory(Protocol):
    """Usage by the hour."""

    async def active(self, since_ms: int, *, least: int) -> Sequence[tuple[str, str]]:
        """Customers and meters with at least so many units since an instant."""
        ...

    async def hours(self, customer: str, meter: str, since_ms: int) -> Mapping[int, int]:
        """Units by hour since 1970."""
        ...


class SpikeWatch:
    """Checks the usage of all customers for spikes.

    Args:
        store: receives the events.
        history: usage by the hour.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, history: UsageHistory, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._history = history
        self._watch = LeasedWatch(store, EVENT, is_wanted)

    async def run(self) -> None:
        """Check every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database of the audit log does not answer.
        """
        await self._watch.run(self.check)

    async def check(self) -> None:
        """Check all customers once; raises as :meth:`run` does."""
        now_ms = self._store.now_ms()
        midnight_ms = now_ms - now_ms % DAY_MS
        for customer, meter in await self._history.active(midnight_ms, least=FLOOR):
            declared = self._store.catalog.meters.get(meter)
            # `spend`, and units by price, follow the other meters, which have their own spikes.
            if declared is not None and not (declared.is_spend or declared.is_row):
                event_id = digest_of(customer, meter, midnight_ms)
                make = partial(self._make_event, customer, meter, now_ms, event_id)
                async with skip_unreadable(customer, partial(self._store.log_unreadable, EVENT)):
                    await notify_once(self._store, customer, EVENT, event_id, make)
                await self._watch.lease.acquire()

    async def _make_event(
        self, customer: str, meter: str, now_ms: int, event_id: str
    ) -> Mapping[str, Any] | None:
        since_ms = now_ms - now_ms % DAY_MS - (DAYS + 1) * DAY_MS
        hours = await self._history.hours(customer, meter, since_ms)
        spike = find_spike(hours, now_ms)
        if spike is None:
            return None
        pace = project_spike(spike, hours, now_ms)
        usage = await self._store.usage(customer)
        meter_usage = usage["meters"].get(meter)
        # Where prices go by model, only their own meters have one price.
        rows = (one.name for one in self._store.catalog.meters.values() if one.is_row and one.source == meter)
        has_rows = any("price" in usage["meters"].get(row, ()) for row in rows)
        price = None if meter_usage is None or has_rows else meter_usage.get("price")

        found = CustomerSpike(customer, meter, now_ms, spike.span, spike.used, spike.usual)
        await SpikesToday(self._store).add(found)

        def cents(units: int) -> int | None:
            if price is None:
                return None
            return rounded_cents(Fraction(units * price["amount_cents"], price["per"]))

        units = {
            "used": spike.used,
            "usual": spike.usual,
            "four_weeks_at_this_pace": pace.ahead,
            "last_four_weeks": pace.behind,
        }
        return {
            "id": event_id,
            "at_ms": now_ms,
            "meter": meter,
            "span": spike.span,
            **units,
            **{f"{name}_cents": cents(quantity) for name, quantity in units.items()},
            **currency_attribute(self._store.catalog, usage),
        }
