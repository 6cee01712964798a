"""What requests do in a random life: decide, hold, end, and be told that they know too little."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.derived import derived_from
from meterkit.decisions.periods import bounds_at
from meterkit.decisions.program import Demand, compile_program
from meterkit.redis.resp import pack_each
from meterkit.redis.writers import pack_place
from meterkit.store.accounts import Accounts
from meterkit.store.endings import Ending
from store.script_checks import Checks
from store.script_counts import DAY_MS, SLOT_MS
from store.script_model import Times, Use, View
from store.script_plans import ANONYMOUS, HUGE, PLAIN, SEAL_DELAY_MS, SKEWS
from store.script_purse import may_have

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from meterkit.decisions.program import Program
    from meterkit.store.accounts import Account
    from store.script_plans import Sales
    from store.script_wires import Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What was admitted and has not ended: when, and what was set aside until the true quantity is known."""

    account: Account
    program: Program
    decided_ms: int
    slot: int
    reserved: Mapping[str, int] = field(default_factory=dict[str, int])


class Requests(Checks):
    """Two processes that know the customers, three writers, and a clock."""

    def __init__(
        self,
        wire: Wire,
        texts: Mapping[str, str],
        random: Random,
        *,
        anchors: bool = True,
        sales: Sales = PLAIN,
    ) -> None:
        super().__init__(wire, texts, sales)
        self.random, self.anchors, self.skews = random, anchors, False
        self._skewed = {
            (name, skew): self.load(name, texts[name].replace(_CLOCK, f"{_CLOCK} + {skew}")).sha.encode()
            for name in ("decide", "settle")
            for skew in SKEWS
        }
        self.processes = [self._process(seal_delay_ms) for seal_delay_ms in (0, SEAL_DELAY_MS)]
        self.open: list[Open] = []
        self.numbers: Counter[str] = Counter()

    def decide(self, name: str) -> None:
        account = self._account(name)
        meters = self.random.sample(self.sales.meters, self.random.choice((1, 1, 2, 3)))
        demands = {meter: self._demand(account, meter) for meter in meters}
        mode = self.random.choices("dcfs", (20, 3, 1, 2))[0]
        flags = {"billed_always": self.random.random() < 0.3, "rates_only": self.random.random() < 0.1}
        self.ask_for(account, demands, mode, flags)

    def reserve(self, name: str) -> None:
        """Set aside what will be known later, of the meters that are derived from it, too."""
        account = self._account(name)
        reserved: dict[str, int] = {}
        dimensions = self.random.choice(_DIMENSIONS)
        for meter in self.random.sample(self.sales.meters, self.random.choice((1, 1, 2))):
            reserved[meter] = max(1, self._quantity(account, meter))
            for derived in derived_from(self.catalog.meters, meter, dimensions):
                reserved[derived.name] = reserved[meter]
        demands = {meter: Demand(needed=quantity, taken=quantity) for meter, quantity in reserved.items()}
        flags = {"billed_always": False, "rates_only": self.random.random() < 0.05}
        self.ask_for(account, demands, "d", flags, reserved)

    def ask_for(
        self,
        account: Account,
        demands: Mapping[str, Demand],
        mode: str,
        flags: Mapping[str, bool],
        reserved: Mapping[str, int] = {},
    ) -> None:
        if any(flags.values()):
            program = compile_program(
                account.view.entitlements, self.catalog, demands, **flags, purse=account.view.purse
            )
            packed = account.view.pack_decide(program, mode)
        else:
            call = account.view.call_for(demands, mode=mode, in_flight=True)
            program, packed = call.program, call.packed
            mode = mode if call.preset is None else "v"
        reply = self._decide(account, packed, demands, mode, view_of(account), flags)
        if reply[0] in {0, 5} and mode in "dfs" and program.settles:
            slot = reply[1] // SLOT_MS
            opened = Open(account=account, program=program, decided_ms=reply[1], slot=slot, reserved=reserved)
            self.open.append(opened)
        elif reply[0] == 1:
            self.refused(account, program, reply)

    def refused(self, account: Account, program: Program, reply: list[int]) -> None:
        """For tests that look closer."""

    def renew(self, _: str) -> None:
        """Hold on to what is held."""
        if not self.open:
            return
        held = self.open.pop(self.random.randrange(len(self.open)))
        account, program = held.account, held.program
        call, view = account.view.renewal(program.held, program.flights), view_of(account)
        demands = {
            name: Demand(needed=0, taken=program.held.get(name, 0))
            for name in (*program.held, *program.flights)
        }
        kept = {
            name: replace(given, rates=(), concurrency=given.concurrency if name in program.flights else None)
            for name, given in account.view.entitlements.items()
        }
        reply = self._decide(account, call.packed, demands, "h", replace(view, entitlements=kept), {})
        if reply[0] == 0:
            self.open.append(replace(held, program=call.program, slot=reply[1] // SLOT_MS))
            self.end(held, recorded={}, seen=None)

    def settle(self, name: str) -> None:
        if not self.open:
            return self.record(name)
        opened = self.open.pop(self.random.randrange(len(self.open)))
        account, program = opened.account, opened.program
        other = {meter: self._quantity(account, meter) for meter in self.sales.meters}
        settled = {meter: taken for meter, taken in program.settled.items() if meter in other}
        recorded = self.random.choice(
            ({}, settled, settled, {meter: other[meter] for meter in settled}, {})
            if opened.reserved
            else ({}, settled, settled, {meter: other[meter] for meter in settled})
        )
        seen = recorded
        if opened.reserved and self.random.random() < 0.2:
            seen = {**settled, self.random.choice(self.sales.meters): 3}
        if self.random.random() < 0.05:
            opened = replace(opened, slot=opened.slot + self.random.randrange(-3, 4))
        self.end(opened, recorded=recorded, seen=seen)
        return None

    def end(self, opened: Open, *, recorded: Mapping[str, int], seen: Mapping[str, int] | None) -> None:
        """Give back what was held, record what is billed, and correct the rates by what was seen."""
        reserved: Mapping[str, int] = {} if seen is None else opened.reserved
        seen = seen or {}
        self._settle(
            Ending(
                opened.account,
                held=opened.program.held,
                flights=opened.program.flights,
                recorded=recorded,
                rated=seen if reserved else {},
                slot=opened.slot,
                reserved=reserved,
                decided=opened.program.rates,
                counted_ms=opened.decided_ms,
                dimensions=self.random.choice(_DIMENSIONS),
                measured=self._measured(seen or recorded),
            )
        )

    def record(self, name: str) -> None:
        account = self._account(name)
        meters = self.random.sample(self.sales.meters, self.random.choice((1, 1, 2)))
        recorded = {meter: self._quantity(account, meter) for meter in meters}
        event = None
        if self.random.random() < 0.15:
            event = self.keys.event(0, name, str(self.random.randrange(60)))
        recorded, rated = self.random.choice(((recorded, recorded), (recorded, {}), ({}, recorded)))
        dimensions = self.random.choice(_DIMENSIONS)
        self._settle(
            Ending(
                account,
                held={},
                flights=(),
                recorded=recorded,
                rated=rated,
                slot=0,
                event_key=event,
                occurred_ms=self._occurred(name) if self.random.random() < 0.12 else None,
                dimensions=dimensions,
                measured=self._measured(recorded or rated),
            )
        )

    # What deeds are made of.

    def _decide(
        self,
        account: Account,
        packed: bytes,
        demands: Mapping[str, Demand],
        mode: str,
        view: View,
        flags: Mapping[str, bool],
    ) -> Any:
        times, request = self._clocks("decide", packed)
        expected = self.model.decide(account.customer, view, demands, mode=mode, times=times, **flags)
        reply = self.wire(request)
        self.compare(f"decide {mode} {account.customer} {demands} {flags} {times}", expected, reply)
        self.seen[f"decide {mode} {expected[0]!r}"] += 1
        if expected[0] == 2:
            account.take(reply)
        return reply

    def _settle(self, ending: Ending) -> None:
        account = ending.account
        name, writer = account.customer, self.random.choice(self.writers)
        number = self.numbers[writer] + 1
        if self.random.random() < 0.08:
            number = max(1, number + self.random.choice((-2, -1, -1, 1, 2)))
        head, tail = ending.pack()
        packed = head + pack_each([self.keys.writer(0, writer)]) + tail + pack_place(ending.slot, number)
        times, request = self._clocks("settle", packed)
        use = Use(
            held=ending.held,
            flights=ending.flights,
            recorded=ending.recorded,
            rated=ending.rated,
            slot=ending.slot,
            event=ending.event_key,
            occurred=ending.occurred_ms,
            reserved=ending.reserved,
            decided=ending.decided,
            counted_ms=ending.counted_ms,
            dimensions=ending.dimensions,
            measured=ending.measured,
        )
        view = view_of(account)
        if ending.occurred_ms is not None:
            view = replace(view, own_start=self._own_start(account, ending.occurred_ms))
        expected = self.model.settle(name, view, use, writer=writer, number=number, times=times)
        self.seen["late"] += any(str(word).startswith("b'late") for word in expected)
        self.numbers[writer] = self.model.writers[writer].last
        reply = self.wire(request)
        code = int(expected[0])
        if code == 0:
            reply = _sorted(reply)
        self.compare(f"settle {name} {use} {writer} {number} {times}", expected, reply)
        self.seen["low"] += code == 0 and len(expected) > len("ok")
        self.seen[f"settle {code}"] += 1
        if code == 4:
            account.take(reply)
        if code == 3 and self.random.random() < 0.5:
            self.writers[self.writers.index(writer)] = f"w{self.random.randrange(10**9)}"
        if code in {2, 3, 4, 5} and self.random.random() < 0.8:
            self._settle(ending)

    def _occurred(self, name: str) -> int:
        """Some instant: of now, of the period that is open, of one that is closed, or beside such an edge."""
        customer, edges = self.model.customers[name], [self.wall]
        edges += [customer.period[0]] * 2 if customer.period else []
        edges += [int(field.partition("|")[0]) for field in customer.closed]
        edges += [end for field, end in customer.closed.items() if field.endswith("|e")]
        edge = self.random.choice(edges) + self.random.choice((-1, 0, 0, 1))
        return self.random.choice((edge, edge, edge, self.wall - self.random.randrange(500 * DAY_MS)))

    def _own_start(self, account: Account, at: int) -> int:
        plan = account.standing.plan
        interval = plan.price.interval if plan.price.included_per == "interval" else "month"
        return bounds_at(at, anchor_ms=account.view.state.anchor_ms, interval=interval).start_ms

    def _process(self, seal_delay_ms: int) -> Accounts:
        return Accounts(
            self.catalog,
            keys=self.keys,
            decide=self.scripts["decide"],
            settle=self.scripts["settle"],
            seal_delay_ms=seal_delay_ms,
            now_ms=lambda: self.wall,
            on_orphan=lambda _call, _slot: None,
        )

    def _account(self, name: str) -> Account:
        return self.random.choice(self.processes).get(name, anonymous=name == ANONYMOUS)

    def _clocks(self, script: str, packed: bytes) -> tuple[Times, bytes]:
        skew = self.random.choice(SKEWS) if self.skews or self.random.random() < 0.04 else 0
        self.skews = False
        if skew:
            packed = packed.replace(self.scripts[script].sha.encode(), self._skewed[script, skew])
        claimed = self.wall - skew
        return Times(wall=self.wall, claimed=claimed), packed + pack_each([claimed])

    def _quantity(self, account: Account, meter: str) -> int:
        known = self.sales.quantities[meter]
        if account.standing.plan.key in {"big", "vast"} and self.random.random() < 0.4:
            return self.random.choice(HUGE)
        return self.random.choice((*known, self.random.choice(known) * self.random.randrange(2)))

    def _measured(self, quantities: Mapping[str, int]) -> Mapping[str, int]:
        """The quantities whose dimensions are known: mostly all."""
        return quantities if self.random.random() < 0.9 else {}

    def _demand(self, account: Account, meter: str) -> Demand:
        quantity = max(1, self._quantity(account, meter))
        given = self.random.random()
        if given < 0.8:
            return Demand(needed=quantity, taken=quantity)
        if given < 0.82:
            return Demand(needed=0, taken=0)
        return Demand(needed=1, taken=0) if given < 0.9 else Demand(needed=quantity, taken=quantity // 2)


def _sorted(reply: Any) -> Any:
    """The low credits come in no order."""
    return reply if isinstance(reply, Exception) else [*reply[:2], *sorted(reply[2:], key=repr)]


def view_of(account: Account) -> View:
    bounds = account.standing.bounds
    return View(
        rev=account.view.rev,
        valid_until_ms=account.standing.valid_until_ms,
        period=(bounds.start_ms, bounds.end_ms),
        next_end_ms=bounds.next_end_ms,
        entitlements=account.view.entitlements,
        linked=account.view.state.stripe_customer is not None,
        seal_delay_ms=account.accounts.seal_delay_ms,
        billable=not account.anonymous,
        plan=account.standing.plan,
        late_is_dead=account.accounts.catalog.billing.late_usage == "dead_letter",
        has_purse=may_have(
            account.view.rev, account.view.state, account.standing.plan, account.accounts.catalog
        ),
    )


_CLOCK: Final = "return tonumber(ARGV[#ARGV])"
_DIMENSIONS: Final[tuple[Mapping[str, str], ...]] = (
    *({}, {}, {"size": "large"}, {"size": "small", "code": "yes"}, {"size": "l", "code": "yes"}),
)
