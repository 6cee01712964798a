"""What Stripe has of a customer and event name that a store which came back with less does not know of."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import from_ms, stamped_span_s
from meterkit.store.delivered import delivered_lately
from meterkit.store.history import is_relinked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.delivery.summaries import Summaries
    from meterkit.store.store import Store

__all__ = ["Forgotten", "Gap"]

_DELIVERED: Final = re.compile(rb"(\d+)\|(....)([dD])")
_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
_AT_ONCE: Final = 8
# A seal stamps with a minute that is free: the one before it, or up to three ahead.
_BEFORE_S: Final = _MINUTE_S
_BEHIND_S: Final = 4 * _MINUTE_S
# Longer gaps are looked at by the hour.
_BY_MINUTES_S: Final = 6 * _HOUR_S
_EXACT_S: Final = 36 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """When deliveries were made that a store may have forgotten.

    Attributes:
        from_ms: when it certainly knew of all that was sent before.
        till_ms: when it was met as another server.
    """

    from_ms: int
    till_ms: int

    def dump(self) -> str:
        """As an intent keeps it."""
        return f"{self.from_ms}-{self.till_ms}"

    @classmethod
    def read(cls, text: str) -> Gap:
        """The inverse of :meth:`dump`."""
        first, last = text.split("-")
        return cls(from_ms=int(first), till_ms=int(last))


class Forgotten:
    """Compares what Stripe has counted with what a store says was delivered.

    Args:
        store: what may have forgotten deliveries.
        summaries: what Stripe says.
    """

    def __init__(self, store: Store, summaries: Summaries) -> None:
        self._store = store
        self._summaries = summaries

    async def unknown(
        self,
        customer: str,
        event_name: str,
        stripe_customer: str,
        *,
        since_ms: int,
        gap: Gap,
        names: Mapping[str, str],
        is_exact: bool = False,
    ) -> int:
        """How many units Stripe has that the store does not know of; 0 or less: none.

        Units that were taken back hide as many that were delivered in a sum. Each intent has a minute of its
        own, so the minutes of the gap tell them apart.

        Args:
            customer: whose.
            event_name: of the meter at Stripe.
            stripe_customer: the one at Stripe.
            since_ms: the first instant of the earliest period that is compared.
            gap: when deliveries may have been forgotten.
            names: the event names of the meters that the store knows, by token.
            is_exact: whether the number matters; else whether there are any is enough.

        Raises:
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        span_s = stamped_span_s(since_ms, self._store.now_ms())
        counted = await self._summaries.counted(event_name, stripe_customer, *span_s)
        if counted is None:
            return 0
        made = await self._delivered(customer, event_name, stripe_customer)
        if await is_relinked(self._store, customer, from_ms(since_ms)):  # Totals do not say to whom.
            known = sum(units for minute_s, units in made.items() if minute_s >= span_s[0])
        else:
            admin = (await self._store.admin()).for_delivery()
            totals: dict[bytes, bytes] = await admin.ask(
                admin.client.hgetall(self._store.keys.customer(customer).totals)
            )
            known = sum(
                # What takes units back is counted apart.
                int(value) * (1 if match[3] == b"d" else -1)
                for name, value in totals.items()
                if value.isdigit()
                and (match := _DELIVERED.fullmatch(name))
                and int(match[1]) >= since_ms
                # Of all meters of the event name: one may have had another name in the plans file.
                and names.get(match[2].decode()) == event_name
            )
        unknown = int(counted) - known
        if unknown > 0 and not is_exact:
            return unknown
        most_s = _BY_MINUTES_S if not is_exact else _EXACT_S
        return max(unknown, await self._in_minutes(event_name, stripe_customer, gap, made, most_s))

    async def _in_minutes(
        self, event_name: str, stripe_customer: str, gap: Gap, made: Mapping[int, int], most_s: int
    ) -> int:
        """What single minutes of the gap have more than was delivered in them."""
        first_s = (gap.from_ms // 1000 - _BEFORE_S) // _MINUTE_S * _MINUTE_S
        last_s = (gap.till_ms // 1000 + _BEHIND_S) // _MINUTE_S * _MINUTE_S
        step_s = _MINUTE_S if last_s - first_s <= most_s else _HOUR_S
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def beyond(start_s: int) -> int:
            async with at_once:
                counted = await self._summaries.counted(
                    event_name, stripe_customer, start_s, start_s + step_s
                )
            known = sum(made.get(one, 0) for one in range(start_s, start_s + step_s, _MINUTE_S))
            return max(0, int(counted or 0) - known)

        return sum(await asyncio.gather(*map(beyond, range(first_s, last_s, step_s))))

    async def _delivered(self, customer: str, event_name: str, stripe_customer: str) -> Mapping[int, int]:
        """By minute (s), what went to a Stripe customer of an event name, as far as each delivery is kept."""
        admin = (await self._store.admin()).for_delivery()
        shard = self._store.keys.customer(customer).shard
        made: dict[int, int] = {}
        async for one in delivered_lately(admin, self._store.keys, shard):
            if (one.customer, one.stripe_customer, one.event_name) == (customer, stripe_customer, event_name):
                made[one.time_s] = made.get(one.time_s, 0) + one.value
        return made
