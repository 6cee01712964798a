"""Late usage: withdraw intents whose invoice is final, and log one alert for each customer and period."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import from_ms, iso
from meterkit.errors import StoreError
from meterkit.outbox.close_queue import find_too_late
from meterkit.outbox.intents import compare_in_ms, parse_sealed, read_intents, read_intents_in
from meterkit.outbox.operator_commands import change_state, withdraw
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import LateUsage, add_late_usage
from meterkit.store.unreadable_data import is_of_the_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.outbox.intents import SealedIntent, StoredIntent
    from meterkit.outbox.sealer import LateUnits
    from meterkit.store.event_names import ReportedMeter
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.delivery")
_CAUSE: Final = "clock"
_WHY: Final = "the invoice of its period is final: it is compared with Stripe's summary of its minute"

_LATE: Final = (
    "late usage of customer %r: the invoice of its period from %s was final before it was delivered; %s"
    " (billing.late_usage)"
)
_UNPRICED: Final = (
    "usage of customer %r in the period from %s has no price on the customer's plan at the period's end; %s"
)


def report_late(late: Iterable[LateUnits], meters: Mapping[str, ReportedMeter]) -> None:
    """Log late usage and usage without a price, and add both to the report of the running flush.

    Args:
        late: units that a seal has counted as late: each once.
        meters: the meters that are or were delivered, by token.
    """
    groups: dict[tuple[str, int, bool], list[LateUsage]] = {}
    for one in late:
        counted = meters.get(one.meter_token)
        usage = LateUsage(
            customer=one.customer,
            meter=one.meter_token if counted is None else counted.meter,
            quantity=one.quantity,
            period=iso(from_ms(one.period_ms)),
            is_billed=one.is_billed,
            by_item=one.by_item,
        )
        groups.setdefault((one.customer, one.period_ms, one.has_price), []).append(usage)
    for (customer, _, has_price), found in groups.items():
        mark = add_late_usage(found)
        text = _LATE if has_price else _UNPRICED
        _logger.error(text, customer, found[0].period, format_late_usage(found), extra=mark)


def format_late_usage(found: list[LateUsage]) -> str:
    """Format the late usage of one customer and period, and how it is billed."""
    by_item = [one for one in found if one.by_item]
    groups = {
        "the invoice of the open period bills it": [
            one for one in found if one.is_billed and not one.by_item
        ],
        "an invoice item bills it at the price at which it was recorded": by_item,
        "no invoice bills it": [one for one in found if not one.is_billed],
    }
    return "; ".join(f"{_units(group)}: {what}" for what, group in groups.items() if group)


def _units(found: list[LateUsage]) -> str:
    return ", ".join(f"{one.quantity} of {one.meter}" for one in found)


class LateIntents:
    """Removes intents from the outbox whose invoices are final.

    Usage that was never sent is pending again: the next seal counts it as late. An intent that Stripe may
    have is parked, and compared with Stripe's summary.

    Args:
        store: has the intents.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def divert(self, shard: int, due: Sequence[SealedIntent]) -> tuple[list[SealedIntent], int, int]:
        """Remove late intents from due ones; return the others, and the counts withdrawn and parked.

        A late intent of a customer whose totals cannot be counted in waits, and delays no other.

        Raises:
            StoreError: the store does not answer.
        """
        late = await find_too_late(self._store, shard, (sealed for sealed in due if sealed.value > 0))
        if not late:
            return list(due), 0, 0
        names = [sealed.identifier for sealed in due if sealed.identifier in late]
        admin = await (await self._store.admin()).for_delivery().at(self._store.keys.shard(shard, "intents"))
        withdrawn = parked = 0
        for intent in await read_intents(self._store, admin, shard, names):
            try:
                more = await self._take_out([intent])
            except StoreError as error:
                if is_of_the_store(error):
                    raise
                admin.warn_once(str(error))
                continue
            withdrawn, parked = withdrawn + more[0], parked + more[1]
        return [sealed for sealed in due if sealed.identifier not in late], withdrawn, parked

    async def recall(self, customer: str, period_ms: int, *, until_ms: int) -> None:
        """Remove the queued intents of a period whose invoice has just become final.

        Args:
            customer: the customer's id.
            period_ms: the first instant of the period.
            until_ms: its end at Stripe: the next invoice has events from that minute on.

        Raises:
            StoreError: the store does not answer, or the totals of the customer cannot be counted in.
        """
        shard, admin = self._store.keys.customer(customer).shard, (await self._store.admin()).for_delivery()
        async for page in read_intents_in(self._store, admin, shard, "outbox"):
            await self._take_out(
                intent
                for intent in page
                if intent.customer == customer
                and intent.fields["period"] == str(period_ms)
                and intent.value > 0
                and intent.minute_s * 1000 < until_ms
            )

    async def _take_out(self, found: Iterable[StoredIntent]) -> tuple[int, int]:
        """Withdraw queued intents, or park those that Stripe may have; count both."""
        withdrawn = parked = 0
        for intent in found:
            if intent.fields["state"] != "queued":
                continue
            if intent.first_ms:
                parked += await self._park(intent)
            else:
                withdrawn += await withdraw(self._store, intent, cause=_CAUSE, why="")
        return withdrawn, parked

    async def is_late(self, intent: StoredIntent) -> bool:
        """Whether the invoice of an intent's minute is final.

        Raises:
            StoreError: the store does not answer.
        """
        sealed = parse_sealed(intent.identifier, intent.fields)
        return bool(await find_too_late(self._store, intent.shard, [sealed]))

    async def _park(self, intent: StoredIntent) -> bool:
        wait_ms = compare_in_ms(intent.first_ms, self._store.now_ms())
        return await change_state(
            self._store, intent, "parked", cause=_CAUSE, compare_in_ms=wait_ms, fields={"why": _WHY}
        )


async def end_usage(store: Store, customer: str, ended: Mapping[int, int]) -> None:
    """Make undelivered usage of ended periods late, log it, and begin the next period.

    Args:
        store: counts the usage.
        customer: the customer's id.
        ended: end of each period at Stripe, to its first instant (ms).

    Raises:
        StoreError: the store does not answer, or the totals of the customer cannot be counted in.
    """
    intents, outbox = LateIntents(store), Outbox(store, await store.admin())
    for at_ms, period_ms in ended.items():
        await intents.recall(customer, period_ms, until_ms=at_ms)
    seal_result = await outbox.cut(customer, None)
    report_late(seal_result.late, await outbox.meters())
