"""Fallback while the store is down: rates are counted in this process, by the last known plan."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.fallback_rules import EMPTY, advance, decide_by_rates
from meterkit.decisions.keys import rate_field
from meterkit.decisions.limit_policies import rate_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Route
    from meterkit.decisions.fallback_rules import Window
    from meterkit.store.prepared_decisions import Prepare
    from meterkit.store.views import CustomerView, PreparedDecision

_CUSTOMERS_MAX: Final = 10_000


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


class Fallback:
    """Decides in one process while the store is down. Thread-safe.

    It uses the last known plan, or the rates of the default plan. Rates start at 0. An LRU cache has the
    counts of ten thousand customers, and of as many IP addresses.

    Args:
        now_ms: this process's clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._counted: dict[bool, dict[str, dict[str, Window]]] = {False: {}, True: {}}
        self._lock = Lock()

    def decide(self, view: CustomerView, route: Route, prepare: Prepare | None) -> FallbackDecision:
        """Decide a request of a route; if allowed, it is counted in rates.

        ``prepare`` prepares the decision; None: that of the route.
        """
        now_ms = self._now_ms()
        view = view.cache.newest(view)
        effective = view.effective
        if now_ms >= effective.valid_until_ms or now_ms >= effective.bounds.end_ms:
            # Derive the plan again: a trial, a grace or a period has ended since.
            view = view.cache.learn(view, [0, now_ms, view.rev.encode(), view.state.dump().encode()])
        decided = view.prepare(route) if prepare is None else prepare(view, "d")
        view = decided.view
        with self._lock:
            known = self._find_windows(view)
            reply, counts = decide_by_rates(decided.exact(), known, view.all_left, now_ms)
            known.update(counts)
        return FallbackDecision(decided, reply)

    def count(self, view: CustomerView, quantities: Mapping[str, int]) -> None:
        """Count usage that was not known at admission into the rates of its meters."""
        now_ms = self._now_ms()
        with self._lock:
            known = self._find_windows(view)
            for meter, quantity in quantities.items():
                for rate in view.entitlements[meter].rates:
                    field = rate_field(meter, rate.window_ms, rate.algorithm)
                    kind, window, _, refill = rate_numbers(rate, meter)
                    found, _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
                    slot, counted, before = found
                    known[field] = slot, counted + quantity, before

    def _find_windows(self, view: CustomerView) -> dict[str, Window]:
        customers = self._counted[view.anonymous]
        known = customers.pop(view.customer, None)
        if known is None:
            known = {}
            if len(customers) >= _CUSTOMERS_MAX:
                del customers[next(iter(customers))]
        customers[view.customer] = known
        return known


def is_plan_known(view: CustomerView) -> bool:
    """Whether the store has confirmed the plan, so that it is not the default of an unknown customer."""
    own = view.base or view
    return view.anonymous or view.rev != NO_STATE or own.left is not None
