"""Customer views: entitlements and prepared decisions of one state; an LRU cache has the newest of each.

A view is replaced as a whole: threads share it, and a decision must not mix the revision of one state with
the limits of another.
"""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.customer_state import NO_STATE, CustomerState, bounds_of, refusal_of
from meterkit.decisions.decision import Decision
from meterkit.decisions.free_usage import TRIAL, free_reasons, is_usage_free_of
from meterkit.decisions.grants import prepaid_of
from meterkit.decisions.keys import shard_of
from meterkit.decisions.limit_policies import ceiling_of
from meterkit.decisions.plan_shares import effective_terms
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.connection import ReplyError
from meterkit.safe_text import plain_text
from meterkit.store.compiled_catalog import CompiledCatalog
from meterkit.store.remainders import add_reply, add_subject_reply, replies_of
from meterkit.store.replies import HELD
from meterkit.store.script_arguments import (
    NOTHING_PACKED,
    Subjects,
    collect_holds,
    pack_customer_terms,
    pack_head,
    pack_terms,
)
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Catalog, Route
    from meterkit.decisions.compiled_decision import BoundProgram, Program
    from meterkit.decisions.keys import CustomerKeys
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.subjects import SubjectDemand
    from meterkit.store.remainders import Ceilings, LatestReply
    from meterkit.store.script_arguments import GivenSubjects, PackedSubjects

_T = TypeVar("_T")

_PREPARED_MAX: Final = 256
_NOTHING: Final[dict[str, int]] = {}
_EMPTY: Final[dict[Any, Any]] = {}
"""Placeholder of each dict until it gets its first entry: most customers need few of them."""
_NONE_PREPARED: Final = (None, None)
_adding_replies: Final = Lock()
_Key = TypeVar("_Key")
_View = TypeVar("_View")


class QuantityBinder(Protocol):
    """Binds the quantities of one request; see :mod:`meterkit.store.prepared_decisions`."""

    bound: BoundProgram
    latest_reply: LatestReply

    def ask_subjects(self, quantities: Mapping[str, int]) -> tuple[SubjectDemand, ...]:
        """Demands on the customer's subjects, with these quantities reserved."""
        ...

    def pack(
        self, quantities: Mapping[str, int], mode: str, asked: tuple[SubjectDemand, ...]
    ) -> tuple[bytes, bytes]:
        """See :meth:`CustomerView.pack_decide`; ``asked``: the demands on subjects."""
        ...

    def compile(self, quantities: Mapping[str, int]) -> Program:
        """Exact program, with these quantities reserved."""
        ...


