"""Replay of usage under another plans file: by ceilings alone, or by the scripts on a store.

The scripts decide again, so rates, grants and credits have no second implementation in SQL. The clock of that
store is decades ahead: a server removes at once what ended in the past.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from math import lcm
from time import time
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.load import enforced
from meterkit.customers.corrections import CorrectionRequest, restore_units
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_overrides import with_subject_override
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.limit_policies import Demand
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.subscription import SubscriptionState
from meterkit.redis.url import Address
from meterkit.store.prepared_decisions import prepare_asking, read_decision
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, UsedQuantities
from meterkit.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
    from pathlib import Path

    from meterkit.catalog import Catalog
    from meterkit.insights.simulation.plan_costs import PlanTenure, TrialTerms
    from meterkit.insights.simulation.usage_log import LoggedEvent
    from meterkit.store.views import CustomerView


class TrialResult(NamedTuple):
    """Result of a period's usage under other terms.

    Attributes:
        overage: meter to the units beyond what is included, that neither a grant nor a credit paid.
        refused: meter to the units of the events that would have been refused.
        first_ms: when the first of them was; None: none was.
    """

    overage: Mapping[str, int]
    refused: Mapping[str, int]
    first_ms: int | None


def refuse_beyond(terms: TrialTerms, events: Iterable[LoggedEvent]) -> TrialResult:
    """Go through the events of a customer in their order, and refuse what goes beyond a ceiling.

    A refused event counts nowhere, so that a smaller one after it may still fit. Units that were taken back
    make room, unless they were refused.
    """
    used, refused, first_ms = Counter[str](), Counter[str](), None
    for event in events:
        if any(_is_beyond(terms, meter, used[meter], units) for meter, units in event.quantities.items()):
            refused.update(event.quantities)
            first_ms = event.at_ms if first_ms is None else first_ms
        else:
            used.update({meter: max(units, -used[meter]) for meter, units in event.quantities.items()})
    return TrialResult(terms.overage(used), dict(refused), first_ms)


def _is_beyond(terms: TrialTerms, meter: str, used: int, units: int) -> bool:
    most = terms.ceilings.get(meter)
    return most is not None and units > 0 and used + terms.needed(meter, units) > most


_LEAST_AHEAD_MS: Final = timedelta(days=10_000) // timedelta(milliseconds=1)
# Times in requests have 13 digits.
_MOST_AHEAD_MS: Final = timedelta(days=90_000) // timedelta(milliseconds=1)
_TIMEOUT_S: Final = 60.0
_REPLAY: Final = "replay"


async def _read_none_billed(_view: CustomerView) -> None:
    """No invoice bills units of a replay."""


class _ReplayClock:
    """Tells the time of the event that is served."""

    def __init__(self) -> None:
        self.now_ms = int(time() * 1000) + _LEAST_AHEAD_MS

    def __call__(self) -> float:
        return self.now_ms / 1000


class UsageReplay:
    """A store in which the events of one customer after another are served.

    Args:
        store: started, and for nothing else.
        clock: the store's.
    """

    def __init__(self, store: Store, clock: _ReplayClock) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    @asynccontextmanager
    async def under(cls, catalog: Catalog, directory: Path) -> AsyncGenerator[UsageReplay]:
        """A replay under a plans file, by a server of its own whose data are in a directory.

        Raises:
            SettingsError: there is no server to run.
            StoreError: it does not start.
        """
        clock = _ReplayClock()
        address = Address(kind="embedded", path=str(directory))
        store = Store(
            address,
            enforced(catalog, "on"),
            shards=1,
            timeout_s=_TIMEOUT_S,
            start_timeout_s=_TIMEOUT_S,
            clock=clock,
        )
        await store.start()
        try:
            yield cls(store, clock)
        finally:
            await store.stop()

    async def serve(
        self,
        customer: str,
        terms: TrialTerms,
        tenure: PlanTenure,
        events: Iterable[LoggedEvent],
        had_once: Collection[str] = (),
    ) -> TrialResult:
        """Serve the events of a customer who is not known yet, from the beginning of a period.

        Args:
            customer: the id.
            terms: of the plan.
            tenure: the period, and the overrides that lie over the plan.
            events: in their order.
            had_once: the grants that were given for once and all before the period, as the store names them.

        Raises:
            StoreError: the store does not answer.
        """
        ahead_ms = _ahead_ms(terms)
        begins_ms, ends_ms = tenure.start_ms + ahead_ms, tenure.end_ms + ahead_ms
        self._clock.now_ms = begins_ms
        subscription = SubscriptionState(
            id="sub_0",
            status="active",
            plan=terms.plan,
            start_ms=begins_ms,
            end_ms=ends_ms,
            anchor_ms=begins_ms,
            addons=tenure.addons,
        )
        overrides = {meter: dict(given) for meter, given in tenure.overrides.items()}
        for member, given in tenure.subject_overrides.items():
            overrides = with_subject_override(overrides, member, given, until_ms=None, now_ms=begins_ms)
        state = CustomerState(subscription=subscription, overrides=overrides, currency=tenure.currency)
        await CustomerStates(self._store).change(customer, lambda _: state)
        if had_once:
            grants = self._store.keys.customer(customer).grants
            await self._store.ask("hset", grants, mapping=dict.fromkeys(had_once, begins_ms))
        refused, first_ms = Counter[str](), None
        for nth, event in enumerate(events):
            self._clock.now_ms = min(max(begins_ms, event.at_ms + ahead_ms), ends_ms - 1)
            await self._take_back(customer, event, nth)
            used = {meter: units for meter, units in terms.in_order(event.quantities).items() if units > 0}
            if not await self._serve_event(customer, terms, used, event):
                refused.update(event.quantities)
                first_ms = event.at_ms if first_ms is None else first_ms
        usage = await self._store.usage(customer)
        overage = {
            meter: counts["overage"]
            for meter, counts in usage["meters"].items()
            if counts["overage"] and not self._store.catalog.meters[meter].is_spend
        }
        return TrialResult(overage, dict(refused), first_ms)

    async def _take_back(self, customer: str, event: LoggedEvent, nth: int) -> None:
        """Take back the units of a correction, as it was done: nothing of a replay has been sent."""
        taken_back = {meter: -units for meter, units in event.quantities.items() if units < 0}
        if taken_back:
            asked = CorrectionRequest(
                customer=customer, quantities=taken_back, reason=_REPLAY, correction_id=f"{nth}", by=_REPLAY
            )
            await restore_units(self._store, asked, _read_none_billed)

    async def _serve_event(
        self, customer: str, terms: TrialTerms, used: Mapping[str, int], event: LoggedEvent
    ) -> bool:
        """Decide as the request was decided: hold what its line consumes, then record all that it used."""
        asked = {
            meter: Demand(needed=terms.needed(meter, units), taken=units if meter in terms.consumed else 0)
            for meter, units in used.items()
        }
        # The model is known when the request ends: until then what is left must do for the dearest one.
        decided, reply = await self._store.decide(
            self._store.cache.get(customer, subjects=event.subjects),
            lambda view, mode: prepare_asking(view, asked, mode, model=""),
        )
        if not read_decision(decided, reply).allowed:
            return False
        held = HeldQuantities.of(decided, reply[1] // HOLD_SLOT_MS)
        rated = {meter: units for meter, units in used.items() if meter not in terms.consumed}
        # Only prices go by the model: of derived meters the log has its own entries.
        counted = UsedQuantities(used, rated, {"model": event.model} if event.model else {}, measured={})
        await self._store.settle_acknowledged([Settlement(decided.view, held=held, used=counted)])
        return True


def _ahead_ms(terms: TrialTerms) -> int:
    """Shift of the replayed past into the future (ms): a server drops what ended in the past.

    A multiple of all windows, so that these begin at the same instants. Where there is none within reach, as
    with two windows of odd seconds, they begin at other instants.
    """
    step_ms = lcm(*terms.windows_ms())
    ahead_ms = -(-_LEAST_AHEAD_MS // step_ms) * step_ms
    return ahead_ms if ahead_ms <= _MOST_AHEAD_MS else _LEAST_AHEAD_MS
