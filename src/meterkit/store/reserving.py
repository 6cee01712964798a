"""Decisions about routes that reserve: compiled once, and bound to the quantities of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.policies import Demand
from meterkit.decisions.program import Binding, demands_of, held_at, with_derived
from meterkit.redis.connection import pack_each
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.catalog import Route
    from meterkit.decisions.program import AtModel, Program
    from meterkit.decisions.subjects import AskedOfSubject
    from meterkit.store.views import CustomerView


class PreparedReservation:
    """The decision about a route that reserves quantities, which are bound to it for each request.

    Args:
        view: the customer.
        route: the route.
        meters: whose quantities are reserved.
        at: what follows from its model.
        models: that the request names.
        free: money meters that the request certainly adds nothing to.

    Attributes:
        bound: what the program comes to with quantities.
    """

    __slots__ = ("_at", "_consumed", "_demands", "_head", "_program", "_route", "_tails", "_view", "bound")

    def __init__(
        self,
        view: CustomerView,
        route: Route,
        meters: Iterable[str],
        at: AtModel,
        models: Sequence[str],
        free: Collection[str] = (),
    ) -> None:
        self._demands = demands = demands_of(route, view.cache.catalog, models, free)
        self._view = view
        self._route = route
        self._at = at
        self._consumed = {name: demands[name].taken if name in demands else 0 for name in meters}
        self._program = program = self.compile(dict.fromkeys(self._consumed, 1))
        self.bound: Binding = Binding(program, self._consumed)
        self._head = view.pack_head(program, view.pack_subjects(program.subjects))
        self._tails = {mode: pack_each(program.behind_terms(mode)) for mode in "ds"}

    def bind(self, quantities: Mapping[str, int], mode: str) -> PreparedDecision:
        """The decision that reserves so much of each meter."""
        return PreparedDecision(
            self._view, self._program, mode, route=self._route, reserved=quantities, reserving=self
        )

    def ask_subjects(self, quantities: Mapping[str, int]) -> tuple[AskedOfSubject, ...]:
        """The demands on the customer's subjects, with so much reserved."""
        subjects = self._view.subjects
        if subjects is None or not self._program.subjects:
            return ()
        demands = {**self._demands, **self._bound_demands(quantities)}
        return subjects.ask(demands, in_flight=True, rates_only=self._route.always, at=self._at)

    def _bound_demands(self, quantities: Mapping[str, int]) -> dict[str, Demand]:
        return {name: Demand.of(quantity + self._consumed[name]) for name, quantity in quantities.items()}

    def pack(
        self, quantities: Mapping[str, int], mode: str, asked: tuple[AskedOfSubject, ...]
    ) -> tuple[bytes, bytes]:
        """See :meth:`CustomerView.pack_decide`; ``asked``: of subjects."""
        tail = self._tails.get(mode)
        if tail is None or not self.bound.is_exact:
            return self._view.pack_decide(self.compile(quantities), mode)
        terms = self._view.terms(self._program.keep_ms, *self.bound.numbers(quantities))
        return self._head, pack_each((terms,)) + tail + self._view.pack_subjects(asked).arguments

    def compile(self, quantities: Mapping[str, int]) -> Program:
        """The demand, to the unit, with so much reserved."""
        view, route = self._view, self._route
        demands = {**self._demands, **self._bound_demands(quantities)}
        return view.compile(demands, route=route, at=self._at)


def prepare_reserving(
    view: CustomerView,
    route: Route,
    quantities: Mapping[str, int],
    mode: str = "d",
    *,
    models: Sequence[str] = (),
    free: frozenset[str] = frozenset(),
) -> PreparedDecision:
    """The decision about a route that sets quantities aside until the true ones are known.

    Args:
        view: the customer.
        route: the route.
        quantities: meter to what is set aside besides what the route consumes of it.
        mode: of the decision script.
        models: that the request names: meters derived from those and listed in the plan limit it, too;
            credits are held at the price of the model, at the highest where there is none or several.
        free: money meters that the request certainly adds nothing to.
    """
    reserved: dict[str, int] = dict(quantities)
    limited = models
    if view.cache.derives:
        limited = view.cache.routes.models_of(route, models)
        reserved = with_derived(view.cache.catalog.meters, quantities, limited)
    rows = view.cache.holds_rows
    at = held_at(models, view.prepaid, quantities, view.entitlements, holds_rows=rows)
    reserved |= {row: quantities[name] + route.consume.get(name, 0) for name, row in at.rows.items()}
    asked = demands_of(route, view.cache.catalog, limited) if view.cache.derives else ()
    key = ("reserve", id(route), free, *asked, "", *reserved, *at.key)
    prepared = view.once(key, lambda: PreparedReservation(view, route, reserved, at, limited, free))
    return prepared.bind(reserved, mode)
