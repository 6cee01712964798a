"""Counters are raised to what the audit log knows of: after a store has lost its data, or was set back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import check_aware, from_ms, to_ms
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.audit.entries import CLASSES
from meterkit.store.customer_id import check_customer
from meterkit.store.event_names import read_meters
from meterkit.store.sealing import kept_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from meterkit.insights.audit.draining import Drainer
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.event_names import Counted
    from meterkit.store.store import Store

__all__ = ["Rebuilder", "Rebuilt", "Summaries"]

_LEASE_S: Final = 35.0
_TRIES: Final = 8
_SAME_PERIOD_MS: Final = 120_000  # A period that begins later than that after another is another one.
_LONGEST_MS: Final = 400 * 86_400_000  # More than any period.
_MINUTE_MS: Final = 60_000
_AHEAD_MS: Final = 4 * _MINUTE_MS
_OF_COUNTERS: Final = (*CLASSES[:4], "late")
_PARKED: Final = 6  # Among the numbers of a meter; see rebuild.lua.
_WAITS, _STALE, _CLOCK, _BROKEN, _OTHER_PERIOD, _NO_MINUTE = 1, 2, 3, 4, 5, 6
_TO_BE_LINKED: Final = (
    "it goes to Stripe and the customer is not linked: `meterkit customers link`, then rebuild again"
)
_TO_BE_COMPARED: Final = (
    "Stripe may have what is parked: it is compared with Stripe's summaries after two hours, by whoever"
    " delivers or by `meterkit reconcile --repair`"
)
_IS_OVER: Final = "the period is over: compare by hand, and bill what is missing"


class Summaries(Protocol):
    """Tells what Stripe has counted; see :class:`meterkit.delivery.summaries.Summaries`."""

    async def refresh(self) -> None:
        """Ask which meters there are."""
        ...

    async def counted(
        self, event_name: str, stripe_customer: str, start_s: int, end_s: int
    ) -> Decimal | None:
        """What Stripe has counted of a customer from one whole minute to another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """A customer, meter and period that the audit log has more of than the counters, in the meter's unit.

    Attributes:
        period_start: of the billing period.
        recorded: what the counters had.
        audited: what the audit log has.
        raised: how many units are recorded now that were not; with ``dry_run`` those that would be.
        delivered: how many of those that go to Stripe it has, by its own summaries.
        parked: how many of those it may have.
        advice: what to do; empty: nothing.
        is_done: whether nothing is left to be done here.
    """

    customer: str
    meter: str
    period_start: datetime
    recorded: int
    audited: int
    raised: int
    delivered: int
    parked: int
    advice: str
    is_done: bool


