"""Fallback while the store is down: rates are counted in this process, by the last known plan.

A ceiling admits what the store's latest reply left of it, less what this process has admitted since; see
:mod:`meterkit.store.remainders`. If no reply of this period is known, it admits what the plan gives a new
customer. Meters that share a credit share its remainder: if one has used a tenth of its own, the others lose
a tenth of theirs.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, ParamSpec

from meterkit.decisions.fallback_rules import EMPTY, RemainingQuantity, advance, ceilings_of, decide_by_rates
from meterkit.decisions.keys import rate_field
from meterkit.decisions.limit_policies import ceiling_of, period_policy, rate_numbers
from meterkit.decisions.subjects import is_of_subject
from meterkit.redis.store_clock import CLOCK_JITTER_MS
from meterkit.store.remainders import StoredRemainder, read_remainders
from meterkit.store.replies import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from meterkit.catalog import Route
    from meterkit.decisions.fallback_rules import Window
    from meterkit.store.prepared_decisions import Prepare
    from meterkit.store.views import CustomerView, PreparedDecision

_CUSTOMERS_MAX: Final = 10_000
_NOTHING: Final[Mapping[str, int]] = {}
_logger: Final = logging.getLogger("meterkit.store")
_P = ParamSpec("_P")


def _never_raises(note: Callable[_P, None]) -> Callable[_P, None]:
    """Log what a count in this process raises: the usage itself is settled, and the app goes on."""

    @wraps(note)
    def noted(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            note(*args, **kwargs)
        except Exception:
            _logger.exception("usage could not be counted in this process")

    return noted


class FallbackDecision(NamedTuple):
    """Decision of a request without the store.

    Attributes:
        decided: the prepared decision.
        reply: in the form of the decision script's.
    """

    decided: PreparedDecision
    reply: Sequence[int]

    @property
    def plan(self) -> str:
        """Key of the plan."""
        return self.decided.view.effective.plan.key


class CustomerCounts:
    """Counts of one customer in this process, for decisions without the store.

    Attributes:
        windows: counters of rates, by field.
        admitted: by policy and its subjects, the time of the store's latest reply and the units since then;
            by policy and another meter that uses its credit, the units of that one since this policy's reply.
        unchecked: units by meter that are not compared with the customer's limits yet; see ``excess_units``.
    """

    __slots__ = ("admitted", "unchecked", "windows")

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}
        self.admitted: dict[tuple[str, object], tuple[int, int]] = {}
        self.unchecked = Counter[str]()


class Remainders:
    """Units that a customer may still use without the store, by policy.

    Args:
        view: the customer, by a view of the current period.
        counts: what this process has admitted.
    """

    def __init__(self, view: CustomerView, counts: CustomerCounts) -> None:
        self._view = view
        self._counts = counts
        self._subjects = None if view.subjects is None else view.subjects.given
        self._stored = read_remainders(
            (view.base or view).latest_replies, None if view.base is None else view.latest_replies
        )

    def units_left(self, policy: str, meter: str, limit: int) -> RemainingQuantity:
        """Units left under a policy.

        Args:
            policy: its name.
            meter: what it limits.
            limit: what it admits in a period, without grants and credits.
        """
        latest = self._latest_remainder(policy, meter, limit)
        quantity = latest.quantity - self._admitted_since(latest.at_ms, self._key_of(policy))
        for other, remainder in self._meters_sharing_credit(policy, meter):
            admitted = self._admitted_since(latest.at_ms, (policy, other))
            quantity -= -(-admitted * max(0, latest.quantity) // max(1, remainder.quantity))
        is_known = latest.at_ms > self._view.effective.bounds.start_ms
        return RemainingQuantity(quantity, latest.is_backed or latest.quantity > limit, is_known)

    def admit(self, policy: str, meter: str, limit: int, quantity: int) -> None:
        """Count admitted units; a negative quantity returns some."""
        at_ms = self._latest_remainder(policy, meter, limit).at_ms
        self._add_admitted(at_ms, self._key_of(policy), quantity)
        for other, remainder in self._meters_sharing_credit(policy, meter):
            self._add_admitted(remainder.at_ms, (period_policy(other), meter), quantity)
        if not is_of_subject(policy):
            self._counts.unchecked[meter] += quantity

    def _meters_sharing_credit(self, policy: str, meter: str) -> Iterator[tuple[str, StoredRemainder]]:
        """Other meters that use a credit that this one uses, and the latest remainder of each."""
        prepaid = None if is_of_subject(policy) else self._view.prepaid
        for other in () if prepaid is None else prepaid.meters_sharing_credit((meter,)):
            ceiling = None if other == meter else ceiling_of(self._view.entitlements[other])
            if ceiling is not None:
                yield other, self._latest_remainder(period_policy(other), other, ceiling)

    def _latest_remainder(self, policy: str, meter: str, limit: int) -> StoredRemainder:
        """Units left at the store's latest reply of this period; without one, at the start of the period."""
        view = self._view
        start_ms, stored = view.effective.bounds.start_ms, self._stored.get(policy)
        if stored is not None and stored.at_ms > start_ms:
            return stored
        more = 0 if view.prepaid is None or is_of_subject(policy) else view.prepaid.recurring_units(meter)
        return StoredRemainder(limit + more, start_ms, is_backed=False)

    def _add_admitted(self, at_ms: int, key: tuple[str, object], quantity: int) -> None:
        self._counts.admitted[key] = at_ms, max(0, self._admitted_since(at_ms, key) + quantity)

    def _admitted_since(self, at_ms: int, key: tuple[str, object]) -> int:
        since_ms, admitted = self._counts.admitted.get(key, (at_ms, 0))
        return admitted if since_ms == at_ms else 0

    def _key_of(self, policy: str) -> tuple[str, object]:
        return policy, self._subjects if is_of_subject(policy) else None


