"""Allotments: the store admits requests of a hot customer and route in advance; unused units are returned.

Token buckets are left out, since they would refill while units are unused. So are routes whose cost is known
only afterwards: many requests at once would overdraw a credit that is almost used up.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.compiled_decision import REPLY_NUMBERS, compile_program, demands_of
from meterkit.decisions.limit_policies import CEILING, CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, SPENT
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError, pack_each, pack_numbers
from meterkit.store.remainders import pack_reply
from meterkit.store.replies import ALLOWED, STALE
from meterkit.store.script_arguments import pack_head
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
"""Longest use of an allotment."""
SHARE: Final = 8
"""Reserve of an allotment: its last request leaves this many times the need of the others."""
SIZE_MIN: Final = 4
"""Smallest allotment: near a limit each request is decided by itself."""
SIZE_MAX: Final = 4096
_TERM_MIN_MS: Final = 25
_EARLY_MS: Final = 2
"""Margin at its end: the store's clock has whole milliseconds, and may be a little faster."""
_KINDS: Final = frozenset({SLIDING_WINDOW, FIXED_WINDOW, CEILING, CONCURRENCY, SPENT})


class Allotment:
    """Units that the store has granted: each admits one request, which settles like any other.

    Args:
        reply: of the script: ``{0, now, n, remaining, before, requests, taken, lasts, rests}``.
        asked_s: time of the call by the process's clock, in seconds.

    Attributes:
        granted: number of granted units.
        unused: number of units that are left.
        at_ms: time of the grant by the store's clock.
        nth, left, before: the limit nearest to exhaustion, as of the script's reply, once all are used.
        taken: what each unit takes of it.
        until_s: end of use by the process's clock, counted from the call.
    """

    __slots__ = ("asked_s", "at_ms", "before", "granted", "left", "nth", "taken", "until_s", "unused")

    def __init__(self, reply: Sequence[int], asked_s: float) -> None:
        _, self.at_ms, self.nth, self.left, self.before, self.granted, self.taken, lasts_ms = reply[:8]
        self.unused = self.granted
        self.asked_s = asked_s
        self.until_s = asked_s + (lasts_ms - _EARLY_MS) / 1000

    @property
    def is_used(self) -> bool:
        """Whether any unit was used."""
        return self.unused < self.granted

    def drain(self) -> int:
        """Remove all unused units; return their number."""
        unused, self.unused = self.unused, 0
        return unused


