"""The customers that a process knows: what follows from each one's state, and decisions prepared once."""

from __future__ import annotations

from copy import copy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from meterkit.decisions.customer_state import NO_STATE, CustomerState, holding_only, refusal_of
from meterkit.decisions.decision import Decision
from meterkit.decisions.grants import prepaid_of
from meterkit.decisions.keys import shard_of
from meterkit.decisions.policies import Demand
from meterkit.decisions.program import UNKNOWN_MODEL, AtModel, compile_program, held_at
from meterkit.decisions.subjects import renew_hold
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.connection import ReplyError
from meterkit.store.compiled_catalog import CompiledCatalog
from meterkit.store.replies import HELD
from meterkit.store.request_subjects import NO_HOLDS, NOTHING_PACKED, Subjects, collect_holds
from meterkit.store.script_terms import pack_head, pack_own, pack_terms
from meterkit.store.view_lru import ViewLru

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Route
    from meterkit.decisions.in_process import Left
    from meterkit.decisions.keys import CustomerKeys
    from meterkit.decisions.program import Binding, Program
    from meterkit.decisions.subjects import AskedOfSubject, SubjectHold
    from meterkit.store.request_subjects import GivenSubjects, PackedSubjects

_T = TypeVar("_T")

_PREPARED_MAX: Final = 256
_NOTHING: Final[dict[str, int]] = {}
_NONE_KEPT: Final[dict[Any, Any]] = {}
"""Stands for each dict that is made when it gets its first entry: most customers need few of them."""


class QuantityBinder(Protocol):
    """What binds the quantities of one request; see :mod:`meterkit.store.prepared_decisions`."""

    bound: Binding

    def ask_subjects(self, quantities: Mapping[str, int]) -> tuple[AskedOfSubject, ...]:
        """The demands on the customer's subjects, with so much reserved."""
        ...

    def pack(
        self, quantities: Mapping[str, int], mode: str, asked: tuple[AskedOfSubject, ...]
    ) -> tuple[bytes, bytes]:
        """See :meth:`meterkit.store.views.CustomerView.pack_decide`; ``asked``: of subjects."""
        ...

    def compile(self, quantities: Mapping[str, int]) -> Program:
        """The demand, to the unit, with so much reserved."""
        ...


