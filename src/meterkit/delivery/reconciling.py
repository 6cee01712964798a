"""``kit.reconcile``: what was recorded, delivered by our books, and counted by Stripe, to the unit."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.decisions.ambiguity import may_be_sent_again
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import check_aware, stamped_span_s, to_ms
from meterkit.delivery.comparing import CAUSE, Comparer
from meterkit.delivery.report import FlushReport
from meterkit.delivery.summaries import StripeSummaries
from meterkit.errors import StripeError
from meterkit.store.all_usage import customers_with_counts
from meterkit.store.customer_id import check_customer
from meterkit.store.customer_usage import TAKEN_BACK, TAKING_BACK
from meterkit.store.history import is_relinked
from meterkit.store.kept_intents import is_refused
from meterkit.store.outbox_by_hand import Intents
from meterkit.store.state_changes import States

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from meterkit.delivery.summaries import Summaries
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["Reconciled", "Reconciler"]

_AT_ONCE: Final = 100
_NOT_THERE: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """One customer, meter and period: our books and Stripe's, in the meter's unit.

    Attributes:
        stripe_customer: None: the customer is not linked.
        event_name: of the meter at Stripe.
        period_start, period_end: of the billing period.
        is_closed: whether that is over: then this is its close report.
        recorded: all that was recorded, what does not go to Stripe included.
        waiting: pending, unlinked, queued or being sent.
        parked: Stripe may have it, or a person must decide.
        taking_back: units that wait or are parked to take others back; they are subtracted there.
        delivered: accepted by Stripe, by our books.
        confirmed: what Stripe's summaries say that it has counted; None: it has no such customer or meter.
        difference: ``confirmed`` - ``delivered``; None where the former is.
        late: came for this period when it was closed.
        dead: never accepted, or dropped.
        advice: what to do; empty: nothing, the books agree.
    """

    customer: str
    stripe_customer: str | None
    meter: str
    event_name: str
    period_start: datetime
    period_end: datetime
    is_closed: bool
    recorded: int
    waiting: int
    parked: int
    taking_back: int
    delivered: int
    confirmed: int | None
    difference: int | None
    late: int
    dead: int
    advice: str

    @property
    def agrees(self) -> bool:
        """Whether Stripe has counted what was delivered, and nothing is parked."""
        return self.difference in {None, 0} and not (
            self.parked or (self.delivered and self.difference is None)
        )


class Reconciler:
    """Compares our books with Stripe's.

    Args:
        store: where usage is counted.
        api: the way to Stripe; made when it is first needed.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api

    async def reconcile(
        self, customer: str | None = None, *, at: datetime | None = None, repair: bool = False
    ) -> Sequence[Reconciled]:
        """Each customer and meter that something of a period goes to Stripe of, compared with Stripe's books.

        Args:
            customer: whose; default: of all.
            at: an instant of the period (aware), of the last 400 days; default: now.
            repair: have what Stripe may have compared with the summary of its minute, and do what follows:
                see :meth:`meterkit.Intents.redrive`. That takes two looks, ten minutes apart.

        Raises:
            CustomerError, MeterkitError: an argument cannot be used.
            SettingsError: no Stripe key is set.
            StripeError: Stripe refuses, or does not answer.
            StoreError: the store does not answer.
        """
        if at is not None:
            check_aware("at", at)
        store, summaries = self._store, StripeSummaries(self._api())
        await summaries.refresh()
        if customer is None:
            customers = await customers_with_counts(store)
        else:
            customers = [check_customer(customer)]
        if repair:
            await self._repair(customer, summaries)
        at_ms = None if at is None else to_ms(at)
        found: list[Reconciled] = []
        for first in range(0, len(customers), _AT_ONCE):
            for usage in await store.usage_of_many(customers[first : first + _AT_ONCE], at_ms=at_ms):
                found += await self.of_customer(usage, summaries)
        return found

    async def _repair(self, customer: str | None, summaries: StripeSummaries) -> None:
        """Have what Stripe may have compared, and compare what is due."""
        outbox, now_ms = Intents(self._store), self._store.now_ms()
        for intent in await outbox.list(state="parked", customer=customer, limit=100_000):
            first = intent.first_attempt_at
            is_open = first is not None and not may_be_sent_again(to_ms(first), now_ms)
            if (is_open or is_refused(intent.identifier)) and intent.compared_at is None:
                await outbox.redrive(intent.identifier, by=CAUSE)
        await Comparer(self._store, summaries).compare_due(FlushReport())

    async def of_customer(self, usage: CustomerUsage, summaries: Summaries) -> list[Reconciled]:
        """The same of one customer, by its usage of a period and what Stripe says."""
        _, state = await States(self._store).read(usage["customer"])
        events = {
            name: meter.stripe.event_name
            for name, meter in self._store.catalog.meters.items()
            if meter.stripe is not None
        }
        taken_back = await self._taken_back(usage, list(events))
        return [
            await self._of_meter(usage, name, event_name, state.stripe_customer, summaries, taken_back[name])
            for name, event_name in events.items()
            if any(taken_back[name]) or _goes_to_stripe(usage["meters"][name])
        ]

    async def _taken_back(self, usage: CustomerUsage, meters: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """By meter the delivered units that were taken back, and those that are yet to be.

        Where nothing is left of either, Stripe was sent some, or is to be.
        """
        if not meters:
            return {}
        admin, keys = await self._store.admin(), self._store.keys.customer(usage["customer"])
        start_ms = to_ms(usage["period"]["start"])
        kinds = TAKEN_BACK + TAKING_BACK
        fields = [f"{start_ms}|{meter_token(name)}{kind}" for name in meters for kind in kinds]
        found = await admin.ask(admin.client.hmget(keys.totals, fields))
        units = iter([int(value or 0) for value in found])
        return {name: (next(units), sum(next(units) for _ in TAKING_BACK)) for name in meters}

    async def _of_meter(
        self,
        usage: CustomerUsage,
        name: str,
        event_name: str,
        stripe_customer: str | None,
        summaries: Summaries,
        taken_back: tuple[int, int],
    ) -> Reconciled:
        period, counts, now_ms = usage["period"], usage["meters"][name], self._store.now_ms()
        end_ms, confirmed = to_ms(period["end"]), None
        start_s, end_s = stamped_span_s(to_ms(period["start"]), now_ms, end_ms=end_ms)
        if stripe_customer is not None and start_s < end_s:
            confirmed = await _counted(summaries, event_name, stripe_customer, (start_s, end_s))
        parked, delivered = counts["parked"], counts["delivered"]
        difference = None if confirmed is None else confirmed - delivered
        return Reconciled(
            customer=usage["customer"],
            stripe_customer=stripe_customer,
            meter=name,
            event_name=event_name,
            period_start=period["start"],
            period_end=period["end"],
            is_closed=end_ms <= now_ms,
            recorded=counts["recorded"],
            waiting=_waiting(counts),
            parked=parked,
            taking_back=taken_back[1],
            delivered=delivered,
            confirmed=confirmed,
            difference=difference,
            late=counts["late"],
            dead=counts["dead"],
            advice=await self._advice(usage, difference, parked, delivered, taken_back[0]),
        )

    async def _advice(
        self, usage: CustomerUsage, difference: int | None, parked: int, delivered: int, taken_back: int
    ) -> str:
        """What a person must do; empty: nothing."""
        if difference is None:
            return "Stripe has no such meter or customer, or the customer is not linked any more" * bool(
                delivered
            )
        if not difference and not parked:
            return ""
        if await is_relinked(self._store, usage["customer"], usage["period"]["start"]):
            return (
                "the link has changed in this period: what went to the other Stripe customer is not seen here"
            )
        if parked and min(0, parked) <= difference <= max(0, parked):
            return (
                f"{parked} are parked, of which Stripe may have {difference}: --repair compares what can be,"
                " `meterkit outbox list --state parked` has the rest"
            )
        if 0 < difference <= taken_back:
            return (
                f"Stripe has {difference} more than was delivered, and {taken_back} were taken back there: it"
                " counts within minutes, else see its meter error reports, and cancelled events"
            )
        if difference > 0:
            return f"Stripe has {difference} more than was delivered: something else sends to this meter"
        return (
            f"Stripe has counted {-difference} less than it accepted: it counts within minutes, else see its"
            " meter error reports, cancelled events, and the meter's formula (`meterkit doctor`)"
        )


def _waiting(counts: MeterUsage) -> int:
    """How much of a meter is on its way."""
    return counts["pending"] + counts["unlinked"] + counts["queued"] + counts["leased"]


def _goes_to_stripe(counts: MeterUsage) -> bool:
    """Whether anything of a meter goes there, or should."""
    return bool(
        _waiting(counts) or counts["parked"] or counts["delivered"] or counts["late"] or counts["dead"]
    )


async def _counted(
    summaries: Summaries, event_name: str, stripe_customer: str, span_s: tuple[int, int]
) -> int | None:
    """What Stripe has counted; None where it has no such customer or meter."""
    try:
        counted = await summaries.counted(event_name, stripe_customer, *span_s)
    except StripeError as error:
        if error.status not in _NOT_THERE:
            raise
        return None
    return None if counted is None else int(counted)
