"""A customer as a process knows them: state, entitlements, and decisions packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog import BILLED_ON_ATTEMPT
from meterkit.catalog.quantity import counters_of
from meterkit.store.alarms import Alarms
from meterkit.store.connection import ReplyError
from meterkit.store.decision import Decision
from meterkit.store.derived import derived_from
from meterkit.store.program import (
    Blank,
    Demand,
    Open,
    check_tokens,
    compile_program,
    compile_reserving,
    demands_of,
)
from meterkit.store.purse import purse_of, purses_of
from meterkit.store.resp import pack_each
from meterkit.store.state import (
    NO_STATE,
    CustomerState,
    entitlements_of,
    holding_only,
    refusal_of,
    standing_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Catalog, Entitlement, Route
    from meterkit.store.keys import Keys
    from meterkit.store.program import Program
    from meterkit.store.purse import Purse
    from meterkit.store.scripts import Script
    from meterkit.store.state import Standing

__all__ = ["HOLD_SLOT_MS", "Account", "Accounts", "DecideCall"]

HOLD_SLOT_MS: Final = 300_000
"""How long one of the two slots of holds lasts."""

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
        recurs: whether the same call is made again and again.
        shadow: whether it is counted and held whatever the limits say, and nobody is held to them.
        foregone: in shadow, the refusal that would follow from the state alone, or None.
    """

    __slots__ = (
        *("account", "consumed", "endings", "foregone", "held", "packed", "preset", "program", "recurs"),
        *("reserved", "shadow", "standing"),
    )

    def __init__(
        self,
        account: Account,
        program: Program,
        mode: str,
        *,
        route: Route | None = None,
        reserved: Mapping[str, int] = _NOTHING,
        packed: bytes | None = None,
    ) -> None:
        self.account = account
        self.program = program
        self.shadow = (route or account.accounts.catalog).enforcement == "shadow"
        refusal = None if mode == "h" else refusal_of(account.customer, account.standing, route)
        self.preset = None if self.shadow else refusal
        self.foregone = refusal if self.shadow else None
        self.standing = account.standing
        self.endings: dict[bool, Any] = {}
        self.reserved = reserved
        self.held = program.held
        self.consumed = program.settled
        self.recurs = False
        if self.shadow and mode in "df":
            mode = "s"
        self.packed = packed or account.pack_decide(program, mode if self.preset is None else "v")

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
        account: Account,
        route: Route,
        blank: Blank,
        program: Program,
        mode: str,
        *,
        reserved: Mapping[str, int],
        packed: bytes | None,
    ) -> None:
        super().__init__(account, program, mode, route=route, reserved=reserved, packed=packed)
        self.held = blank.quantities(program.held, reserved)
        self.consumed = blank.besides
        # The account may have learnt of another state by the time of the reply.
        self._route, self._entitlements, self._purse = route, account.entitlements, account.purse

    def exact(self) -> Program:
        """What is asked, to the unit."""
        catalog = self.account.accounts.catalog
        return compile_reserving(self._entitlements, catalog, self._route, self.reserved, self._purse)