class PreparedDecision:
    """A decision about one customer, packed except for the clock.

    Attributes:
        view: customer, with the state by which it was prepared.
        program: demands; for reserved quantities, compiled with one unit of each.
        refusal: refusal by the state alone, whose rev the store must confirm; None: none.
        shadow: whether it is counted and held even beyond the limits.
        waived: in shadow mode, the refusal by the state alone; None: none.
        reserved: meter to the quantity reserved until the true one is known.
        mode: of the decision script.
        held: meter to the quantity that an allowed decision holds.
        recorded: meter to the quantity recorded in addition to the true ones if the request is billed.
        settlements: settlements of such requests, by whether they are billed; each valid in one slot of
            holds. Replaced, never changed; see :func:`meterkit.store.settlement.settle_decision`.
        unheld: likewise, of requests decided without the store.
        settles: whether the end of its request is settled with the store.
        latest_reply: the store's latest reply about these ceilings of the customer.
        subjects: holds of the customer's subjects if it is allowed, by kind.
        digest: of the request's idempotency key; empty: it has none.
        is_repeat: whether a request with that key was billed before.
        is_allotted: whether it stands for units of an allotment; see :mod:`meterkit.store.allotment`.
    """

    __slots__ = (
        "_binder",
        "_holds",
        "digest",
        "held",
        "is_allotted",
        "is_repeat",
        "latest_reply",
        "mode",
        "packed",
        "program",
        "recorded",
        "refusal",
        "reserved",
        "settlements",
        "settles",
        "shadow",
        "subjects",
        "unheld",
        "view",
        "waived",
    )

    def __init__(
        self,
        view: CustomerView,
        program: Program,
        mode: str,
        *,
        route: Route | None = None,
        reserved: Mapping[str, int] = _NOTHING,
        binder: QuantityBinder | None = None,
    ) -> None:
        self.view = view
        self.program = program
        self.shadow = (route or view.cache.catalog).enforcement == "shadow"
        refusal = None if mode == "h" else refusal_of(view.customer, view.effective, route)
        self.refusal = None if self.shadow else refusal
        self.waived = refusal if self.shadow else None
        self.settlements: dict[bool, Any] = _EMPTY
        self.unheld: dict[bool, Any] = _EMPTY
        self.reserved = reserved
        self.digest, self.is_repeat, self.is_allotted = "", False, False
        self.settles = program.settles
        self.latest_reply = view.find_reply(program.ceilings) if binder is None else binder.latest_reply
        self._binder = binder
        self._holds = mode != "c" and (program.holds or bool(reserved))
        self.mode = mode = "v" if self.refusal else "s" if self.shadow and mode in "df" else mode
        if binder is None:
            self.held, self.recorded = program.held, program.settled
            self.subjects = collect_holds(program.subjects)
            self.packed = view.pack_decide(program, mode)
        else:
            self.held, self.recorded = binder.bound.held(reserved), binder.bound.recorded
            asked = binder.ask_subjects(reserved)
            self.subjects = collect_holds(asked)
            self.packed = binder.pack(reserved, mode, asked)

    def exact(self) -> Program:
        """Exact program, to the unit."""
        return self.program if self._binder is None else self._binder.compile(self.reserved)

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Release the hold of a request whose waiting was cancelled."""
        if self._holds and not isinstance(reply, ReplyError) and reply[0] in HELD:
            self.view.cache.on_unclaimed(self, reply[1])

    def period_end_ms(self, now_ms: int) -> int:
        """End of the period of an instant."""
        bounds = self.view.effective.bounds
        return bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms


class CustomerView:
    """One customer at one state, with the decisions prepared by it.

    Its state never changes: a newer state gets a new view. So threads that each have an event loop share it,
    and no request mixes two states.

    Attributes:
        customer: the customer's id.
        cache: has the newest view of each customer, and the compiled catalog.
        rev: of the state.
        effective: plan, access and period.
        prepaid: grants and credits of the customer; None: none.
        decisions: by the identity of their route.
        settlements: partly packed settlements, by their meters.
        latest_replies: the store's latest replies, a linked list, which views of the same state share. In a
            view with subjects it has only those about these.
        linked: whether there is a Stripe customer.
        is_trial: whether this period is one of a trial.
        is_deleted: whether the customer was deleted since; what its requests used is not recorded any more.
        subjects: subjects of the requests that this view is for; None: none.
        base: the view without subjects; None: this one.
    """

    __slots__ = (
        "_data",
        "_first_prepared",
        "_prepared",
        "anonymous",
        "base",
        "cache",
        "customer",
        "decisions",
        "effective",
        "entitlements",
        "is_deleted",
        "is_trial",
        "latest_replies",
        "linked",
        "prepaid",
        "rev",
        "settlements",
        "shard",
        "subjects",
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
        self.cache = cache
        self.customer = customer
        self.anonymous = anonymous
        self.shard = shard_of(customer, cache.keys.shards)
        self.rev = rev
        self._data = data
        self.linked = state.stripe_customer is not None
        self.effective = effective = cache.resolve_plan(state, now_ms)
        if effective.missing_plan is not None:
            cache.note_missing_plan(customer, effective.missing_plan)
        if effective.overrides:
            cache.alarms.log_ignored_overrides(customer, effective)
        self.is_trial = TRIAL in free_reasons(state, effective.bounds.start_ms)
        self.entitlements = cache.resolve_entitlements(self.effective)
        self.prepaid = prepaid_of(rev, state, self.effective, cache.prepaid, anonymous=anonymous)
        self.decisions: dict[int, PreparedDecision] = _EMPTY
        self.settlements: dict[Any, Any] = _EMPTY
        self.latest_replies: LatestReply | None = None
        self._first_prepared: tuple[tuple[object, ...] | None, Any] = _NONE_PREPARED
        self._prepared: dict[tuple[object, ...], Any] = _EMPTY
        self.is_deleted = False
        self.subjects: Subjects | None = None
        self.base: CustomerView | None = None

    @property
    def catalog(self) -> Catalog:
        """The plans file, in the customer's currency."""
        return self.cache.catalog.in_currency(self.effective.currency)

    @property
    def state(self) -> CustomerState:
        """State, parsed at each access: as text it takes a third of the memory."""
        return CustomerState.parse(self._data)

    @property
    def known(self) -> FormerView:
        """Revision, state and refusals that the store has confirmed."""
        return FormerView(self.rev, self._data, self.latest_replies)

    def with_subjects(self, given: GivenSubjects) -> Self:
        """Copy of the view for requests with subjects."""
        view = copy(self)
        view.base = self
        view.latest_replies = None
        view.forget()
        view.subjects = Subjects(
            self.customer, given, self.effective, self.entitlements, self.catalog, self.cache.keys
        )
        if self.is_plan_known:
            self.cache.alarms.log_undeclared_subjects(view.subjects, self.effective.plan.key)
        return view

    @property
    def is_plan_known(self) -> bool:
        """Whether the store has confirmed the plan, so that it is not the default of an unknown customer."""
        return self.anonymous or self.rev != NO_STATE or self.has_reply

    @property
    def has_reply(self) -> bool:
        """Whether the store has decided any request of the customer."""
        return any(known.packed for known in replies_of((self.base or self).latest_replies))

    def find_reply(self, ceilings: Ceilings) -> LatestReply:
        """Latest reply about these ceilings; an empty one if there was none yet."""
        owner = self.base or self
        with _adding_replies:
            owner.latest_replies, found = add_reply(owner.latest_replies, ceilings)
            if owner is not self:
                self.latest_replies, found = add_subject_reply(self.latest_replies, found)
        return found

    def forget(self) -> None:
        """Drop all prepared decisions."""
        self.decisions, self._prepared, self._first_prepared = _EMPTY, _EMPTY, _NONE_PREPARED

    @property
    def keys(self) -> CustomerKeys:
        """Names of the customer's keys."""
        return self.cache.keys.customer(self.customer, anonymous=self.anonymous)

    def prepare(self, route: Route, mode: str = "d") -> PreparedDecision:
        """Decision about a route, cached in :attr:`decisions`."""
        decision = self.decisions.get(id(route)) if mode == "d" else None
        if decision is None:
            keeps = self.effective.keeps_limits
            program = self.cache.compile_route(
                self.entitlements,
                route,
                self.prepaid,
                keeps=keeps,
                subjects=self.subjects,
                catalog=self.catalog,
            )
            decision = PreparedDecision(self, program, mode, route=route)
            if mode == "d":
                self.decisions = {**self.decisions, id(route): decision}
        return decision

    def memoize(self, key: tuple[object, ...], prepare: Callable[[], _T]) -> _T:
        """Cached value of a key; a full cache is cleared.

        The first value has no dict, which takes 224 bytes: most customers need one.
        """
        first_key, first = self._first_prepared
        found: _T | None = first if first_key == key else self._prepared.get(key)
        if found is None:
            found, key = prepare(), self.cache.share_key(key)
            if first_key is None:
                self._first_prepared = key, found
                return found
            if self._prepared is _EMPTY or len(self._prepared) >= _PREPARED_MAX:
                self._prepared = {}
            self._prepared[key] = found
        return found

    def pack_decide(self, program: Program, mode: str) -> tuple[bytes, bytes]:
        """Pack a decision's request without its last argument, the clock: customer's part, plan's part."""
        before, behind = self.cache.pack_tail(program, mode, self.rev)
        others = self.pack_subjects(program.subjects)
        head = pack_head(program, self.keys, sha=self.cache.decide.sha, rev=self.rev, others=others)
        return b"%b%b%b" % (head, before, pack_customer_terms(self.effective)), behind + others.arguments

    def pack_subjects(self, asked: tuple[SubjectDemand, ...]) -> PackedSubjects:
        """Pack the demands on subjects for the decision script."""
        return NOTHING_PACKED if self.subjects is None else self.subjects.pack(asked)

    def terms(self, *numbers: int) -> bytes:
        """Numbers for a script; see :func:`meterkit.store.script_arguments.pack_terms`."""
        return pack_terms(self.effective, self.rev, numbers)

    def next_limit(self, meter: str, at_ms: int) -> int:
        """Units of a meter that the period from an instant on admits, by the customer's terms then.

        Ceiling and recurring grants. They differ from those of this period if this one is prorated, or if
        another plan begins. A suspended customer gets 0.
        """
        return self.memoize(("next limit", meter, at_ms), lambda: self._limit_from(meter, at_ms))

    def _limit_from(self, meter: str, at_ms: int) -> int:
        effective, entitlements, prepaid = self.effective, self.entitlements, self.prepaid
        if effective.allowance is not None or effective.valid_until_ms <= at_ms:
            state = self.state
            effective = effective_terms(state, self.cache.catalog, at_ms)
            entitlements = self.cache.resolve_entitlements(effective)
            plans = self.cache.prepaid
            prepaid = prepaid_of(self.rev, state, effective, plans, anonymous=self.anonymous)
        if effective.access == "suspended":
            return 0
        ceiling = ceiling_of(entitlements[meter])
        if ceiling is None:
            return QUANTITY_MAX
        return ceiling + (0 if prepaid is None else prepaid.recurring_units(meter))

    def period_of(self, at_ms: int) -> tuple[Bounds, bool]:
        """Period of an instant, and whether its usage costs nothing, as in a trial or a pause."""
        state = self.state
        own = bounds_of(state, self.effective.counting, at_ms)
        return own, is_usage_free_of(state, own.start_ms, own.end_ms)

    def undecided(self) -> Decision:
        """Decision that allows, for enforcement ``off``."""
        return Decision(customer=self.customer, plan=self.effective.plan.key, allowed=True)


