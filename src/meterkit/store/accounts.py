"""A customer as a process knows them: state, entitlements, and decisions packed once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.blank import Blank, Open
from meterkit.decisions.decision import Decision
from meterkit.decisions.derived import derived_from
from meterkit.decisions.program import Demand, compile_program, compile_reserving, demands_of
from meterkit.decisions.purse import purse_of
from meterkit.decisions.state import (
    NO_STATE,
    CustomerState,
    entitlements_of,
    holding_only,
    refusal_of,
)
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.connection import ReplyError
from meterkit.redis.resp import pack_each
from meterkit.store.compiled import CompiledCatalog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Route
    from meterkit.decisions.program import Program
    from meterkit.decisions.state import Standing

__all__ = ["Account", "Accounts", "DecideCall", "View"]

_ACCOUNTS_MAX: Final = 10_000
_CALLS_MAX: Final = 256
_NOTHING: Final[dict[str, int]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}
_HELD: Final = frozenset({0, 5})
"""Replies of the decision script that say that what was asked is held."""


class DecideCall:
    """A decision about one customer, packed but for the clock.

    Attributes:
        program: what is asked.
        preset: the refusal that follows from the state alone and only wants its rev confirmed, or None.
        standing: what the customer's state came to when this was packed.
        endings: how its requests end, billed or not, as long as a slot of holds lasts.
        reserved: meter to what is set aside until the true quantity is known.
        held: meter to what an allowed decision holds.
        consumed: meter to what is recorded besides the true quantities, when the request ends as billed.
        shadow: whether it is counted and held whatever the limits say, and nobody is held to them.
        foregone: in shadow, the refusal that would follow from the state alone, or None.
    """

    __slots__ = (
        *("account", "consumed", "endings", "foregone", "held", "packed", "preset", "program"),
        *("reserved", "shadow", "standing"),
    )

    def __init__(
        self,
        view: View,
        program: Program,
        mode: str,
        *,
        route: Route | None = None,
        reserved: Mapping[str, int] = _NOTHING,
        packed: bytes | None = None,
    ) -> None:
        self.account = account = view.account
        self.program = program
        self.shadow = (route or account.accounts.catalog).enforcement == "shadow"
        refusal = None if mode == "h" else refusal_of(account.customer, view.standing, route)
        self.preset = None if self.shadow else refusal
        self.foregone = refusal if self.shadow else None
        self.standing = view.standing
        self.endings: dict[bool, Any] = {}
        self.reserved = reserved
        self.held = program.held
        self.consumed = program.settled
        if self.shadow and mode in "df":
            mode = "s"
        self.packed = packed or view.pack_decide(program, mode if self.preset is None else "v")

    def exact(self) -> Program:
        """What is asked, to the unit."""
        return self.program

    def orphaned(self, reply: Any) -> None:
        """Have given back what was held for somebody who no longer waits."""
        program = self.program
        if not isinstance(reply, ReplyError) and reply[0] in _HELD and (program.holds or self.reserved):
            self.account.accounts.on_orphan(self, reply[1])

    def period_end_ms(self, now_ms: int) -> int:
        """The end of the period that an instant lies in."""
        bounds = self.standing.bounds
        return bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms


class ReservingCall(DecideCall):
    """A decision that sets quantities aside; what is asked is worked out once for all such quantities."""

    __slots__ = ("_entitlements", "_purse", "_route")

    def __init__(
        self,
        view: View,
        route: Route,
        blank: Blank,
        program: Program,
        mode: str,
        *,
        reserved: Mapping[str, int],
        packed: bytes | None,
    ) -> None:
        super().__init__(view, program, mode, route=route, reserved=reserved, packed=packed)
        self.held = blank.quantities(program.held, reserved)
        self.consumed = blank.besides
        # The account may have learnt of another state by the time of the reply.
        self._route, self._entitlements, self._purse = route, view.entitlements, view.purse

    def exact(self) -> Program:
        """What is asked, to the unit."""
        catalog = self.account.accounts.catalog
        return compile_reserving(self._entitlements, catalog, self._route, self.reserved, self._purse)


class View:
    """One state of a customer, what follows from it, and the calls that are made of it.

    Attributes:
        account: whose view it is.
        calls: the decisions about routes, by the route's identity.
        endings: what is packed of the ends of requests.
        alike: what is packed for all customers of the plan whom nobody set up; None: this one is not of them.
    """

    __slots__ = (
        *("_blanks", "_calls", "account", "alike", "accounts", "calls", "endings", "entitlements", "keys"),
        *("purse", "rev", "standing", "state"),
    )

    def __init__(self, account: Account, rev: str, data: bytes, now_ms: int) -> None:
        accounts, state = account.accounts, CustomerState.parse(data)
        anonymous = accounts.catalog.anonymous if account.anonymous else None
        if anonymous is not None:
            state = CustomerState(plan=anonymous.plan)
        if state.plan is not None and state.plan not in accounts.catalog.plans:
            accounts.alarms.unknown_plan(account.customer, state.plan)
        self.account = account
        self.accounts = accounts
        self.keys = account.keys
        self.rev = rev
        self.state = state
        self.standing, self.alike = accounts.standing(rev, state, now_ms)
        self.entitlements = entitlements_of(state, self.standing, accounts.catalog)
        self.purse = purse_of(rev, state, self.standing.plan, accounts.purses)
        self.calls: dict[int, DecideCall] = {}
        self.endings: dict[Any, Any] = {}
        self._calls: dict[Any, DecideCall] = {}
        self._blanks: dict[tuple[int | str, ...], Blank] = {}

    def call(self, route: Route, *, mode: str = "d") -> DecideCall:
        """The decision about a route; :attr:`calls` keeps it by the route's identity."""
        call = self.calls.get(id(route)) if mode == "d" else None
        if call is None:
            program = self.accounts.program(self.entitlements, route, self.purse)
            call = DecideCall(self, program, mode, route=route)
            if mode == "d":
                self.calls[id(route)] = call
        return call

    def call_reserving(
        self,
        route: Route,
        quantities: Mapping[str, int],
        *,
        mode: str = "d",
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
    ) -> DecideCall:
        """The decision about a route that sets quantities aside until the true ones are known.

        Args:
            route: the route.
            quantities: meter to what is set aside besides what the route consumes of it.
            mode: of the decision script.
            dimensions: what is known of the usage already: meters derived from those and listed in the plan
                limit it, too.
        """
        reserved: dict[str, int] = dict(quantities)
        if self.accounts.derives:
            for name, quantity in quantities.items():
                for derived in derived_from(self.accounts.catalog.meters, name, dimensions):
                    reserved[derived.name] = quantity
        key: tuple[int | str, ...] = (id(route), *reserved)
        blank = self._blanks.get(key)
        if blank is None:
            blank = self._blanks[key] = self._blank(route, tuple(reserved))
        program, packed = blank.program, None
        is_plain = blank.preset is None or route.enforcement == "shadow"
        if mode == "d" and is_plain and blank.is_exact:
            terms = self.terms(program.keep_ms, *blank.numbers(reserved), more=program.room)
            packed = b"".join((blank.head, pack_each((terms,)), blank.tail))
        else:
            catalog = self.accounts.catalog
            program = compile_reserving(self.entitlements, catalog, route, reserved, self.purse)
        return ReservingCall(self, route, blank, program, mode, reserved=reserved, packed=packed)

    def _blank(self, route: Route, names: tuple[str, ...]) -> Blank:
        """What every decision about a route that reserves quantities of these meters has in common."""
        demands = demands_of(route, self.accounts.catalog)
        consumed = {name: demands[name].taken if name in demands else 0 for name in names}
        for name in names:
            demands[name] = Demand(needed=Open(name, least=1), taken=Open(name, least=0))
        program = compile_program(
            self.entitlements, self.accounts.catalog, demands, rates_only=route.always, purse=self.purse
        )
        mode = "s" if route.enforcement == "shadow" else "d"
        refusal = refusal_of(self.account.customer, self.standing, route)
        return Blank(program, consumed, refusal, self._head(program), pack_each((mode, *program.fields)))

    def call_holding(self, quantities: Mapping[str, int], *, mode: str = "d") -> DecideCall:
        """The decision about quantities that are set aside off the request until the true ones are known."""
        demands = {name: Demand.of(quantity) for name, quantity in quantities.items()}
        program = compile_program(
            self.entitlements, self.accounts.catalog, demands, in_flight=False, purse=self.purse
        )
        return DecideCall(self, program, mode, reserved=quantities)

    def call_for(
        self, demands: Mapping[str, Demand], *, mode: str = "d", in_flight: bool = False
    ) -> DecideCall:
        """The decision about what the app itself asks for; no request in flight, unless it says so."""
        key = (*((name, asked.needed, asked.taken) for name, asked in demands.items()), mode, in_flight)
        call = self._calls.get(key)
        if call is None:
            program = compile_program(
                self.entitlements, self.accounts.catalog, demands, in_flight=in_flight, purse=self.purse
            )
            call = self._keep(key, DecideCall(self, program, mode))
        return call

    def _keep(self, key: tuple[object, ...], call: DecideCall) -> DecideCall:
        if len(self._calls) >= _CALLS_MAX:
            self._calls.clear()
        self._calls[key] = call
        return call

    def renewal(self, held: Mapping[str, int], flights: tuple[str, ...]) -> DecideCall:
        """A call that holds again what another held, whatever is left of it."""
        key = ("h", *held.items(), *flights)
        call = self._calls.get(key)
        if call is None:
            demands = {name: Demand(needed=0, taken=held.get(name, 0)) for name in (*held, *flights)}
            kept = holding_only(self.entitlements, demands, flights)
            program = compile_program(kept, self.accounts.catalog, demands, purse=self.purse)
            call = self._keep(key, DecideCall(self, program, "h"))
        return call

    def pack_decide(self, program: Program, mode: str) -> bytes:
        """The request of a decision, without the clock that ends it."""
        shared = self.alike if self.accounts.is_of_a_plan(program) else None
        rest = None if shared is None else shared.get((program, mode))
        if rest is None:
            terms = self.terms(program.keep_ms, *program.numbers, more=program.room)
            rest = pack_each((terms, mode, *program.fields))
            if shared is not None:
                shared[program, mode] = rest
        return self._head(program) + rest

    def _head(self, program: Program) -> bytes:
        keys = self.keys
        names = (keys.counters, keys.state, keys.totals, *((keys.grants,) if program.room else ()))
        head = ("EVALSHA", self.accounts.decide.sha, len(names), *names, self.rev)
        # Behind these: terms, mode, fields, clock.
        return b"*%d\r\n%b" % (len(head) + len(program.fields) + 3, pack_each(head))

    def terms(self, *numbers: int, more: str = "") -> str:
        """The scripts' numbers: until when this view holds, the bounds of both periods, and what is asked.

        ``more`` is one more element, as JSON.
        """
        bounds = self.standing.bounds
        until_ms = min(self.standing.valid_until_ms, bounds.next_end_ms)
        every = (until_ms, bounds.start_ms, bounds.end_ms, bounds.next_end_ms, *numbers)
        return f"[{','.join(map(str, every))}{more and f',{more}'}]"

    def keep_ms(self) -> int:
        """How long the counters of this customer's rates must live."""
        rated = {name: Demand(needed=0, taken=0) for name, given in self.entitlements.items() if given.rates}
        return compile_program(self.entitlements, self.accounts.catalog, rated, rates_only=True).keep_ms