class Account:
    """One customer; refreshed whenever the store says that this view of them is stale."""

    __slots__ = (
        "_calls",
        "accounts",
        "anonymous",
        "blanks",
        "calls",
        "customer",
        "endings",
        "entitlements",
        "keys",
        "purse",
        "rev",
        "standing",
        "state",
    )

    rev: str
    state: CustomerState
    standing: Standing
    entitlements: Mapping[str, Entitlement]
    purse: Purse | None

    def __init__(self, accounts: Accounts, customer: str, now_ms: int, *, anonymous: bool) -> None:
        self.accounts = accounts
        self.customer = customer
        self.anonymous = anonymous
        self.keys = accounts.keys.customer(customer, anonymous=anonymous)
        self.refresh(NO_STATE, b"", now_ms)

    def refresh(self, rev: str, data: bytes, now_ms: int) -> None:
        """Take a state, and what follows from it at an instant."""
        catalog = self.accounts.catalog
        state = CustomerState.parse(data)
        if self.anonymous and catalog.anonymous is not None:
            state = CustomerState(plan=catalog.anonymous.plan)
        if state.plan is not None and state.plan not in catalog.plans:
            self.accounts.alarms.unknown_plan(self.customer, state.plan)
        self.rev = rev
        self.state = state
        self.standing = standing_at(state, catalog, now_ms)
        self.entitlements = entitlements_of(state, self.standing, catalog)
        self.purse = purse_of(rev, state, self.standing.plan, self.accounts.purses)
        self.calls: dict[int, DecideCall] = {}
        self._calls: dict[Any, DecideCall] = {}
        self.blanks: dict[tuple[int | str, ...], Blank] = {}
        self.endings: dict[Any, Any] = {}

    def take(self, reply: list[Any]) -> None:
        """Take the state from a script's reply ``{code, now, rev, state}``."""
        self.refresh(reply[2].decode(), reply[3], reply[1])

    def call(self, route: Route, *, mode: str = "d") -> DecideCall:
        """The decision about a route; :attr:`calls` keeps it by the route's identity."""
        call = self.calls.get(id(route)) if mode == "d" else None
        if call is None:
            program = self.accounts.program(self.entitlements, route, self.purse)
            call = DecideCall(self, program, mode, route=route)
            if mode == "d":
                call.recurs = True
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
        blank = self.blanks.get(key)
        if blank is None:
            blank = self.blanks[key] = self._blank(route, tuple(reserved))
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
        refusal = refusal_of(self.customer, self.standing, route)
        return Blank(program, consumed, refusal, *self._around_terms(program, mode))

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
            if len(self._calls) >= _CALLS_MAX:
                self._calls.clear()
            call = self._calls[key] = DecideCall(self, program, mode)
            call.recurs = True
        return call

    def renewal(self, held: Mapping[str, int], flights: tuple[str, ...]) -> DecideCall:
        """A call that holds again what another held, whatever is left of it."""
        demands = {name: Demand(needed=0, taken=held.get(name, 0)) for name in (*held, *flights)}
        kept = holding_only(self.entitlements, demands, flights)
        program = compile_program(kept, self.accounts.catalog, demands, purse=self.purse)
        return DecideCall(self, program, "h")

    def pack_decide(self, program: Program, mode: str) -> bytes:
        """The request of a decision, without the clock that ends it."""
        head, tail = self._around_terms(program, mode)
        terms = self.terms(program.keep_ms, *program.numbers, more=program.room)
        return b"".join((head, pack_each((terms,)), tail))

    def _around_terms(self, program: Program, mode: str) -> tuple[bytes, bytes]:
        keys = self.keys
        names = (keys.counters, keys.state, keys.totals, *((keys.grants,) if program.room else ()))
        head = ("EVALSHA", self.accounts.decide.sha, len(names), *names, self.rev)
        tail = (mode, *program.fields)
        return b"*%d\r\n%b" % (len(head) + len(tail) + 2, pack_each(head)), pack_each(tail)

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

    def passage(self) -> Decision:
        """What stands in place of a decision where enforcement is off."""
        return Decision(customer=self.customer, plan=self.standing.plan.key, allowed=True)


class Accounts:
    """The customers that a process knows, and what their calls are made of.

    Args:
        catalog: what is sold.
        keys: names of keys.
        decide: the script that decides.
        settle: the script that settles.
        seal_delay_ms: how long pending usage waits before it is sealed.
        now_ms: this process's clock.
        on_orphan: takes an allowed decision that nobody waited for, and when it was made (ms).
        on_low: takes a customer and a credit whose balance has become low.

    Attributes:
        counters: the meters that can be counted on: no gauges, and none that follow another.
        derives: whether there are meters that follow another.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        keys: Keys,
        decide: Script,
        settle: Script,
        seal_delay_ms: int,
        now_ms: Callable[[], int],
        on_orphan: Callable[[DecideCall, int], None],
        on_low: Callable[[str, str], None] = lambda _customer, _credit: None,
    ) -> None:
        self.catalog = catalog
        self.keys = keys
        self.decide = decide
        self.settle = settle
        self.seal_delay_ms = seal_delay_ms
        self.now_ms = now_ms
        self.on_orphan = on_orphan
        self.on_low = on_low
        self.named: dict[str, Account] = {}
        self._anonymous: dict[str, Account] = {}
        self._programs: dict[tuple[int, int, bool], Program] = {}
        self.purses = purses_of(catalog)
        self.alarms = Alarms(catalog)
        self.counters = counters_of(catalog.meters)
        self.derives = any(meter.source is not None for meter in catalog.meters.values())
        check_tokens(catalog)
        # A program that cannot be is refused now, not at the first request.
        for plan in catalog.plans.values():
            for route in catalog.routes:
                self.program(plan.entitlements, route, self.purses[plan.key] if plan.grants else None)

    def get(self, customer: str, *, anonymous: bool = False) -> Account:
        """The account of a customer whose id is valid."""
        known = self._anonymous if anonymous else self.named
        account = known.get(customer)
        if account is None:
            if len(known) >= _ACCOUNTS_MAX:
                # The oldest half: whoever is still there is known again after one more round trip.
                for key in list(known)[: _ACCOUNTS_MAX // 2]:
                    del known[key]
            account = known[customer] = Account(self, customer, self.now_ms(), anonymous=anonymous)
        return account

    def program(self, entitlements: Mapping[str, Entitlement], route: Route, purse: Purse | None) -> Program:
        """What a route asks of a set of entitlements; a plan's own are worked out once."""
        key = (id(entitlements), id(route), purse is not None)
        program = self._programs.get(key)
        if program is None:
            program = compile_program(
                entitlements,
                self.catalog,
                demands_of(route, self.catalog),
                billed_always=route.charge_on == BILLED_ON_ATTEMPT,
                rates_only=route.always,
                purse=purse,
            )
            if any(entitlements is plan.entitlements for plan in self.catalog.plans.values()):
                self._programs[key] = program
        return program
