"""Usage spikes: this hour and day against those of four weeks; one process looks every five minutes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from math import exp, log
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from meterkit.notify.watches import UNREADABLE, Lookout, digest_of, note_unreadable, tell_once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.store.store import Store

HOUR_MS: Final = 3_600_000
DAYS: Final = 28
"""The days before today that usage is compared with."""
FLOOR: Final = 100
"""Fewer units than this are never a spike."""
_DAYS_LEAST: Final = 14
_HOURS_A_DAY: Final = 24
_WEEK: Final = 7
_FACTOR: Final = 3
_FACTOR_MOST: Final = 20
_SPREADS: Final = 4
_TO_DEVIATION: Final = 1.4826
"""From a median of distances to a standard deviation."""
_RARE: Final = 2
"""So many of the days may have been unusual themselves: they do not count as a precedent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Usage that is far above what is usual.

    Attributes:
        span: what was compared: an ``hour`` with the same hours of other days, or a ``day``.
        used: the units recorded in it so far.
        usual: the median of those that it was compared with.
    """

    span: Literal["hour", "day"]
    used: int
    usual: int


def spike_at(hours: Mapping[int, int], now_ms: int) -> Spike | None:
    """The spike in the hour or the day of an instant; None: there is none.

    An hour that has begun counts as far as it has come, so that a spike is found within the hour.

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
        # The same job may run an hour earlier or later; those hours also tell how much usage varies.
        near = [
            [hours.get(hour - _HOURS_A_DAY * back + by, 0) for back in range(1, days + 1)] for by in (-1, 1)
        ]
        if _is_unusual(used, past, [past, *near]) and used > _FACTOR * _peak(hours, hour, days):
            return Spike(span="hour", used=used, usual=int(median(past)))
    midnight = hour - hour % _HOURS_A_DAY
    used = sum(hours.get(at, 0) for at in range(midnight, hour + 1))
    if used < FLOOR:
        return None
    totals = [_day(hours, midnight - _HOURS_A_DAY * back) for back in range(1, days + 1)]
    if _is_unusual(used, totals, [totals]):
        return Spike(span="day", used=used, usual=int(median(totals)))
    return None


class Pace(NamedTuple):
    """Units of four weeks.

    Attributes:
        ahead: of four weeks in which each hour, or day, is like the spike.
        behind: of the four weeks before today.
    """

    ahead: int
    behind: int


def pace_of(spike: Spike, hours: Mapping[int, int], now_ms: int) -> Pace:
    """What a spike comes to if it goes on.

    Args:
        spike: what was found.
        hours: units by hour since 1970; those that are left out have none.
        now_ms: now.
    """
    hour = now_ms // HOUR_MS
    midnight = hour - hour % _HOURS_A_DAY
    times = DAYS * _HOURS_A_DAY if spike.span == "hour" else DAYS
    behind = sum(hours.get(at, 0) for at in range(midnight - DAYS * _HOURS_A_DAY, midnight))
    return Pace(ahead=spike.used * times, behind=behind)


def _is_unusual(used: int, past: Sequence[int], samples: Sequence[Sequence[int]]) -> bool:
    """Whether it is far above the median, by the spread, and above all but the rarest of what was."""
    middle = median(past)
    if used <= _FACTOR * median(past[_WEEK - 1 :: _WEEK]):  # The same weekdays.
        return False
    precedent = max(sorted(sample)[-1 - _RARE] for sample in samples)
    if not middle:
        return used > _FACTOR * precedent
    # Noise grows with usage: the spread is one of logarithms, and so a factor.
    distances = [abs(log((one + 1) / (median(sample) + 1))) for sample in samples for one in sample]
    spread = exp(_TO_DEVIATION * median(distances))
    factor = min(max(_FACTOR, spread**_SPREADS), _FACTOR_MOST)
    return used > factor * middle and used > max(_FACTOR / 2, spread) * precedent


def _peak(hours: Mapping[int, int], hour: int, days: int) -> int:
    """The busiest hour of a day, leaving out the rarest days; 0 where the same hours are never idle."""
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


_DAY_MS: Final = 86_400_000


class FoundSpike(NamedTuple):
    """Usage of a customer's meter far above what is usual.

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
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def note(self, spike: FoundSpike) -> None:
        """Keep a spike; one of the same customer, meter and day takes its place."""
        key = self._key(spike.at_ms)
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        pipe.hset(key, f"{spike.meter} {spike.customer}", json.dumps(spike[2:]))
        pipe.pexpire(key, 2 * _DAY_MS)
        await admin.ask(pipe.execute())

    async def count(self) -> int:
        """How many spikes were found today (UTC)."""
        admin = await self._store.admin()
        return int(await admin.ask(admin.client.hlen(self._key(self._store.now_ms()))))

    async def all(self) -> Sequence[FoundSpike]:
        """The spikes of today (UTC), the latest first."""
        admin = await self._store.admin()
        kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(self._key(self._store.now_ms())))
        found: list[FoundSpike] = []
        for name, data in kept.items():
            meter, _, customer = name.decode().partition(" ")
            values: Any = json.loads(data)
            found.append(FoundSpike(customer, meter, *values))
        return sorted(found, key=lambda spike: (-spike.at_ms, spike.customer, spike.meter))

    def _key(self, at_ms: int) -> str:
        return self._store.keys.spikes(at_ms)


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
    """Looks for spikes of all customers.

    Args:
        store: where events are kept.
        history: usage by the hour.
        is_wanted: whether a channel or a handler wants an event.
    """

    def __init__(self, store: Store, history: UsageHistory, is_wanted: Callable[[str], bool]) -> None:
        self._store = store
        self._history = history
        self._lookout = Lookout(store, EVENT, is_wanted)

    async def run(self) -> None:
        """Look every five minutes until cancelled.

        Raises:
            StoreError: the store does not answer.
            MeterkitError: the database of the audit log does not answer.
        """
        await self._lookout.run(self.look)

    async def look(self) -> None:
        """Look once; raises as :meth:`run` does."""
        now_ms = self._store.now_ms()
        midnight_ms = now_ms - now_ms % _DAY_MS
        for customer, meter in await self._history.active(midnight_ms, least=FLOOR):
            known = self._store.catalog.meters.get(meter)
            # `spend` follows the other meters, and those have spikes of their own.
            if known is not None and not known.is_spend:
                event_id = digest_of(customer, meter, midnight_ms)
                make = partial(self._found, customer, meter, now_ms, event_id)
                try:
                    await tell_once(self._store, customer, EVENT, event_id, make)
                except UNREADABLE as error:
                    await note_unreadable(self._store, customer, EVENT, error)
                await self._lookout.lease.take()

    async def _found(self, customer: str, meter: str, now_ms: int, event_id: str) -> Mapping[str, Any] | None:
        since_ms = now_ms - now_ms % _DAY_MS - (DAYS + 1) * _DAY_MS
        hours = await self._history.hours(customer, meter, since_ms)
        spike = spike_at(hours, now_ms)
        if spike is None:
            return None
        pace = pace_of(spike, hours, now_ms)
        usage = await self._store.usage(customer)
        shown = usage["meters"].get(meter)
        price = None if shown is None else shown.get("price")

        noted = FoundSpike(customer, meter, now_ms, spike.span, spike.used, spike.usual)
        await SpikesToday(self._store).note(noted)

        def cents(units: int) -> int | None:
            return None if price is None else units * price["amount_cents"] // price["per"]

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
        }
