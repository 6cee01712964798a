"""Allotments: requests that the store has admitted in advance, for one customer and line. Pure."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.policies import CEILING, CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, SPENT
from meterkit.decisions.program import compile_program, demands_of
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError, pack_each, pack_numbers
from meterkit.store.replies import ALLOWED, STALE
from meterkit.store.script_terms import pack_head
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, UsedQuantities
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from meterkit.catalog import Catalog, Plan, Route
    from meterkit.catalog.models import Allotment as AllotmentKey
    from meterkit.redis.lane import Lane
    from meterkit.store.views import CustomerView

TERM_MS: Final = 250
"""For so long an allotment is used at most."""
SHARE: Final = 8
"""So many times what the others of an allotment need must be left when its last request is admitted."""
LEAST: Final = 4
"""Fewer requests than this are not worth an allotment: near a limit each request is decided by itself."""
MOST: Final = 4096
_LASTS_LEAST_MS: Final = 25
_EARLY_MS: Final = 2
"""It ends so much earlier: the store's clock tells whole milliseconds, and may be a little faster."""
_KINDS: Final = frozenset({SLIDING_WINDOW, FIXED_WINDOW, CEILING, CONCURRENCY, SPENT})


class Allotment:
    """Units that the store has granted: each admits one request.

    A unit is unused, or a request has taken it and settles like any other request.

    Args:
        reply: of the script: ``{0, now, n, remaining, before, requests, taken, lasts}``.
        asked_s: when the process asked for it, in seconds by its own clock.

    Attributes:
        granted: how many units it had.
        unused: how many of them are left.
        at_ms: when it was granted, by the store's clock.
        until_s: no unit is taken from then on, by the same clock. It is early: the store was asked first.
    """

    __slots__ = ("_before", "_left", "_nth", "_taken", "asked_s", "at_ms", "granted", "until_s", "unused")

    def __init__(self, reply: Sequence[int], asked_s: float) -> None:
        _, self.at_ms, self._nth, self._left, self._before, self.granted, self._taken, lasts_ms = reply
        self.unused = self.granted
        self.asked_s = asked_s
        self.until_s = asked_s + (lasts_ms - _EARLY_MS) / 1000

    def take(self) -> list[int]:
        """Take one of the unused units: the reply that the decision script would have given.

        It remains the rest that the store had, and the units that are unused here.
        """
        self.unused -= 1
        return [ALLOWED, self.at_ms, self._nth, self._left + self.unused * self._taken, self._before]

    @property
    def is_used(self) -> bool:
        """Whether any unit was taken."""
        return self.unused < self.granted

    def give_up(self) -> int:
        """Take all unused units, to give them back; how many."""
        unused, self.unused = self.unused, 0
        return unused