class FormerView(NamedTuple):
    """Facts of the store in the view of a customer by the former plans file; see :class:`CustomerView`."""

    rev: str
    data: bytes
    latest_replies: LatestReply | None


class CustomerCache(CompiledCatalog):
    """LRU cache of customers, each by its newest view; and the compiled catalog."""

    _former: dict[tuple[str, bool | GivenSubjects], FormerView] = _EMPTY

    def inherit(self, former: CustomerCache) -> None:
        """Keep what the cache of the plans file before knows of its customers: the store may be down.

        Their views are made when they are needed: making all of them would take seconds.
        """
        views = (*former.named.views(), *former._anonymous.views())
        known: dict[tuple[str, bool | GivenSubjects], FormerView] = {
            (view.customer, view.anonymous if view.subjects is None else view.subjects.given): view.known
            for view in (*former._of_subjects.views(), *views)
        }
        others = former._former.items()
        self._former = {**dict(islice(others, max(0, self.customers_kept - len(known)))), **known}

    @cached_property
    def named(self) -> ViewLru[str, CustomerView]:
        """Views of customers that the app identifies."""
        return ViewLru(self.customers_kept)

    @cached_property
    def _anonymous(self) -> ViewLru[str, CustomerView]:
        return ViewLru(self.customers_kept)

    @cached_property
    def _of_subjects(self) -> ViewLru[tuple[str, GivenSubjects], CustomerView]:
        return ViewLru(self.customers_kept)

    def get(self, customer: str, *, anonymous: bool = False, subjects: GivenSubjects = ()) -> CustomerView:
        """Newest view of a customer whose id is valid; of an unknown one, a view without state."""
        known = self._anonymous if anonymous else self.named
        view = known.find(customer)
        if view is None:
            view = self._put(self._make_view(plain_text(customer), anonymous=anonymous))
        return self._with_subjects(view, subjects) if subjects and not anonymous else view

    def _make_view(self, customer: str, *, anonymous: bool) -> CustomerView:
        """New view of a customer, by what was known under the plans file before, if anything."""
        former = self._former.get((customer, anonymous))
        if former is not None:
            rev, data, replies = former
            with suppress(MeterkitError, *UNREADABLE):
                view = CustomerView(self, customer, self.now_ms(), anonymous=anonymous, rev=rev, data=data)
                view.latest_replies = replies
                return view
        return CustomerView(self, customer, self.now_ms(), anonymous=anonymous)

    def find_with_subjects(self, customer: object, subjects: GivenSubjects) -> CustomerView | None:
        """Newest view with subjects, if it is cached: then all these ids are valid."""
        found = self._of_subjects.get((customer, subjects)) if isinstance(customer, str) else None
        return found if found is not None and found.base is self.named.get(found.customer) else None

    def rebind(self, view: CustomerView) -> CustomerView:
        """View of the same customer and subjects by this plans file."""
        given = () if view.subjects is None else view.subjects.given
        return self.get(view.customer, anonymous=view.anonymous, subjects=given)

    def newest(self, view: CustomerView) -> CustomerView:
        """Newest view of the same customer and subjects."""
        found = (self._anonymous if view.anonymous else self.named).find(view.customer) or view
        if found.is_deleted:
            found = self.get(view.customer)  # An open websocket goes on as a new customer's.
        if found is view.base:
            return view  # It is the newest with these subjects.
        return found if view.subjects is None else self._with_subjects(found, view.subjects.given)

    def _with_subjects(self, view: CustomerView, given: GivenSubjects) -> CustomerView:
        view = view.base or view
        key = view.customer, given
        found = self._of_subjects.find(key)
        if found is None or found.base is not view:
            former = self._former.pop(key, None) if found is None or found.is_deleted else found.known
            found = view.with_subjects(given)
            if former is not None and former.rev == view.rev:
                found.latest_replies = former.latest_replies
            self._of_subjects.put(key, found)
        return found

    def learn(self, view: CustomerView, reply: list[Any]) -> CustomerView:
        """View of the state in a script's reply, ``{code, now, rev, state}``; the newest from now on.

        Raises:
            StoreError: the state cannot be read; the earlier view stays.
        """
        customer, anonymous, (_, now_ms, rev, data) = view.customer, view.anonymous, reply[:4]
        try:
            learnt = CustomerView(self, customer, now_ms, anonymous=anonymous, rev=rev.decode(), data=data)
        except (MeterkitError, *UNREADABLE) as error:  # The plans file cannot serve it, or it is damaged.
            why = f"the state of customer {customer!r} cannot be read: {error}"
            raise StoreError(why, executed=False) from error
        is_same = learnt.rev == view.rev  # Only time has passed: what is known of the customer stays known.
        if is_same:
            learnt.latest_replies = (view.base or view).latest_replies
        self._put(learnt)
        return learnt if view.subjects is None else self._with_subjects(learnt, view.subjects.given)

    def forget(self, customer: str) -> None:
        """Forget a deleted customer: its requests in flight settle nothing, the next is of a new one."""
        self._former = {key: known for key, known in self._former.items() if key[0] != customer}
        named = self.named.pop(customer)
        for view in (named, *self._of_subjects.views()):
            if view is not None and view.customer == customer:
                view.is_deleted = True

    def _put(self, view: CustomerView) -> CustomerView:
        (self._anonymous if view.anonymous else self.named).put(view.customer, view)
        self._former.pop((view.customer, view.anonymous), None)
        return view