class Rebuilder:
    """Compares the counters of open periods with the audit log, and raises those that are lower.

    None is ever lowered. What the log has more of that goes to Stripe is never pending again: as far as
    Stripe's summaries show more than was delivered by the counters it counts as delivered, and the rest is
    parked.

    Args:
        store: where usage is counted.
        drainer: of its audit log.
        summaries: what Stripe says; None: nobody can be asked, and all of it is parked.
    """

    def __init__(self, store: Store, drainer: Drainer, summaries: Summaries | None) -> None:
        self._store = store
        self._drainer = drainer
        self._summaries = summaries

    async def rebuild(
        self,
        customer: str | None = None,
        *,
        at: datetime | None = None,
        dry_run: bool = False,
        by: str = "api",
    ) -> Sequence[Rebuilt]:
        """Rebuild counters; what was waiting for the database is drained first.

        Args:
            customer: whose; default: of all.
            at: an instant of the period (aware); of one that is over it is only said what differs.
                Default: now.
            dry_run: say what would be done.
            by: who does it, for the ledger of the customer.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used; somebody else drains; the database
                fails; or entries wait that cannot be drained.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer, or what it has cannot be read.
        """
        if at is not None:
            check_aware("at", at)
        if customer is not None:
            check_customer(customer)
        async with self._drainer.lease(within_s=_LEASE_S) as is_held:
            if not is_held:
                raise MeterkitError("another process drains the audit log; try again in a minute")
            await self._drainer.drain()
            names = [customer] if customer else await asyncio.to_thread(self._drainer.database.customers)
            found: list[Rebuilt] = []
            for name in names:
                found += await self._of_customer(name, None if at is None else to_ms(at), by, dry_run=dry_run)
            return found

    async def _of_customer(
        self, customer: str, at_ms: int | None, by: str, *, dry_run: bool
    ) -> list[Rebuilt]:
        store, drainer = self._store, self._drainer
        counted: dict[str, int] | None = None
        for _ in range(_TRIES):
            await drainer.drain_shard(store.keys.customer(customer).shard)
            since_ms = (store.now_ms() if at_ms is None else at_ms) - _LONGEST_MS
            sums, last_ms = await asyncio.to_thread(drainer.database.sums, customer, since_ms)
            (usage,) = await store.usage_of_many([customer], at_ms=at_ms)
            start_ms = to_ms(usage["period"]["start"])
            period_ms = next((one for one in sums if abs(one - start_ms) < _SAME_PERIOD_MS), None)
            if period_ms is None:
                return [] if at_ms is not None else _astray(usage, sums, last_ms)
            if to_ms(usage["period"]["end"]) <= store.now_ms():
                return _compared(usage, sums[period_ms])
            if counted is None:
                missing = await self._run(usage, sums[period_ms], {}, by, dry_run=True)
                if missing is None:
                    continue
                counted = await self._counted(usage, missing)
            done = await self._run(usage, sums[period_ms], counted, by, dry_run=dry_run)
            if done is not None:
                return [_rebuilt(usage, sums[period_ms], name, units) for name, units in done.items()]
        raise MeterkitError(
            f"customer {customer!r}: entries of its shard still wait for the database of the audit log: usage"
            " comes too fast just now, or one cannot be read; nothing of this customer is rebuilt"
        )

    async def _run(
        self,
        usage: CustomerUsage,
        sums: Mapping[str, Mapping[str, int]],
        counted: Mapping[str, int],
        by: str,
        *,
        dry_run: bool,
    ) -> dict[str, list[int]] | None:
        """By meter what was missing, see rebuild.lua; None: it must be drained and asked for again."""
        store, customer = self._store, usage["customer"]
        admin, known, view = await store.admin(), await self._known(), store.cache.get(customer)
        tokens = {name: name if name in known else meter_token(name) for name in sums}
        meters = {
            tokens[name]: {
                "name": name,
                "units": [max(0, units[one]) for one in (*_OF_COUNTERS, "reported")],
                "event": known[tokens[name]].event_name if tokens[name] in known else "",
                "counted": counted.get(name, 0),
            }
            for name, units in sums.items()
        }
        for _ in range(_TRIES):
            keys, state = view.keys, view.state
            wanted = {
                "dry": int(dry_run),
                "period": to_ms(usage["period"]["start"]),
                "stripe": state.stripe_customer or "",
                "id": token_hex(16),
                "by": by,
                "minutes": state.minutes_taken_ms,
                "meters": meters,
            }
            names = [keys.counters, keys.state, keys.totals]
            names += [
                store.keys.shard(keys.shard, name) for name in ("intents", "parked", "compare", "audit")
            ]
            names.append(keys.history)
            script = store.scripts["rebuild"]
            await admin.load(script)
            arguments = (view.rev, view.terms(kept_ms(view)), customer, json.dumps(wanted), admin.now_ms())
            reply: Any = await admin.ask(admin.client.evalsha(script.sha, len(names), *names, *arguments))
            if reply[0] == _STALE:
                view = view.cache.learn(view, reply)
            elif reply[0] in {_WAITS, _OTHER_PERIOD}:
                return None
            elif reply[0]:
                raise _failed(customer, reply)
            else:
                by_token: dict[str, str] = json.loads(reply[2])
                return {
                    name: [int(units) for units in by_token[token].split(" ")]
                    for name, token in tokens.items()
                    if token in by_token
                }
        raise StoreError(f"customer {customer!r} changed {_TRIES} times while it was rebuilt; try again")

    async def _counted(self, usage: CustomerUsage, missing: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """What Stripe has counted of those meters of which it may have what is missing."""
        asked = [name for name, units in missing.items() if units[_PARKED]]
        if not asked or self._summaries is None:
            return {}
        await self._summaries.refresh()
        known, view = await self._known(), self._store.cache.get(usage["customer"])
        start_ms, end_ms = to_ms(usage["period"]["start"]), to_ms(usage["period"]["end"])
        start_s = -(-start_ms // _MINUTE_MS) * 60
        end_s = min(end_ms, self._store.now_ms() + _AHEAD_MS) // _MINUTE_MS * 60
        found: dict[str, int] = {}
        for name in asked:
            event = known[meter_token(name)].event_name
            stripe_customer = view.state.stripe_customer
            if stripe_customer is not None and start_s < end_s:
                found[name] = int(await self._summaries.counted(event, stripe_customer, start_s, end_s) or 0)
        return found

    async def _known(self) -> Mapping[str, Counted]:
        store = self._store
        return await read_meters(await store.admin(), store.keys, store.catalog)


def _failed(customer: str, reply: Sequence[Any]) -> MeterkitError:
    if reply[0] == _NO_MINUTE:
        return MeterkitError(
            f"customer {customer!r}: its period ends within minutes, and what goes to Stripe has no place"
            " left in it; compare it when it is over"
        )
    if reply[0] == _CLOCK:
        return StoreError("this host's clock and the store's differ by more than 60 s: nothing is rebuilt")
    return StoreError(f"the field {reply[2].decode()} of {customer!r} is not a whole number")


def _rebuilt(
    usage: CustomerUsage, sums: Mapping[str, Mapping[str, int]], meter: str, units: Sequence[int]
) -> Rebuilt:
    *classes, _, delivered, parked, left = units
    advice = _TO_BE_LINKED if left else _TO_BE_COMPARED if parked else ""
    return Rebuilt(
        customer=usage["customer"],
        meter=meter,
        period_start=usage["period"]["start"],
        recorded=_recorded(usage, meter),
        audited=_audited(sums[meter]),
        raised=0 if left else sum(classes),
        delivered=delivered,
        parked=parked,
        advice=advice,
        is_done=not left,
    )


def _compared(usage: CustomerUsage, sums: Mapping[str, Mapping[str, int]]) -> list[Rebuilt]:
    """Of a period that is over: what the log has more of."""
    return [
        _left(usage, meter, usage["period"]["start"], _audited(units), _IS_OVER)
        for meter, units in sums.items()
        if _audited(units) > _recorded(usage, meter)
    ]


def _astray(
    usage: CustomerUsage, sums: Mapping[int, Mapping[str, Mapping[str, int]]], last_ms: Mapping[int, int]
) -> list[Rebuilt]:
    """What was recorded in these days, in a period that the store does not know: it has lost the customer."""
    start = usage["period"]["start"]
    advice = (
        f"its period begins {start:%Y-%m-%dT%H:%MZ} by the store: have its subscription or plan known again"
        " first (`meterkit customers show`), then rebuild"
    )
    return [
        _left(usage, meter, from_ms(period_ms), _audited(units), advice)
        for period_ms, meters in sums.items()
        if last_ms[period_ms] >= to_ms(start)
        for meter, units in meters.items()
    ]


def _left(usage: CustomerUsage, meter: str, start: datetime, audited: int, advice: str) -> Rebuilt:
    return Rebuilt(
        customer=usage["customer"],
        meter=meter,
        period_start=start,
        recorded=_recorded(usage, meter) if start == usage["period"]["start"] else 0,
        audited=audited,
        raised=0,
        delivered=0,
        parked=0,
        advice=advice,
        is_done=False,
    )


def _recorded(usage: CustomerUsage, meter: str) -> int:
    found = usage["meters"].get(meter)
    return 0 if found is None else found["recorded"]


def _audited(units: Mapping[str, int]) -> int:
    return sum(units[name] for name in CLASSES[:4])
