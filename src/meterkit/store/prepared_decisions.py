"""Idempotency keys: the key of a request, and decisions about requests that may repeat an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from meterkit.decisions import verdict
from meterkit.decisions.in_process import NOTHING_LEFT, left_by
from meterkit.decisions.packed import joined
from meterkit.decisions.policies import CEILING, Demand
from meterkit.decisions.program import Binding, demands_of, held_at, with_derived
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.store.replies import ALLOWED, IN_FLIGHT, REFUSED, REPEAT
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision
    from meterkit.decisions.program import AtModel, Program
    from meterkit.decisions.subjects import AskedOfSubject
    from meterkit.store.views import CustomerView


def repeat_digest(route: Route, scope: Scope) -> str | None:
    """A digest of what makes a request the same as another of the customer; None: it has no idempotency key.

    That is method, path and the values of the route's header, all of them where there are several: whichever
    the app looks at, it is the same. An empty one is none.
    """
    name = route.idempotency_header
    if name is None or scope["type"] != "http":
        return None
    wanted = name.lower().encode("latin-1")
    values = [value for key, value in scope["headers"] if key.lower() == wanted]
    if not any(values):
        return None
    digest = blake2b(digest_size=16)
    for part in (scope["method"].upper().encode(), scope["path"].encode("utf-8", "surrogatepass"), *values):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()


Prepare = Callable[["CustomerView", str], PreparedDecision]
"""Makes a decision of a customer's view, in a mode of the decision script."""


def marking(prepare: Prepare, digest: str) -> Prepare:
    """What makes the decision about a request with an idempotency key.

    Args:
        prepare: makes it of one without.
        digest: of the key, in hex digits.
    """

    def prepare_marked(view: CustomerView, mode: str) -> PreparedDecision:
        decision = prepare(view, mode)
        return decision if decision.refusal is not None else MarkedDecision(decision, digest)

    return prepare_marked


class MarkedDecision(PreparedDecision):
    """A decision that marks its request as in flight, or says that it is a repeat.

    Args:
        decision: the same without an idempotency key.
        digest: of the key.
    """

    __slots__ = ()

    def __init__(self, decision: PreparedDecision, digest: str) -> None:
        for name in PreparedDecision.__slots__:
            setattr(self, name, getattr(decision, name))
        self.digest = digest
        self.settlements = {}
        self.packed = self._packed()

    def as_repeat(self) -> PreparedDecision:
        """The settlement of a repeat: it holds no quantities, and records nothing."""
        repeat = MarkedDecision(self, "")
        repeat.is_repeat = True
        repeat.held = repeat.recorded = {}
        repeat.subjects = {
            kind: hold._replace(quantities={}, spent=0) for kind, hold in self.subjects.items()
        }
        return repeat

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Give back what was held for a request whose waiting was cancelled."""
        if isinstance(reply, ReplyError):
            return
        if reply[0] == REPEAT:
            self.as_repeat().on_unclaimed_reply([ALLOWED, *reply[1:]])
        elif reply[0] == IN_FLIGHT and self.shadow:
            super().on_unclaimed_reply([ALLOWED, *reply[1:]])
        else:
            super().on_unclaimed_reply(reply)

    def _packed(self) -> tuple[bytes, bytes]:
        """See :meth:`CustomerView.pack_decide`; with the marks' key, and the digest beside all else."""
        view, program = self.view, self.exact()
        own = len(program.measures) - sum(len(one.measures) for one in program.subjects)
        keys, ceilings = view.keys, sum(measure.kind == CEILING for measure in program.measures[:own])
        others = view.pack_subjects(program.subjects)
        further = joined(f'{{"digest":"{self.digest}","ceilings":{ceilings}}}', program.further)
        first = (keys.counters, keys.state, keys.totals, keys.grants, keys.ledger, keys.levels, keys.marks)
        names = (*first, *others.keys)
        head: tuple[str | int, ...] = ("EVALSHA", view.cache.decide.sha, len(names), *names, view.rev)
        tail: tuple[str | bytes, ...] = (
            view.terms(program.keep_ms, *program.numbers),
            self.mode,
            further,
            *program.fields,
        )
        # Behind these: the clock.
        count = len(head) + len(tail) + others.width + 1
        return b"*%d\r\n%b" % (count, pack_each(head)), pack_each(tail) + others.arguments


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


def read_decision(decided: PreparedDecision, reply: Any) -> Decision:
    """What a concluded reply says; what is left by a refusal is remembered for when the store is away."""
    view = decided.view
    view.left = view.left or NOTHING_LEFT
    if reply[0] == REFUSED and decided.refusal is None:
        view.left = {**view.left, **left_by(decided.exact(), reply, decided.period_end_ms(reply[1]))}
    return decided.refusal or read_limits(decided, reply)


def read_limits(decided: PreparedDecision, reply: Any, *, degraded: bool = False) -> Decision:
    """What a reply says of the limits, whatever follows from the customer's state alone."""
    view, end_ms = decided.view, decided.period_end_ms(reply[1])
    customer, plan = view.customer, view.effective.plan.key
    if reply[0] == ALLOWED:
        found = verdict.allowed(
            decided.program, reply, end_ms, customer=customer, plan=plan, degraded=degraded
        )
    else:
        is_in_flight = reply[0] == IN_FLIGHT
        found = verdict.IN_FLIGHT if is_in_flight else verdict.refused(decided.exact(), reply, end_ms)
        found = replace(found, customer=customer, plan=plan, degraded=degraded)
    if not decided.shadow:
        return found
    return replace(decided.waived or found, allowed=True, shadow=True, degraded=degraded)
