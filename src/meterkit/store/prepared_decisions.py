"""Decisions, compiled and packed: of app demands and of reservations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from meterkit.decisions import refusal_reasons
from meterkit.decisions.compiled_decision import (
    UNKNOWN_MODEL,
    BoundProgram,
    ModelPricing,
    add_derived,
    compile_program,
    demands_of,
    model_terms_to_hold,
)
from meterkit.decisions.limit_policies import Demand
from meterkit.redis.connection import pack_each
from meterkit.store.remainders import NOTHING_SAID, pack_refusal
from meterkit.store.replies import ALLOWED, IN_FLIGHT, REFUSED
from meterkit.store.script_arguments import pack_head
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.catalog import Route
    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.decision import Decision
    from meterkit.decisions.subjects import SubjectDemand
    from meterkit.store.remainders import LatestReply
    from meterkit.store.views import CustomerView


Prepare = Callable[["CustomerView", str], PreparedDecision]
"""Prepares a decision by a customer's view, for a mode of the decision script."""


def prepare_holding(
    view: CustomerView,
    quantities: Mapping[str, int],
    mode: str = "d",
    *,
    route: Route | None = None,
    model: str | None = None,
    spare: int = 0,
) -> PreparedDecision:
    """Decision that holds quantities if ``spare`` more units are left of each; no ``route`` off a request."""
    at = model_terms_to_hold(
        (model,), view.prepaid, quantities, view.entitlements, holds_rows=view.cache.holds_rows
    )
    held = at.add_price_rows(quantities)
    demands = {name: Demand.of(held[name], spare) for name in held}
    program = _compile_demands(view, demands, in_flight=False, at=at)
    return PreparedDecision(view, program, mode, route=route, reserved=held)


def prepare_asking(
    view: CustomerView,
    demands: Mapping[str, Demand],
    mode: str = "d",
    *,
    in_flight: bool = False,
    model: str | None = None,
) -> PreparedDecision:
    """Decision about an app's own demands, which are in flight or of a model only if the app says so."""
    cache = view.cache
    costs = None if view.prepaid is None else view.prepaid.decision_costs(model)
    models = (model,) if model else ()
    at = ModelPricing.of(costs, demands, models, view.entitlements, holds_rows=cache.holds_rows)
    asked = at.add_price_rows(demands)

    def prepare() -> PreparedDecision:
        compile_asked = partial(_compile_demands, view, asked, in_flight=in_flight, at=at)
        given = view.entitlements
        if view.subjects is not None or not cache.is_shared(given):
            return PreparedDecision(view, compile_asked(), mode)
        plan = id(given), view.prepaid is not None, view.effective.keeps_limits, in_flight
        return PreparedDecision(
            view, cache.cache_asked((*plan, *asked.items(), *at.key), compile_asked), mode
        )

    return view.memoize((*asked.items(), mode, in_flight, *at.key), prepare)


def _compile_demands(
    view: CustomerView,
    demands: Mapping[str, Demand],
    *,
    in_flight: bool = True,
    route: Route | None = None,
    at: ModelPricing = UNKNOWN_MODEL,
) -> Program:
    """Compile demands by the customer's plan, a route's own rates and the subjects' limits."""
    rates_only = route is not None and route.always
    program = compile_program(
        view.entitlements,
        view.catalog,
        demands,
        in_flight=in_flight,
        rates_only=rates_only,
        prepaid=view.prepaid,
        route=route,
        keeps=view.effective.keeps_limits,
        at=at,
    )
    if view.subjects is None:
        return program
    return view.subjects.extend(program, demands, in_flight=in_flight, rates_only=rates_only, at=at)