def next_size(asked: int, granted: int, unused: int, *, is_early: bool) -> int:
    """For how many requests to ask next: about what is needed in one term.

    Args:
        asked: for how many it was asked last.
        granted: how many of them were.
        unused: how many of those are given back.
        is_early: whether little was left before half of the term was over.
    """
    if 4 * unused > granted:
        return max(LEAST, asked // 2)
    return min(MOST, 2 * asked) if is_early else asked


def pack_request(size: int) -> tuple[int, int, int, int, int]:
    """What the script is asked: at most and at least how many requests, the share, how long (ms)."""
    return size, LEAST, SHARE, TERM_MS, _LASTS_LEAST_MS


def find_allotment_key(route: Route, plan: Plan, catalog: Catalog) -> AllotmentKey:
    """What holds: the line's word stands over the plan's, the plan's over the file's."""
    return route.allotment or plan.allotment or catalog.allotment


def find_single_keys(route: Route) -> list[str]:
    """The keys with which each request is decided by itself, in whichever plan."""
    found = {
        "always": route.always,
        "usage": route.usage != "none",
        "rate": bool(route.rates),
        "idempotency_header": route.idempotency_header is not None,
        "reserve": bool(route.reserve),
        "storage": route.storage_meter is not None,
        "match": route.mcp is not None or route.method == "WS",
    }
    return [key for key, is_there in found.items() if is_there]


def prepare_unit(decision: PreparedDecision, route: Route) -> PreparedDecision | None:
    """The decision that a unit of an allotment stands for; None: each request is decided by itself.

    It is the line's own, but what it consumes is recorded when a request ends, never by the decision.
    """
    view, program = decision.view, decision.program
    catalog = view.cache.catalog
    if find_allotment_key(route, view.effective.plan, catalog) == "off" or find_single_keys(route):
        return None
    demands = demands_of(route, catalog)
    if any((program.gauges, program.subjects, decision.shadow, decision.refusal)):
        return None
    if any(measure.kind not in _KINDS for measure in program.measures):
        return None  # A bucket's tokens would be used later than they were taken, and others meanwhile.
    limited = {measure.policy.meter for measure in program.measures}
    if any(demand.taken < demand.needed and name in limited for name, demand in demands.items()):
        return None  # How much its requests come to use is not known in advance.
    kept = compile_program(view.entitlements, catalog, demands, prepaid=view.prepaid, route=route)
    unit = PreparedDecision(view, kept, "d", route=route)
    unit.is_allotted = True
    return unit


def return_units(decision: PreparedDecision, at_ms: int, units: int) -> list[Settlement]:
    """What gives units back: what they hold, and what rates have counted of them.

    Args:
        decision: what each unit stands for.
        at_ms: when they were granted, by the store's clock.
        units: how many; at least one.
    """
    view, program, slot = decision.view, decision.program, at_ms // HOLD_SLOT_MS
    counted = {
        measure.policy.meter: units * terms[-1]
        for measure, terms in zip(program.measures, program.rate_terms, strict=False)
    }
    held = {meter: units * quantity for meter, quantity in decision.held.items()}
    if not (held or counted or program.concurrency):
        return []
    whole = Settlement(
        view,
        held=HeldQuantities(held, program.concurrency, slot, program.costs),
        correction=RateCorrection(counted, program.rates, at_ms),
    )
    # One settlement gives back one permit of each concurrency limit.
    permit = Settlement(view, held=HeldQuantities(concurrency=program.concurrency, slot=slot))
    return [whole, *[permit] * (units - 1 if program.concurrency else 0)]


def combine_settlements(settlement: Settlement, times: int) -> list[Settlement]:
    """One settlement in place of several equal ones, where what they come to can be counted so."""
    held, recorded = settlement.held, settlement.used.recorded
    most = max((*held.quantities.values(), *recorded.values()), default=0)
    if times == 1 or held.concurrency or most * times > QUANTITY_MAX:
        return [settlement] * times
    return [
        Settlement(
            settlement.view,
            held=held._replace(quantities={meter: times * each for meter, each in held.quantities.items()}),
            used=UsedQuantities(recorded={meter: times * each for meter, each in recorded.items()}),
        )
    ]


HOT: Final = 8
"""A customer who has asked so often within a term gets an allotment."""
_FLUSH_S: Final = 0.05
_LINES_MAX: Final = 1_000
_TERM_S: Final = TERM_MS / 1000


class AllotmentLine:
    """The allotments of one customer on one line of the plans file, one after the other.

    Attributes:
        decision: about a request.
        unit: what each unit stands for.
        allotment: its units; None: there are none yet.
        size: for how many requests it asks.
        is_asking: whether the store is being asked for more units.
        is_denied: whether the store had no more since it granted these.
        timer: what is to be done about its term; None: it has none.
    """

    __slots__ = ("allotment", "decision", "is_asking", "is_denied", "size", "timer", "unit")

    def __init__(self, decision: PreparedDecision, unit: PreparedDecision) -> None:
        self.decision = decision
        self.unit = unit
        self.allotment: Allotment | None = None
        self.size = 2 * HOT
        self.is_asking = self.is_denied = False
        self.timer: asyncio.TimerHandle | None = None


class Allotments:
    """What one event loop admits without asking the store; see docs/design/store.md.

    Args:
        lane: the event loop's.
        clock: seconds since the epoch. Where it is the system's, allotments end by one that is never set.

    Attributes:
        granted: units that the store has granted so far.
        returned: those that were given back unused.
    """

    def __init__(self, lane: Lane, *, clock: Callable[[], float]) -> None:
        self._lane = lane
        self._wall = clock
        self._clock = monotonic if clock is time else clock
        self._lines: dict[PreparedDecision, AllotmentLine] = {}
        self._asked: dict[PreparedDecision, int] = {}
        self._asked_until_s = 0.0
        self._ended: list[Settlement] = []
        self._together: set[Settlement] = set()
        self._flushing: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.granted = self.returned = 0

    @property
    def unused(self) -> int:
        """Units that are there to be used."""
        return sum(line.allotment.unused for line in self._lines.values() if line.allotment)

    # Decisions.

    def admit(self, decision: PreparedDecision, route: Route) -> tuple[PreparedDecision, list[int] | None]:
        """Admit a request by an unused unit.

        Args:
            decision: about the request's line, of the customer's newest view.
            route: the line.

        Returns:
            What the unit stands for, and the reply; or the decision, and None: the store is to be asked.
        """
        line = self._lines.get(decision)
        if line is None:
            self._count(decision, route)
            return decision, None
        allotment = line.allotment
        if allotment is None or not allotment.unused or self._clock() >= allotment.until_s:
            return decision, None
        reply = allotment.take()
        if 4 * allotment.unused <= allotment.granted and not line.is_asking:
            self._ask(line)
        return line.unit, reply

    def _count(self, decision: PreparedDecision, route: Route) -> None:
        """Count what is asked of the store; one who asks often within a term gets an allotment."""
        if decision.reserved or decision.digest:  # Prepared for one request.
            return
        now_s = self._clock()
        if now_s >= self._asked_until_s:
            self._asked.clear()
            self._asked_until_s = now_s + _TERM_S
        times = self._asked[decision] = self._asked.get(decision, 0) + 1
        if times == HOT and not self._is_closed and len(self._lines) < _LINES_MAX:
            unit = prepare_unit(decision, route)
            if unit is not None:
                line = self._lines[decision] = AllotmentLine(decision, unit)
                self._ask(line)
                self._forget_idle(line)

    def _ask(self, line: AllotmentLine) -> None:
        """Ask for more units, unless there were none just now; one call is in flight at a time."""
        if line.is_denied or not self._lane.connected or self._lane.is_open:
            return
        call, asked_s = AllotmentRequest(self, line.unit, line.size), self._clock()
        try:
            future = self._lane.call(call)
        except MeterkitError:
            return
        line.is_asking = True
        future.add_done_callback(partial(self._answered, line, asked_s))

    def _answered(self, line: AllotmentLine, asked_s: float, future: asyncio.Future[Any]) -> None:
        line.is_asking = False
        is_lost = future.cancelled() or future.exception() is not None
        # What a lost reply grants is given back if it comes late, or else vanishes as all holds do.
        reply: Any = None if is_lost else future.result()
        code = _code_of(reply)
        if code == ALLOWED:
            self.granted += reply[5]
            if self._lines.get(line.decision) is line:
                self._use(line, Allotment(reply, asked_s))
            else:
                self.give_back(line.unit, reply[1], reply[5])
            return
        line.is_denied = True
        if code == STALE:
            with suppress(MeterkitError):
                line.unit.view.cache.learn(line.unit.view, reply)
        self._forget_idle(line)

    def _use(self, line: AllotmentLine, allotment: Allotment) -> None:
        """Use new units; what is unused of those before is given back."""
        before = line.allotment
        self._end(line, is_early=before is not None and allotment.asked_s < before.until_s - _TERM_S / 2)
        line.allotment, line.is_denied = allotment, False
        self._later(line, 0.75, self._age)

    # The term.

    def _later(self, line: AllotmentLine, share: float, do: Callable[[AllotmentLine], None]) -> None:
        """Have something done after a share of what is left of the term."""
        left_s = 0.0 if line.allotment is None else line.allotment.until_s - self._clock()
        line.timer = self._lane.call_later(max(0.0, share * left_s), partial(do, line))

    def _age(self, line: AllotmentLine) -> None:
        """Ask for the next units before the term is over, where these are used."""
        if line.allotment is not None and line.allotment.is_used and not line.is_asking:
            self._ask(line)
        self._later(line, 1, self._expire)

    def _expire(self, line: AllotmentLine) -> None:
        """Give back what is unused at the end of the term; go on where some of it was used."""
        was_used = line.allotment is not None and line.allotment.is_used
        self._end(line)
        line.is_denied = False
        if was_used and not line.is_asking:
            self._ask(line)
        self._forget_idle(line)

    def _end(self, line: AllotmentLine, *, is_early: bool = False) -> None:
        """End the allotment of a line; ``is_early``: as it was used up early."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        allotment, line.allotment = line.allotment, None
        if allotment is not None:
            unused = allotment.give_up()
            line.size = next_size(line.size, allotment.granted, unused, is_early=is_early)
            self.give_back(line.unit, allotment.at_ms, unused)

    def _forget_idle(self, line: AllotmentLine) -> None:
        if not line.is_asking and line.timer is None and self._lines.get(line.decision) is line:
            del self._lines[line.decision]

    def give_back(self, unit: PreparedDecision, at_ms: int, units: int) -> None:
        """Give back units that are not used.

        Args:
            unit: what each stands for.
            at_ms: when they were granted, by the store's clock.
            units: how many.
        """
        self.returned += units
        for settlement in return_units(unit, at_ms, units) if units else ():
            self._send(settlement)

    # What requests have come to.

    def settle(self, settlement: Settlement) -> None:
        """Settle what a request came to: together with equal ones, within 50 ms."""
        if settlement.held.concurrency or self._is_closed:  # Others wait for what it gives back.
            self._send(settlement)
            return
        if settlement not in self._together:
            bounds, now_ms = settlement.view.effective.bounds, int(1000 * self._wall())
            ends_ms = bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms
            if now_ms + 1000 * _FLUSH_S >= ends_ms:  # It belongs to the period that it ended in.
                self._send(settlement)
                return
            self._together.add(settlement)
        if self._flushing is None:
            self._flushing = self._lane.call_later(_FLUSH_S, self.flush)
        # At once, unlike a count: the garbage collector may end a request, which comes here, at any point.
        self._ended.append(settlement)

    def flush(self) -> None:
        """Send what waits to be settled."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        ended, self._ended = self._ended, []
        self._together.clear()
        for settlement, times in Counter(ended).items():
            for one in combine_settlements(settlement, times):
                self._send(one)

    def close(self) -> None:
        """Give back all that is unused and send what waits; from now on nothing is allotted."""
        self._is_closed = True
        self.flush()
        for line in self._lines.values():
            self._end(line)
        self._lines.clear()

    def _send(self, settlement: Settlement) -> None:
        self._lane.settle(settlement)


class AllotmentRequest:
    """A request for units.

    Args:
        allotments: who asks.
        unit: what each stands for.
        size: for how many requests.
    """

    __slots__ = ("_allotments", "_unit", "packed", "view")

    def __init__(self, allotments: Allotments, unit: PreparedDecision, size: int) -> None:
        view, program = unit.view, unit.program
        self._allotments = allotments
        self._unit = unit
        self.view: CustomerView = view
        sha = "" if view.cache.allot is None else view.cache.allot.sha
        terms = view.terms(program.keep_ms, *program.numbers)
        self.packed = (
            pack_head(program, view.keys, sha=sha, rev=view.rev),
            pack_each((terms, pack_numbers(pack_request(size)), *program.trailing_arguments("d")[1:])),
        )

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Give back what was granted after the connection had been given up."""
        if _code_of(reply) == ALLOWED:
            self._allotments.granted += reply[5]
            self._allotments.give_back(self._unit, reply[1], reply[5])


def _code_of(reply: Any) -> int | None:
    """The first number of the script's reply; None: there is none, or it is an error."""
    return None if reply is None or isinstance(reply, ReplyError) else reply[0]