class ViewLru(Generic[_Key, _View]):
    """Approximate LRU cache of views, by the customer's key. Thread-safe.

    A customer found in the older generation moves to the younger one. In a full cache, a new customer
    replaces the first one in the older generation. When half of the customers are in the younger
    generation, these join the older one at its end. So the half that was used last is always cached.

    Args:
        most: largest number of customers.

    Attributes:
        get: finds in the younger generation only; see :meth:`find`.
    """

    __slots__ = ("_leaving", "_lock", "_most", "_older", "_younger", "get")

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._older: dict[_Key, _View] = {}
        self._leaving: list[_Key] = []  # The older generation, the next to be replaced last.
        self._begin_generation()

    def __len__(self) -> int:
        return len(self._younger) + len(self._older)

    def views(self) -> list[_View]:
        """All views."""
        with self._lock:
            return [*self._older.values(), *self._younger.values()]

    def find(self, customer: _Key) -> _View | None:
        """View of a customer, moved to the younger generation; None: not cached."""
        found = self.get(customer)
        if found is None and self._older:
            with self._lock:
                found = self._younger.get(customer) or self._older.pop(customer, None)
                if found is not None:
                    self._insert_view(customer, found)
        return found

    def pop(self, customer: _Key) -> _View | None:
        """Remove and return a view; None: not cached."""
        with self._lock:
            return self._younger.pop(customer, None) or self._older.pop(customer, None)

    def put(self, customer: _Key, view: _View) -> None:
        """Store a view, in place of the customer's view before."""
        with self._lock:
            is_new = customer not in self._younger and self._older.pop(customer, None) is None
            self._insert_view(customer, view, is_new=is_new)

    def _insert_view(self, customer: _Key, view: _View, *, is_new: bool = False) -> None:
        if len(self._younger) >= max(1, self._most // 2):
            self._older.update(self._younger)
            self._leaving = list(reversed(self._older))
            self._begin_generation()
        if is_new and len(self) >= self._most:
            while self._older.pop(self._leaving.pop(), None) is None:
                pass  # This customer has moved to the younger generation.
        # The newer view also replaces one that has just joined the older generation.
        self._older.pop(customer, None)
        self._younger[customer] = view

    def _begin_generation(self) -> None:
        self._younger: dict[_Key, _View] = {}
        self.get: Callable[[_Key], _View | None] = self._younger.get