class PreparedReservation:
    """Decision about a route that reserves, compiled once and bound to the quantities of each request.

    Args:
        view: the customer.
        route: the route.
        meters: meters with reserved quantities.
        at: terms of the requested model.
        models: models that the request names.
        free: money meters that the request certainly adds nothing to.

    Attributes:
        bound: binds the program to quantities.
        latest_reply: the store's latest reply about these ceilings of the customer.
    """

    __slots__ = (
        "_at",
        "_consumed",
        "_demands",
        "_head",
        "_program",
        "_route",
        "_tails",
        "_view",
        "bound",
        "latest_reply",
    )

    def __init__(
        self,
        view: CustomerView,
        route: Route,
        meters: Iterable[str],
        at: ModelPricing,
        models: Sequence[str],
        free: Collection[str] = (),
    ) -> None:
        self._demands = demands = demands_of(route, view.cache.catalog, models, free)
        self._view = view
        self._route = route
        self._at = at
        self._consumed = {name: demands[name].taken if name in demands else 0 for name in meters}
        self._program = program = self.compile(dict.fromkeys(self._consumed, 1))
        self.bound: BoundProgram = BoundProgram(program, self._consumed)
        self.latest_reply: LatestReply = view.find_reply(program.ceilings)
        others = view.pack_subjects(program.subjects)
        self._head = pack_head(program, view.keys, sha=view.cache.decide.sha, rev=view.rev, others=others)
        self._tails = {mode: pack_each(program.trailing_arguments(mode)) for mode in "ds"}

    def bind(self, quantities: Mapping[str, int], mode: str) -> PreparedDecision:
        """Decision that reserves these quantities."""
        return PreparedDecision(
            self._view, self._program, mode, route=self._route, reserved=quantities, binder=self
        )

    def ask_subjects(self, quantities: Mapping[str, int]) -> tuple[SubjectDemand, ...]:
        """Demands on the customer's subjects, with these quantities reserved."""
        subjects = self._view.subjects
        if subjects is None or not self._program.subjects:
            return ()
        demands = {**self._demands, **self._bind_demands(quantities)}
        return subjects.ask(demands, in_flight=True, rates_only=self._route.always, at=self._at)

    def _bind_demands(self, quantities: Mapping[str, int]) -> dict[str, Demand]:
        return {name: Demand.of(quantity + self._consumed[name]) for name, quantity in quantities.items()}

    def pack(
        self, quantities: Mapping[str, int], mode: str, asked: tuple[SubjectDemand, ...]
    ) -> tuple[bytes, bytes]:
        """See :meth:`CustomerView.pack_decide`; ``asked``: the demands on subjects."""
        tail = self._tails.get(mode)
        if tail is None or not self.bound.is_exact:
            return self._view.pack_decide(self.compile(quantities), mode)
        terms = self._view.terms(self._program.keep_ms, *self.bound.numbers(quantities))
        return self._head, pack_each((terms,)) + tail + self._view.pack_subjects(asked).arguments

    def compile(self, quantities: Mapping[str, int]) -> Program:
        """Exact program, with these quantities reserved."""
        demands = {**self._demands, **self._bind_demands(quantities)}
        return _compile_demands(self._view, demands, route=self._route, at=self._at)


def prepare_reserving(
    view: CustomerView,
    route: Route,
    quantities: Mapping[str, int],
    mode: str = "d",
    *,
    models: Sequence[str] = (),
    free: frozenset[str] = frozenset(),
) -> PreparedDecision:
    """Decision about a route that reserves quantities until the true ones are known.

    Args:
        view: the customer.
        route: the route.
        quantities: meter to the reserved quantity, in addition to the one that the route consumes.
        mode: of the decision script.
        models: models that the request names. Meters derived from them limit the request, too. Credits are
            held at the dearest one's price; with no model, at the highest price.
        free: money meters that the request certainly adds nothing to.
    """
    reserved: dict[str, int] = dict(quantities)
    limited = models
    if view.cache.derives:
        limited = view.cache.routes.models_of(route, models)
        reserved = add_derived(view.cache.catalog.meters, quantities, limited)
    rows = view.cache.holds_rows
    at = model_terms_to_hold(models, view.prepaid, quantities, view.entitlements, holds_rows=rows)
    reserved |= {row: quantities[name] + route.consume.get(name, 0) for name, row in at.rows.items()}
    asked = demands_of(route, view.cache.catalog, limited) if view.cache.derives else ()
    key = ("reserve", id(route), free, *asked, "", *reserved, *at.key)
    prepared = view.memoize(key, lambda: PreparedReservation(view, route, reserved, at, limited, free))
    return prepared.bind(reserved, mode)


def read_decision(decided: PreparedDecision, reply: Any) -> Decision:
    """Decision of a final reply. What a refusal says is left is kept for decisions without the store."""
    if reply[0] == REFUSED and decided.refusal is None:
        decided.latest_reply.packed = pack_refusal(decided.exact(), reply)
    elif not decided.latest_reply.packed:
        decided.latest_reply.packed = NOTHING_SAID
    return decided.refusal or read_limits(decided, reply)


def read_limits(decided: PreparedDecision, reply: Any, *, degraded: bool = False) -> Decision:
    """Decision of a reply by the limits alone, without a refusal by the customer's state."""
    view, end_ms = decided.view, decided.period_end_ms(reply[1])
    customer, plan = view.customer, view.effective.plan.key
    if reply[0] == ALLOWED:
        found = refusal_reasons.allowed_decision(
            decided.program, reply, end_ms, customer=customer, plan=plan, degraded=degraded
        )
    else:
        is_in_flight = reply[0] == IN_FLIGHT
        found = (
            refusal_reasons.IN_FLIGHT
            if is_in_flight
            else refusal_reasons.refused_decision(decided.exact(), reply, end_ms, view.next_limit)
        )
        found = replace(found, customer=customer, plan=plan, degraded=degraded)
    if not decided.shadow:
        return found
    return replace(decided.waived or found, allowed=True, shadow=True, degraded=degraded)
