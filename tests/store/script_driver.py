"""Drives the real scripts and the model with the same random life of a few customers, and compares.

Requests are packed by the code that packs them in production; only the clock is set.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Final

from meterkit.store.accounts import Accounts
from meterkit.store.endings import Ending
from meterkit.store.keys import meter_token
from meterkit.store.program import Demand, compile_program
from meterkit.store.resp import pack, pack_each
from meterkit.store.state import NO_STATE, CustomerState, Status
from meterkit.store.writers import pack_place
from store.script_checks import Checks
from store.script_counts import DAY_MS, MINUTE_MS, SLOT_MS
from store.script_model import NEVER_MS, Times, Use, View
from store.script_plans import (
    ANONYMOUS,
    CUSTOMERS,
    HUGE,
    METERS,
    QUANTITIES,
    SEAL_DELAY_MS,
    SKEWS,
    WINDOWS_MS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.accounts import Account
    from meterkit.store.program import Program
    from store.script_wires import Wire


def life(seed: int) -> Random:
    """Chances that can be had again."""
    return Random(seed)  # noqa: S311 - a failure must be repeatable, nothing is secret


class World(Checks):
    """A few customers, two processes that know them, three writers, and a clock."""

    def __init__(self, wire: Wire, texts: Mapping[str, str], random: Random, *, anchors: bool = True) -> None:
        super().__init__(wire, texts)
        self.random, self.anchors, self.skews = random, anchors, False
        self._skewed = {
            (name, skew): self.load(name, texts[name].replace(_CLOCK, f"{_CLOCK} + {skew}")).sha.encode()
            for name in ("decide", "settle")
            for skew in SKEWS
        }
        self.processes = [self._process(seal_delay_ms) for seal_delay_ms in (0, SEAL_DELAY_MS)]
        self.open: list[tuple[Account, Program, int]] = []
        self.numbers: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    # One step.

    def step(self) -> None:
        """Let time pass or not, then let somebody do something."""
        name = self.anybody()
        self.tick(name)
        deed = self.random.choices(_DEEDS, _WEIGHTS)[0]
        deed(self, name)
        if self.random.random() < 0.12:
            self.check(name)
        for other in (*CUSTOMERS, ANONYMOUS):
            if 0 < self.model.customers[other].lives <= self.wall and self.random.random() < 0.3:
                self.expire(other)

    def anybody(self) -> str:
        """A customer: mostly one of two, so that something comes together."""
        return self.random.choice((*CUSTOMERS, ANONYMOUS) if self.random.random() < 0.1 else CUSTOMERS[:2])

    def tick(self, name: str) -> None:
        chance = self.random.random()
        if chance < 0.45:
            return
        if chance < 0.60:
            self.wall += self.random.choice((1, 1, 2, 5, 40, 428, 429))
        elif chance < 0.72:
            self.wall += self.random.randrange(3000)
        elif chance < 0.945:
            self.wall = self._edge(name)
        elif chance < 0.985:
            # Clocks go back.
            self.wall -= self.random.choice((1, 1, 999, 60_000, 299_999, self.random.randrange(600_000)))
        else:
            self.wall += self.random.choice(
                (59_999, 60_000, 60_001, SLOT_MS * 2, 25 * 60 * MINUTE_MS, 7 * DAY_MS, 40 * DAY_MS)
            )

    def _edge(self, name: str) -> int:
        customer = self.model.customers[name]
        now, edges = max(self.wall, customer.seen), [SLOT_MS] * 3
        edges += WINDOWS_MS[:5] * 3
        edges += WINDOWS_MS[5:]
        window = self.random.choice(edges)
        at = now - now % window + window
        ends = customer.period[1] if customer.period else 0
        if now <= ends < now + SLOT_MS and self.random.random() < 0.4:
            return ends
        if self.random.random() < 0.1 and ends:
            at = ends - self.random.choice((0, 1, 1000, SLOT_MS - 1))
        elif self.random.random() < 0.05:
            at = self._account(name).standing.valid_until_ms
            at = now if at >= NEVER_MS else at
        elif window > 2 * DAY_MS and self.random.random() < 0.85:
            at = now
        elif self.random.random() < 0.06:
            at, self.skews = customer.seen + MINUTE_MS, True
        beside = (-1, 0, 1) if window < DAY_MS else (-1, 0, 1, 999, 1001, self.random.randrange(5000))
        return max(now, at + self.random.choice(beside))

    # Deeds.

    def decide(self, name: str) -> None:
        account = self._account(name)
        meters = self.random.sample(METERS, self.random.choice((1, 1, 2, 3)))
        demands = {meter: self._demand(account, meter) for meter in meters}
        mode = self.random.choices("dcf", (20, 3, 1))[0]
        flags = {"billed_always": self.random.random() < 0.3, "rates_only": self.random.random() < 0.1}
        self.ask_for(account, demands, mode, flags)

    def ask_for(
        self, account: Account, demands: Mapping[str, Demand], mode: str, flags: Mapping[str, bool]
    ) -> None:
        name = account.customer
        if any(flags.values()):
            program = compile_program(account.entitlements, self.catalog, demands, **flags)
            packed = account.pack_decide(program, mode)
        else:
            call = account.call_for(demands, mode=mode, in_flight=True)
            program, packed = call.program, call.packed
            mode = mode if call.preset is None else "v"
        times, request = self._clocks("decide", packed)
        view = _view(account)
        expected = self.model.decide(name, view, demands, mode=mode, times=times, **flags)
        reply = self.wire(request)
        self.compare(f"decide {mode} {name} {demands} {flags} {times}", expected, reply)
        code = int(expected[0])
        self.seen[f"decide {mode} {code}"] += 1
        if code == 2:
            account.take(reply)
        elif code == 0 and mode in "df" and program.settles:
            self.open.append((account, program, reply[1] // SLOT_MS))
        elif code == 1:
            self.refused(account, program, reply)

    def refused(self, account: Account, program: Program, reply: list[int]) -> None:
        """For tests that look closer."""

    def settle(self, name: str) -> None:
        if not self.open:
            return self.record(name)
        account, program, slot = self.open.pop(self.random.randrange(len(self.open)))
        recorded = self.random.choice(
            (
                {},
                program.settled,
                program.settled,
                {meter: self._quantity(account, meter) for meter in program.settled},
            )
        )
        if self.random.random() < 0.05:
            slot += self.random.randrange(-3, 4)
        self._settle(
            Ending(
                account, held=program.held, flights=program.flights, recorded=recorded, rated={}, slot=slot
            )
        )
        return None

    def record(self, name: str) -> None:
        account = self._account(name)
        meters = self.random.sample(METERS, self.random.choice((1, 1, 2)))
        recorded = {meter: self._quantity(account, meter) for meter in meters}
        event = None
        if self.random.random() < 0.15:
            event = self.keys.event(0, name, str(self.random.randrange(60)))
        recorded, rated = self.random.choice(((recorded, recorded), (recorded, {}), ({}, recorded)))
        self._settle(
            Ending(account, held={}, flights=(), recorded=recorded, rated=rated, slot=0, event_key=event)
        )

    def flood(self, name: str) -> None:
        """So much that the total, or a rate's count, would pass what is counted exactly."""
        account, meter = self._account(name), self.random.choice(METERS)
        quantities = {meter: 10**15 - 1}
        rated = self.random.choice((quantities, {}))
        for _ in range(10):
            self._settle(Ending(account, held={}, flights=(), recorded=quantities, rated=rated, slot=0))
        for _ in range(10):
            demands = {meter: Demand(needed=1, taken=3)}
            self.ask_for(account, demands, "d", {"billed_always": True, "rates_only": False})

    def stranger(self, _: str) -> None:
        """Somebody never seen before comes once."""
        name = f"s{self.random.randrange(10**9)}"
        self.random.choice((self.decide, self.record))(name)
        self.check(name)

    def amend(self, name: str) -> None:
        if name == ANONYMOUS:
            return
        customer = self.model.customers[name]
        state, keys = CustomerState.parse(customer.data), self.keys.customer(name)
        status = self.random.choice(_STATUSES)
        linked = state.stripe_customer or self.random.choice((None, None, f"cus_{name}"))
        changed = CustomerState(
            plan=self.random.choice(("free", "free", "tight", "big")),
            status=status,
            status_since_ms=self.wall if status == "past_due" else 0,
            stripe_customer=linked,
            anchor_ms=self.random.choice((None, self.wall)) if self.anchors else None,
        )
        rev, data = f"1:{self.random.randrange(10**12):012x}", changed.dump()
        if linked is None and self.random.random() < 0.2:
            rev, data = NO_STATE, ""
        argv = (customer.rev, rev, data, name, int(linked is not None), self.wall, self.wall)
        names = (keys.counters, keys.state, self.keys.shard(0, "customers"), keys.dirty, keys.unlinked)
        reply = self.wire(pack("EVALSHA", self.scripts["amend"].sha, 5, *names, *argv))
        self.compare(f"amend {name} {changed}", [0], reply)
        self.model.amend(name, rev, data, linked=linked is not None, seal_at_ms=self.wall)
        self.wall = max(self.wall, customer.seen) + 1

    def retire(self, _: str) -> None:
        nth = self.random.randrange(3)
        writer = self.writers[nth]
        reply = self.wire(pack("EVALSHA", self.scripts["retire"].sha, 1, self.keys.writer(0, writer)))
        self.compare(f"retire {writer}", self.model.retire(writer), reply)
        if self.random.random() < 0.7:
            self.writers[nth] = f"w{self.random.randrange(10**9)}"

    def plant(self, name: str) -> None:
        """Units paid by grants or credits: no script counts them yet, but they are rolled and shown."""
        customer, meter = self.model.customers[name], self.random.choice(METERS)
        if customer.period is not None:
            customer.granted[meter] = self.random.randrange(9)
            customer.credited[meter] = self.random.randrange(9)
            token, key = meter_token(meter), self.keys.customer(name, anonymous=name == ANONYMOUS).counters
            counts = (f"{token}g", customer.granted[meter], f"{token}c", customer.credited[meter])
            self.wire(pack("HSET", key, *counts))

    def expire(self, name: str) -> None:
        """What the server does with counters whose time has come."""
        self.wire(pack("DEL", self.keys.customer(name, anonymous=name == ANONYMOUS).counters))
        self.model.expire(name)

    def seal(self, name: str) -> None:
        """What a seal leaves behind: nothing pending of a meter."""
        if name not in self.model.dirty or not any(self.model.customers[name].pending.values()):
            return
        meter = self.random.choice(
            [meter for meter, count in self.model.customers[name].pending.items() if count]
        )
        counters = self.keys.customer(name).counters
        minute = self.wall - self.wall % MINUTE_MS + self.random.randrange(4) * MINUTE_MS
        self.model.sealed(name, meter, minute)
        lives = self.model.customers[name].lives
        token = meter_token(meter)
        self.wire(pack("HSET", counters, f"{token}p", 0, f"{token}z", minute, "x", lives))
        if lives < NEVER_MS:
            self.wire(pack("PEXPIREAT", counters, lives))
            self.wire(pack("ZREM", self.keys.customer(name).dirty, name))

    # What deeds are made of.

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
        )
        expected = self.model.settle(name, _view(account), use, writer=writer, number=number, times=times)
        self.numbers[writer] = self.model.writers[writer].last
        reply = self.wire(request)
        self.compare(f"settle {name} {use} {writer} {number} {times}", expected, reply)
        code = int(expected[0])
        self.seen[f"settle {code}"] += 1
        if code == 4:
            account.take(reply)
        if code == 3 and self.random.random() < 0.5:
            self.writers[self.writers.index(writer)] = f"w{self.random.randrange(10**9)}"
        if code in {2, 3, 4, 5} and self.random.random() < 0.8:
            self._settle(ending)

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
        if account.standing.plan.key == "big" and self.random.random() < 0.4:
            return self.random.choice(HUGE)
        return self.random.choice(
            (*QUANTITIES[meter], self.random.choice(QUANTITIES[meter]) * self.random.randrange(2))
        )

    def _demand(self, account: Account, meter: str) -> Demand:
        quantity = max(1, self._quantity(account, meter))
        given = self.random.random()
        if given < 0.8:
            return Demand(needed=quantity, taken=quantity)
        if given < 0.82:
            return Demand(needed=0, taken=0)
        return Demand(needed=1, taken=0) if given < 0.9 else Demand(needed=quantity, taken=quantity // 2)


_CLOCK: Final = "return tonumber(ARGV[#ARGV])"
_DEEDS: Final = (
    World.decide,
    World.settle,
    World.record,
    World.amend,
    World.retire,
    World.seal,
    World.flood,
    World.plant,
    World.stranger,
)
_STATUSES: Final[tuple[Status | None, ...]] = (
    *(None, None, "active", "past_due", "past_due", "unpaid", "canceled", "paused"),
)
_WEIGHTS: Final = (55, 28, 10, 2.5, 1, 1.5, 0.25, 0.5, 4)


def _view(account: Account) -> View:
    bounds = account.standing.bounds
    return View(
        rev=account.rev,
        valid_until_ms=account.standing.valid_until_ms,
        period=(bounds.start_ms, bounds.end_ms),
        next_end_ms=bounds.next_end_ms,
        entitlements=account.entitlements,
        linked=account.state.stripe_customer is not None,
        seal_delay_ms=account.accounts.seal_delay_ms,
        billable=not account.anonymous,
    )