class PreparedDecision:
    """A decision about one customer, packed except for the clock.

    Attributes:
        view: the customer, as of the state that it was prepared by.
        program: what is asked; where quantities are reserved, compiled for one of each.
        refusal: the refusal that follows from the state alone and only wants its rev confirmed, or None.
        shadow: whether it is counted and held whatever the limits say.
        waived: in shadow, the refusal that would follow from the state alone, or None.
        reserved: meter to what is set aside until the true quantity is known.
        mode: of the decision script.
        held: meter to what an allowed decision holds.
        recorded: meter to what is recorded besides the true quantities, when the request ends as billed.
        settlements: of requests so decided, by whether they are billed; each good for one slot of holds.
            Replaced, never changed; see :func:`meterkit.store.settlement.settle_decision`.
        unheld: of requests that were so decided without the store, likewise.
        subjects: what an allowed decision holds of the customer's subjects, by kind.
        digest: of the request's idempotency key; empty: it has none.
        is_repeat: whether a request with that key was billed before.
        is_allotted: whether it stands for units of allotments; see :mod:`meterkit.store.allotment`.
    """

    __slots__ = (
        *("_holds", "_reserving", "digest", "held", "is_allotted", "is_repeat", "mode", "packed", "program"),
        *("recorded", "refusal", "reserved", "settlements", "shadow", "subjects", "unheld", "view", "waived"),
    )

    def __init__(
        self,
        view: CustomerView,
        program: Program,
        mode: str,
        *,
        route: Route | None = None,
        reserved: Mapping[str, int] = _NOTHING,
        reserving: QuantityBinder | None = None,
    ) -> None:
        self.view = view
        self.program = program
        self.shadow = (route or view.cache.catalog).enforcement == "shadow"
        refusal = None if mode == "h" else refusal_of(view.customer, view.effective, route)
        self.refusal = None if self.shadow else refusal
        self.waived = refusal if self.shadow else None
        self.settlements: dict[bool, Any] = _NONE_KEPT
        self.unheld: dict[bool, Any] = _NONE_KEPT
        self.reserved = reserved
        self.digest, self.is_repeat, self.is_allotted = "", False, False
        self._reserving = reserving
        self._holds = mode != "c" and (program.holds or bool(reserved))
        self.mode = mode = "v" if self.refusal else "s" if self.shadow and mode in "df" else mode
        if reserving is None:
            self.held, self.recorded = program.held, program.settled
            self.subjects = collect_holds(program.subjects)
            self.packed = view.pack_decide(program, mode)
        else:
            self.held, self.recorded = reserving.bound.held(reserved), reserving.bound.recorded
            asked = reserving.ask_subjects(reserved)
            self.subjects = collect_holds(asked)
            self.packed = reserving.pack(reserved, mode, asked)

    def exact(self) -> Program:
        """The demand, to the unit."""
        return self.program if self._reserving is None else self._reserving.compile(self.reserved)

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Give back what was held for a request whose waiting was cancelled."""
        if self._holds and not isinstance(reply, ReplyError) and reply[0] in HELD:
            self.view.cache.on_unclaimed(self, reply[1])

    def period_end_ms(self, now_ms: int) -> int:
        """The end of the period that an instant lies in."""
        bounds = self.view.effective.bounds
        return bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms


class CustomerView:
    """One customer, as of one state: what follows from it, and the decisions that are prepared by it.

    A view never changes: where the store has come to another state, another view takes its place. So
    threads that each have an event loop share it, and what is asked never comes of two states.

    Attributes:
        customer: the customer's id.
        cache: where the newest view of each customer is; and what all views have in common.
        rev: of the state.
        effective: plan, access and period.
        prepaid: the grants and credits to look for, or None.
        decisions: about routes, by the route's identity.
        settlements: how settlements of some meters look, packed as far as that can be.
        left: what was left of the policies that refused last; None: the store has not decided anything yet.
        linked: whether there is a Stripe customer.
        subjects: those of the customer's requests that this view is of; None: they have none.
        base: the view without subjects; None: this one.
    """

    __slots__ = (
        *("_data", "_prepared", "anonymous", "base", "cache", "customer", "decisions", "effective", "left"),
        *("entitlements", "linked", "prepaid", "rev", "settlements", "shard", "subjects"),
    )

    def __init__(
        self,
        cache: CustomerCache,
        customer: str,
        now_ms: int,
        *,
        anonymous: bool,
        rev: str = NO_STATE,
        data: bytes = b"",
    ) -> None:
        state = CustomerState.parse(data)
        by_ip = cache.catalog.anonymous if anonymous else None
        if by_ip is not None:
            state = CustomerState(plan=by_ip.plan)
            data = state.dump().encode()
        if state.plan is not None and state.plan not in cache.catalog.plans:
            cache.alarms.unknown_plan(customer, state.plan)
        self.cache = cache
        self.customer = customer
        self.anonymous = anonymous
        self.shard = shard_of(customer, cache.keys.shards)
        self.rev = rev
        self._data = data
        self.linked = state.stripe_customer is not None
        self.effective = cache.effective(state, now_ms)
        self.entitlements = cache.entitlements(self.effective)
        self.prepaid = prepaid_of(rev, state, self.effective, cache.prepaid, anonymous=anonymous)
        self.decisions: dict[int, PreparedDecision] = _NONE_KEPT
        self.settlements: dict[Any, Any] = _NONE_KEPT
        self.left: Mapping[str, Left] | None = None
        self._prepared: dict[tuple[object, ...], Any] = _NONE_KEPT
        self.subjects: Subjects | None = None
        self.base: CustomerView | None = None

    @property
    def state(self) -> CustomerState:
        """The state. It is read anew each time: as text it takes a third of the memory."""
        return CustomerState.parse(self._data)

    def of_subjects(self, given: GivenSubjects) -> Self:
        """The same customer, with subjects."""
        view = copy(self)
        view.base = self
        view.forget()
        of = self.customer, given, self.effective, self.entitlements
        view.subjects = Subjects(*of, self.cache.catalog, self.cache.keys)
        if self.rev != NO_STATE or self.left is not None:
            self.cache.alarms.undeclared_subjects(view.subjects, self.effective.plan.key)
        return view

    def forget(self) -> None:
        """Have all decisions prepared anew."""
        self.decisions, self._prepared = _NONE_KEPT, _NONE_KEPT

    @property
    def keys(self) -> CustomerKeys:
        """Names of the customer's keys."""
        return self.cache.keys.customer(self.customer, anonymous=self.anonymous)

    def prepare(self, route: Route, mode: str = "d") -> PreparedDecision:
        """The decision about a route; :attr:`decisions` keeps it by the route's identity."""
        decision = self.decisions.get(id(route)) if mode == "d" else None
        if decision is None:
            keeps = self.effective.keeps_limits
            program = self.cache.program(
                self.entitlements, route, self.prepaid, keeps=keeps, subjects=self.subjects
            )
            decision = PreparedDecision(self, program, mode, route=route)
            if mode == "d":
                self.decisions = {**self.decisions, id(route): decision}
        return decision

    def prepare_holding(
        self,
        quantities: Mapping[str, int],
        mode: str = "d",
        *,
        route: Route | None = None,
        model: str | None = None,
        spare: int = 0,
    ) -> PreparedDecision:
        """Hold quantities, if ``spare`` more units are left of each; ``route`` is None off the request."""
        at = held_at((model,), self.prepaid, quantities, self.entitlements, holds_rows=self.cache.holds_rows)
        held = at.held(quantities)
        program = self.compile({name: Demand.of(held[name], spare) for name in held}, in_flight=False, at=at)
        return PreparedDecision(self, program, mode, route=route, reserved=held)

    def prepare_asking(
        self,
        demands: Mapping[str, Demand],
        mode: str = "d",
        *,
        in_flight: bool = False,
        model: str | None = None,
    ) -> PreparedDecision:
        """The decision about what the app itself asks for; in flight, and of a model, only if it says so."""
        costs = None if self.prepaid is None else self.prepaid.asked_costs(model)
        at = AtModel.of(costs, demands, model, self.entitlements, holds_rows=self.cache.holds_rows)
        asked = at.asked(demands)

        def asking() -> PreparedDecision:
            make, given = partial(self.compile, asked, in_flight=in_flight, at=at), self.entitlements
            if self.subjects is not None or not self.cache.is_shared(given):
                return PreparedDecision(self, make(), mode)
            plan = id(given), self.prepaid is not None, self.effective.keeps_limits, in_flight
            return PreparedDecision(self, self.cache.asked((*plan, *asked.items(), *at.key), make), mode)

        return self.once((*asked.items(), mode, in_flight, *at.key), asking)

    def prepare_renewing(
        self,
        held: Mapping[str, int],
        in_flight: tuple[str, ...],
        costs: Mapping[str, int] | None = None,
        subjects: Mapping[str, SubjectHold] = NO_HOLDS,
    ) -> PreparedDecision:
        """A decision that holds again what another held, whatever is left of it, at the same costs."""

        def renewing() -> PreparedDecision:
            demands = {name: Demand(needed=0, taken=held.get(name, 0)) for name in (*held, *in_flight)}
            kept, catalog = holding_only(self.entitlements, demands, in_flight), self.cache.catalog
            program = compile_program(kept, catalog, demands, prepaid=self.prepaid, at=AtModel(costs))
            if self.subjects is not None and subjects:
                held_of = tuple(renew_hold(kind, hold) for kind, hold in subjects.items())
                program = program.with_subjects(held_of)
            return PreparedDecision(self, program, "h")

        key = ("renew", *held.items(), *in_flight, *(costs or {}).items())
        return renewing() if subjects else self.once(key, renewing)  # Those of subjects seldom come twice.

    def compile(
        self,
        demands: Mapping[str, Demand],
        *,
        in_flight: bool = True,
        route: Route | None = None,
        at: AtModel = UNKNOWN_MODEL,
    ) -> Program:
        """What some demands ask of this customer's plan, and of a route's own rates."""
        rates_only = route is not None and route.always
        program = compile_program(
            *(self.entitlements, self.cache.catalog, demands),
            in_flight=in_flight,
            rates_only=rates_only,
            prepaid=self.prepaid,
            route=route,
            keeps=self.effective.keeps_limits,
            at=at,
        )
        if self.subjects is None:
            return program
        return self.subjects.extend(program, demands, in_flight=in_flight, rates_only=rates_only, at=at)

    def once(self, key: tuple[object, ...], prepare: Callable[[], _T]) -> _T:
        """The decision prepared for a key; if there are too many, all are prepared anew."""
        found: _T | None = self._prepared.get(key)
        if found is None:
            found = prepare()
            if self._prepared is _NONE_KEPT or len(self._prepared) >= _PREPARED_MAX:
                self._prepared = {}
            self._prepared[key] = found
        return found

    def pack_decide(self, program: Program, mode: str) -> tuple[bytes, bytes]:
        """The request of a decision without its last argument, the clock: the customer's part, the plan's."""
        before, behind = self.cache.tail(program, mode, self.rev)
        others = self.pack_subjects(program.subjects)
        head = self.pack_head(program, others)
        return b"%b%b%b" % (head, before, pack_own(self.effective)), behind + others.arguments

    def pack_head(self, program: Program, others: PackedSubjects) -> bytes:
        """The request of a decision up to the terms; ``others``: what it says of subjects."""
        return pack_head(program, self.keys, sha=self.cache.decide.sha, rev=self.rev, others=others)

    def pack_subjects(self, asked: tuple[AskedOfSubject, ...]) -> PackedSubjects:
        """What the decision script gets of the customer's subjects."""
        return NOTHING_PACKED if self.subjects is None else self.subjects.pack(asked)

    def terms(self, *numbers: int) -> bytes:
        """The scripts' numbers; see :func:`meterkit.store.script_terms.pack_terms`."""
        return pack_terms(self.effective, self.rev, numbers)

    def undecided(self) -> Decision:
        """What stands in place of a decision where enforcement is off."""
        return Decision(customer=self.customer, plan=self.effective.plan.key, allowed=True)


