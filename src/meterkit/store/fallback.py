"""Fallback while the store is away: rates counted in this process, each customer as last known."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.in_process import EMPTY, NO_REMAINDERS, advance, decide_by_rates
from meterkit.decisions.keys import rate_field
from meterkit.decisions.policies import rate_numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Route
    from meterkit.decisions.in_process import Window
    from meterkit.store.prepared_decisions import Prepare
    from meterkit.store.views import CustomerView, PreparedDecision

_CUSTOMERS_MAX: Final = 10_000


class FallbackDecision(NamedTuple):
    """How a request was decided without the store.

    Attributes:
        decided: what was asked of the plan.
        reply: as the decision script's.
    """

    decided: PreparedDecision
    reply: list[int]

    @property
    def plan(self) -> str:
        """The key of the plan by which that was."""
        return self.decided.view.effective.plan.key


class Fallback:
    """Decides in place of a store that is away, for one process.

    By the plan as it was last known, and by the rates of the default plan where nothing is. Rates begin anew;
    what they have counted is kept of ten thousand customers, and as many addresses: who has asked for nothing
    for longest is forgotten first. May be asked from several threads.

    Args:
        now_ms: this process's clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._counted: dict[bool, dict[str, dict[str, Window]]] = {False: {}, True: {}}
        self._lock = Lock()

    def decide(self, view: CustomerView, route: Route, prepare: Prepare | None) -> FallbackDecision:
        """Decide a request of a line; it is counted in rates where that allows it.

        ``prepare`` makes what is asked; None: what the line asks of each request.
        """
        now_ms = self._now_ms()
        view = view.cache.newest(view)
        effective = view.effective
        if now_ms >= effective.valid_until_ms or now_ms >= effective.bounds.end_ms:
            # Derive the state again: a trial, a grace or a period has ended since the last look.
            view = view.cache.learn(view, [0, now_ms, view.rev.encode(), view.state.dump().encode()])
        decided = view.prepare(route) if prepare is None else prepare(view, "d")
        view = decided.view
        with self._lock:
            known = self._known(view)
            reply, counts = decide_by_rates(decided.exact(), known, view.left or NO_REMAINDERS, now_ms)
            known.update(counts)
        return FallbackDecision(decided, reply)

    def count(self, view: CustomerView, quantities: Mapping[str, int]) -> None:
        """Count usage that was not requested at admission into the rates of its meters."""
        now_ms = self._now_ms()
        with self._lock:
            known = self._known(view)
            for meter, quantity in quantities.items():
                for rate in view.entitlements[meter].rates:
                    field = rate_field(meter, rate.window_ms, rate.algorithm)
                    kind, window, _, refill = rate_numbers(rate, meter)
                    found, _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
                    slot, counted, before = found
                    known[field] = slot, counted + quantity, before

    def _known(self, view: CustomerView) -> dict[str, Window]:
        customers = self._counted[view.anonymous]
        known = customers.pop(view.customer, None)
        if known is None:
            known = {}
            if len(customers) >= _CUSTOMERS_MAX:
                del customers[next(iter(customers))]
        customers[view.customer] = known
        return known


def is_plan_known(view: CustomerView) -> bool:
    """Whether the plan is the customer's own, and not the default of a customer not looked up yet."""
    return view.anonymous or view.rev != NO_STATE or view.left is not None