def next_size(asked: int, granted: int, unused: int, *, is_early: bool) -> int:
    """Size of the next allotment: about the need of one term.

    Args:
        asked: size asked for last.
        granted: number of granted units.
        unused: number of units returned.
        is_early: whether little was left before half of the term was over.
    """
    if 4 * unused > granted:
        return max(SIZE_MIN, asked // 2)
    return min(SIZE_MAX, 2 * asked) if is_early else asked


def find_allotment_key(route: Route, plan: Plan, catalog: Catalog) -> AllotmentKey:
    """Allotment setting of a route: its own, otherwise the plan's, otherwise the file's."""
    return route.allotment or plan.allotment or catalog.allotment


def find_single_keys(route: Route) -> list[str]:
    """Keys of a route that exclude allotments, in any plan."""
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
    """Decision of one unit of an allotment; None: each request is decided by itself.

    It is the route's decision, but its quantities are recorded when a request ends, never by the decision.
    """
    view, program = decision.view, decision.program
    catalog = view.cache.catalog
    if find_allotment_key(route, view.effective.plan, catalog) == "off" or find_single_keys(route):
        return None
    demands = demands_of(route, catalog)
    if any((program.gauges, program.subjects, decision.shadow, decision.refusal)):
        return None
    if any(measure.kind not in _KINDS for measure in program.measures):
        return None  # A token bucket refills between the grant and the use of a unit.
    limited = {measure.policy.meter for measure in program.measures}
    if any(demand.taken < demand.needed and name in limited for name, demand in demands.items()):
        return None  # The usage of its requests is not known in advance.
    kept = compile_program(view.entitlements, view.catalog, demands, prepaid=view.prepaid, route=route)
    unit = PreparedDecision(view, kept, "d", route=route)
    unit.is_allotted = True
    return unit


def return_units(decision: PreparedDecision, at_ms: int, units: int) -> list[Settlement]:
    """Settlements that return units: their holds, and the counts of rates.

    Args:
        decision: decision of each unit.
        at_ms: time of the grant by the store's clock.
        units: number of units; at least one.
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
    """Combine equal settlements into one, if their sum can be counted."""
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
"""Decisions within a term that make a customer hot: it gets an allotment."""
_FLUSH_S: Final = 0.05
_LINES_MAX: Final = 1_000
_TERM_S: Final = TERM_MS / 1000


class AllotmentLine:
    """Successive allotments of one customer and route.

    Attributes:
        decision: decision about a request.
        unit: decision of each unit.
        allotment: current units; None: none yet.
        size: size of the next allotment.
        is_asking: whether a call for units is in flight.
        is_denied: whether the store refused units since it granted these.
        timer: next step of the term; None: none.
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
    """Requests that one event loop admits without asking the store; see docs/design/store.md.

    Args:
        lane: of the event loop.
        clock: seconds since the epoch. For the system's clock, allotments end by the monotonic one.

    Attributes:
        granted: number of units granted so far.
        returned: number of units returned unused.
    """

    def __init__(self, lane: Lane, *, clock: Callable[[], float]) -> None:
        self._lane = lane
        self._wall = clock
        self._clock = monotonic if clock is time else clock
        self._lines: dict[PreparedDecision | None, AllotmentLine] = {}
        self._asked: dict[PreparedDecision, int] = {}
        self._asked_until_s = 0.0
        self._ended: list[Settlement] = []
        self._batched: set[Settlement] = set()
        self._flushing: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.granted = self.returned = 0

    @property
    def unused(self) -> int:
        """Number of unused units."""
        return sum(line.allotment.unused for line in self._lines.values() if line.allotment)

    # Decisions.

    def admit(self, decision: PreparedDecision, route: Route) -> tuple[PreparedDecision, list[int] | None]:
        """Admit a request by an unused unit, or count it as one that the store decides.

        Args:
            decision: decision about the route, by the customer's newest view.
            route: the route.

        Returns:
            The unit's decision and the reply; or ``decision`` and None: ask the store.
        """
        if decision not in self._lines:
            self._count_request(decision, route)
            return decision, None
        return self.use_unit(decision) or (decision, None)

    def use_unit(self, decision: PreparedDecision | None) -> tuple[PreparedDecision, list[int]] | None:
        """Use an unused unit, if there is one; the unit's decision, and what the script would have replied.

        The remaining quantity is the store's plus that of the unused units.
        """
        line = self._lines.get(decision)
        if line is None:
            return None
        allotment = line.allotment
        if allotment is None or not allotment.unused or self._clock() >= allotment.until_s:
            return None
        allotment.unused = unused = allotment.unused - 1
        if 4 * unused <= allotment.granted and not line.is_asking:
            self._request_units(line)
        left = allotment.left + unused * allotment.taken
        return line.unit, [ALLOWED, allotment.at_ms, allotment.nth, left, allotment.before]

    def _count_request(self, decision: PreparedDecision, route: Route) -> None:
        """Count decisions by the store; a hot customer gets an allotment."""
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
                self._request_units(line)
                self._forget_idle(line)

    def _request_units(self, line: AllotmentLine) -> None:
        """Ask for more units, unless the store has just refused them; one call is in flight at a time."""
        if line.is_denied or not self._lane.connected or self._lane.is_open:
            return
        call, asked_s = AllotmentRequest(self, line.unit, line.size), self._clock()
        try:
            future = self._lane.call(call)
        except MeterkitError:
            return
        line.is_asking = True
        future.add_done_callback(partial(self._handle_reply, line, asked_s))

    def _handle_reply(self, line: AllotmentLine, asked_s: float, future: asyncio.Future[Any]) -> None:
        line.is_asking = False
        is_lost = future.cancelled() or future.exception() is not None
        # Units of a lost reply are returned if it comes late, otherwise they expire like all holds.
        reply: Any = None if is_lost else future.result()
        code = _code_of(reply)
        if code == ALLOWED:
            self.granted += reply[5]
            line.unit.latest_reply.packed = pack_reply(reply[:REPLY_NUMBERS], reply[8:])
            if self._lines.get(line.decision) is line:
                self._start_allotment(line, Allotment(reply, asked_s))
            else:
                self.return_unused(line.unit, reply[1], reply[5])
            return
        line.is_denied = True
        if code == STALE:
            with suppress(MeterkitError):
                line.unit.view.cache.learn(line.unit.view, reply)
        self._forget_idle(line)

    def _start_allotment(self, line: AllotmentLine, allotment: Allotment) -> None:
        """Use new units; return the unused ones of the allotment before."""
        before = line.allotment
        self._end_allotment(
            line, is_early=before is not None and allotment.asked_s < before.until_s - _TERM_S / 2
        )
        line.allotment, line.is_denied = allotment, False
        self._schedule_step(line, 0.75, self._request_ahead)

    # The term.

    def _schedule_step(
        self, line: AllotmentLine, share: float, step: Callable[[AllotmentLine], None]
    ) -> None:
        """Schedule a step after a share of the remaining term."""
        left_s = 0.0 if line.allotment is None else line.allotment.until_s - self._clock()
        line.timer = self._lane.call_later(max(0.0, share * left_s), partial(step, line))

    def _request_ahead(self, line: AllotmentLine) -> None:
        """Ask for the next units before the end of the term, if these are used."""
        if line.allotment is not None and line.allotment.is_used and not line.is_asking:
            self._request_units(line)
        self._schedule_step(line, 1, self._expire)

    def _expire(self, line: AllotmentLine) -> None:
        """Return unused units at the end of the term; ask for more if some were used."""
        was_used = line.allotment is not None and line.allotment.is_used
        self._end_allotment(line)
        line.is_denied = False
        if was_used and not line.is_asking:
            self._request_units(line)
        self._forget_idle(line)

    def _end_allotment(self, line: AllotmentLine, *, is_early: bool = False) -> None:
        """End the allotment of a line; ``is_early``: it was used up early."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        allotment, line.allotment = line.allotment, None
        if allotment is not None:
            unused = allotment.drain()
            line.size = next_size(line.size, allotment.granted, unused, is_early=is_early)
            self.return_unused(line.unit, allotment.at_ms, unused)

    def _forget_idle(self, line: AllotmentLine) -> None:
        if not line.is_asking and line.timer is None and self._lines.get(line.decision) is line:
            del self._lines[line.decision]

    def return_unused(self, unit: PreparedDecision, at_ms: int, units: int) -> None:
        """Return unused units.

        Args:
            unit: decision of each unit.
            at_ms: time of the grant by the store's clock.
            units: number of units.
        """
        self.returned += units
        for settlement in return_units(unit, at_ms, units) if units else ():
            self._send(settlement)

    # Settlements.

    def settle(self, settlement: Settlement) -> None:
        """Settle a request together with equal ones, within 50 ms."""
        if settlement.held.concurrency or self._is_closed:  # Other requests wait for its permit.
            self._send(settlement)
            return
        if settlement not in self._batched:
            bounds, now_ms = settlement.view.effective.bounds, int(1000 * self._wall())
            ends_ms = bounds.end_ms if now_ms < bounds.end_ms else bounds.next_end_ms
            if now_ms + 1000 * _FLUSH_S >= ends_ms:  # It belongs to the period that it ended in.
                self._send(settlement)
                return
            self._batched.add(settlement)
        if self._flushing is None:
            self._flushing = self._lane.call_later(_FLUSH_S, self.flush)
        # At once, unlike a count: the garbage collector may end a request, which comes here, at any point.
        self._ended.append(settlement)

    def flush(self) -> None:
        """Send the waiting settlements."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        ended, self._ended = self._ended, []
        self._batched.clear()
        for settlement, times in Counter(ended).items():
            for one in combine_settlements(settlement, times):
                self._send(one)

    def close(self) -> None:
        """Return all unused units and send waiting settlements; nothing is allotted from now on."""
        self._is_closed = True
        self.flush()
        for line in self._lines.values():
            self._end_allotment(line)
        self._lines.clear()

    def _send(self, settlement: Settlement) -> None:
        self._lane.settle(settlement)


class AllotmentRequest:
    """Call for units.

    Args:
        allotments: of the event loop.
        unit: decision of each unit.
        size: number of requests.
    """

    __slots__ = ("_allotments", "_unit", "packed", "view")

    def __init__(self, allotments: Allotments, unit: PreparedDecision, size: int) -> None:
        view, program = unit.view, unit.program
        self._allotments = allotments
        self._unit = unit
        self.view: CustomerView = view
        sha = "" if view.cache.allot is None else view.cache.allot.sha
        terms = view.terms(program.keep_ms, *program.numbers)
        request = pack_numbers((size, SIZE_MIN, SHARE, TERM_MS, _TERM_MIN_MS))
        self.packed = (
            pack_head(program, view.keys, sha=sha, rev=view.rev),
            pack_each((terms, request, *program.trailing_arguments("d")[1:])),
        )

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Return units that were granted after the connection was given up."""
        if _code_of(reply) == ALLOWED:
            self._allotments.granted += reply[5]
            self._allotments.return_unused(self._unit, reply[1], reply[5])


def _code_of(reply: Any) -> int | None:
    """Code of the script's reply; None: no reply, or an error."""
    return None if reply is None or isinstance(reply, ReplyError) else reply[0]