class CustomerCache(CompiledCatalog):
    """The customers that a process knows, each by the newest view that it has of them."""

    @cached_property
    def named(self) -> ViewLru[str, CustomerView]:
        """Those whom the app names."""
        return ViewLru(self.customers_kept)

    @cached_property
    def _anonymous(self) -> ViewLru[str, CustomerView]:
        return ViewLru(self.customers_kept)

    @cached_property
    def _of_subjects(self) -> ViewLru[tuple[str, GivenSubjects], CustomerView]:
        return ViewLru(self.customers_kept)

    def get(self, customer: str, *, anonymous: bool = False, subjects: GivenSubjects = ()) -> CustomerView:
        """The newest view of a customer whose id is valid; of one not met before, that of no state."""
        known = self._anonymous if anonymous else self.named
        view = known.find(customer) or self._put(
            CustomerView(self, customer, self.now_ms(), anonymous=anonymous)
        )
        return self._with_subjects(view, subjects) if subjects and not anonymous else view

    def met(self, customer: object, subjects: GivenSubjects) -> CustomerView | None:
        """The newest view of a customer with subjects, where it is kept: all these ids are valid."""
        found = self._of_subjects.get((customer, subjects)) if isinstance(customer, str) else None
        return found if found is not None and found.base is self.named.get(found.customer) else None

    def renewed(self, view: CustomerView) -> CustomerView:
        """The view of the customer, and of the subjects, that a view by an earlier plans file is of."""
        given = () if view.subjects is None else view.subjects.given
        return self.get(view.customer, anonymous=view.anonymous, subjects=given)

    def newest(self, view: CustomerView) -> CustomerView:
        """The newest view of the customer whom a view is of, with the same subjects."""
        found = (self._anonymous if view.anonymous else self.named).find(view.customer) or view
        if found is view.base:
            return view  # It is the newest with these subjects.
        return found if view.subjects is None else self._with_subjects(found, view.subjects.given)

    def _with_subjects(self, view: CustomerView, given: GivenSubjects) -> CustomerView:
        """A customer's view with subjects, kept for those that come again."""
        view = view.base or view
        key = view.customer, given
        found = self._of_subjects.find(key)
        if found is None or found.base is not view:
            found = view.of_subjects(given)
            self._of_subjects.put(key, found)
        return found

    def learn(self, view: CustomerView, reply: list[Any]) -> CustomerView:
        """The view of a state that a script replied with, ``{code, now, rev, state}``; it is the newest now.

        Raises:
            StoreError: the state cannot be read; what was known before stays.
        """
        customer, anonymous, (_, now_ms, rev, data) = view.customer, view.anonymous, reply[:4]
        try:
            learnt = CustomerView(self, customer, now_ms, anonymous=anonymous, rev=rev.decode(), data=data)
        except (ValueError, TypeError, AttributeError, MeterkitError) as error:
            why = f"the state of customer {customer!r} cannot be read: {error}"
            raise StoreError(why, executed=False) from error
        self._put(learnt)
        return learnt if view.subjects is None else self._with_subjects(learnt, view.subjects.given)

    def _put(self, view: CustomerView) -> CustomerView:
        (self._anonymous if view.anonymous else self.named).put(view.customer, view)
        return view