class Fallback:
    """Decides in one process while the store is down. Thread-safe.

    It uses the last known plan, or the default plan. Rates start at 0. An LRU cache has the counts of ten
    thousand customers, and of as many IP addresses. Time stands still while the clock is behind by a second
    at most, as in the store.

    Args:
        now_ms: this process's clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._clock_ms = now_ms
        self._latest_ms = 0
        self._counted: dict[bool, dict[str, CustomerCounts]] = {False: {}, True: {}}
        self._lock = Lock()

    def decide(self, view: CustomerView, route: Route, prepare: Prepare | None) -> FallbackDecision:
        """Decide a request of a route; if allowed, it is counted in rates and under ceilings.

        ``prepare`` prepares the decision; None: that of the route.
        """
        now_ms = self._now_ms()
        view = self._renew_view(view, now_ms)
        decided = view.prepare(route) if prepare is None else prepare(view, "d")
        view, program = decided.view, decided.exact()
        with self._lock:
            counts = self._find_counts(view.customer, is_anonymous=view.anonymous)
            remainders = Remainders(view, counts)
            ceilings = [measure for measure, _ in ceilings_of(program)]
            left_of = {
                one.policy.name: remainders.units_left(one.policy.name, one.policy.meter, one.limit)
                for one in ceilings
            }
            reply, windows = decide_by_rates(program, counts.windows, left_of, now_ms)
            is_admitted = decided.refusal is None and reply[0] == ALLOWED
            if is_admitted:
                counts.windows.update(windows)
            for one in ceilings if is_admitted else ():
                quantity = _held_under(decided, one.policy.name, one.policy.meter)
                if quantity:
                    remainders.admit(one.policy.name, one.policy.meter, one.limit, quantity)
        return FallbackDecision(decided, reply)

    @_never_raises
    def count(self, view: CustomerView, quantities: Mapping[str, int]) -> None:
        """Count usage that was not known at admission into the rates of its meters. Never raises."""
        now_ms = self._now_ms()
        with self._lock:
            known = self._find_counts(view.customer, is_anonymous=view.anonymous).windows
            for meter, quantity in quantities.items():
                for rate in view.entitlements[meter].rates:
                    field = rate_field(meter, rate.window_ms, rate.algorithm)
                    kind, window, _, refill = rate_numbers(rate, meter)
                    found, _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
                    slot, counted, before = found
                    known[field] = slot, counted + quantity, before

    @_never_raises
    def record(
        self, view: CustomerView, recorded: Mapping[str, int], decided: PreparedDecision | None = None
    ) -> None:
        """Count recorded usage under ceilings; ``decided`` has admitted some of it. Never raises."""
        view = self._renew_view(view, self._now_ms())
        held = _NOTHING if decided is None else decided.held
        with self._lock:
            remainders = Remainders(view, self._find_counts(view.customer, is_anonymous=view.anonymous))
            for meter in {*held, *recorded}:
                entitlement = view.entitlements.get(meter)
                limit = None if entitlement is None else ceiling_of(entitlement)
                more = recorded.get(meter, 0) - held.get(meter, 0)
                if limit is not None and more:
                    remainders.admit(period_policy(meter), meter, limit, more)
            for measure, _ in () if decided is None else ceilings_of(decided.program):
                name, meter = measure.policy.name, measure.policy.meter
                if decided is not None and is_of_subject(name):
                    more = recorded.get(meter, 0) - _held_under(decided, name, meter)
                    remainders.admit(name, meter, measure.limit, more)

    def pop_unchecked(self) -> dict[str, Counter[str]]:
        """Remove and return the units admitted under ceilings, by customer and meter."""
        with self._lock:
            found = {name: counts for name, counts in self._counted[False].items() if counts.unchecked}
            unchecked = {name: counts.unchecked for name, counts in found.items()}
            for counts in found.values():
                counts.unchecked = Counter()
        return unchecked

    def restore_unchecked(self, unchecked: Mapping[str, Counter[str]]) -> None:
        """Add units that :meth:`pop_unchecked` has removed."""
        with self._lock:
            for customer, units in unchecked.items():
                self._find_counts(customer, is_anonymous=False).unchecked.update(units)

    def _now_ms(self) -> int:
        now_ms = self._clock_ms()
        if not 0 < self._latest_ms - now_ms <= CLOCK_JITTER_MS:
            self._latest_ms = now_ms
        return self._latest_ms

    def _renew_view(self, view: CustomerView, now_ms: int) -> CustomerView:
        """View by which the customer is served now: a trial, a grace or a period may have ended."""
        view = view.cache.newest(view)
        effective = view.effective
        if now_ms >= effective.valid_until_ms or now_ms >= effective.bounds.end_ms:
            return view.cache.learn(view, [0, now_ms, view.rev.encode(), view.state.dump().encode()])
        return view

    def _find_counts(self, customer: str, *, is_anonymous: bool) -> CustomerCounts:
        customers = self._counted[is_anonymous]
        known = customers.pop(customer, None)
        if known is None:
            known = CustomerCounts()
            if len(customers) >= _CUSTOMERS_MAX:
                del customers[next(iter(customers))]
        customers[customer] = known
        return known


def _held_under(decided: PreparedDecision, policy: str, meter: str) -> int:
    """Units that an allowed decision holds under a ceiling."""
    if not is_of_subject(policy):
        return decided.held.get(meter, 0)
    hold = decided.subjects.get(policy.partition(":")[0])
    return 0 if hold is None else hold.quantities.get(meter, 0)