class Account:
    """One customer, as of the newest :class:`View` that this process has of them.

    Threads that each have an event loop share it. One view takes the place of another in one assignment, and
    a call is made of one view: what is asked never comes of two states.
    """

    __slots__ = ("accounts", "anonymous", "customer", "keys", "view")

    def __init__(self, accounts: CompiledCatalog, customer: str, now_ms: int, *, anonymous: bool) -> None:
        self.accounts = accounts
        self.customer = customer
        self.anonymous = anonymous
        self.keys = accounts.keys.customer(customer, anonymous=anonymous)
        self.view = View(self, NO_STATE, b"", now_ms)

    @property
    def standing(self) -> Standing:
        """What follows from what is known of the customer."""
        return self.view.standing

    @property
    def calls(self) -> Mapping[int, DecideCall]:
        """The decisions about routes, by the route's identity."""
        return self.view.calls

    def take(self, reply: list[Any]) -> None:
        """Take the state from a script's reply ``{code, now, rev, state}``; see :meth:`refresh`."""
        self.refresh(reply[2].decode(), reply[3], reply[1])

    def refresh(self, rev: str, data: bytes, now_ms: int) -> None:
        """Take a state, and what follows from it at an instant.

        Raises:
            StoreError: the state cannot be read; what was known before stays.
        """
        try:
            self.view = View(self, rev, data, now_ms)
        except (ValueError, TypeError, AttributeError, MeterkitError) as error:
            why = f"the state of customer {self.customer!r} cannot be read: {error}"
            raise StoreError(why, executed=False) from error

    def call(self, route: Route, *, mode: str = "d") -> DecideCall:
        """The decision about a route; :attr:`calls` keeps it by the route's identity."""
        return self.view.call(route, mode=mode)

    def call_reserving(
        self,
        route: Route,
        quantities: Mapping[str, int],
        *,
        mode: str = "d",
        dimensions: Mapping[str, str] = _NO_DIMENSIONS,
    ) -> DecideCall:
        """The decision about a route that sets quantities aside; see :meth:`View.call_reserving`."""
        return self.view.call_reserving(route, quantities, mode=mode, dimensions=dimensions)

    def passage(self) -> Decision:
        """What stands in place of a decision where enforcement is off."""
        return Decision(customer=self.customer, plan=self.standing.plan.key, allowed=True)


class Accounts(CompiledCatalog):
    """The customers that a process knows."""

    @cached_property
    def named(self) -> dict[str, Account]:
        """Those whom the app names."""
        return {}

    @cached_property
    def _anonymous(self) -> dict[str, Account]:
        return {}

    def get(self, customer: str, *, anonymous: bool = False) -> Account:
        """The account of a customer whose id is valid."""
        known = self._anonymous if anonymous else self.named
        account = known.get(customer)
        if account is None:
            if len(known) >= _ACCOUNTS_MAX:
                # The oldest half: whoever is still there is known again after one more round trip.
                for key in list(known)[: _ACCOUNTS_MAX // 2]:
                    known.pop(key, None)  # Another thread may be doing the same.
            account = known[customer] = Account(self, customer, self.now_ms(), anonymous=anonymous)
        return account
