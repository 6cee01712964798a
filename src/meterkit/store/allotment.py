"""Allotments: requests that the store has admitted in advance, for one customer and line. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.decisions.policies import CEILING, CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, SPENT
from meterkit.decisions.program import compile_program, demands_of
from meterkit.store.hold import Correction, Held, Used
from meterkit.store.replies import ALLOWED
from meterkit.store.settlement import Settlement
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Catalog, Plan, Route
    from meterkit.catalog.models import Allotment as AllotmentKey

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


def wanted(size: int) -> tuple[int, int, int, int, int]:
    """What the script is asked: at most and at least how many requests, the share, how long (ms)."""
    return size, LEAST, SHARE, TERM_MS, _LASTS_LEAST_MS


def allotment_of(route: Route, plan: Plan, catalog: Catalog) -> AllotmentKey:
    """What holds: the line's word stands over the plan's, the plan's over the file's."""
    return route.allotment or plan.allotment or catalog.allotment


def keys_one_by_one(route: Route) -> list[str]:
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


def allotted(decision: PreparedDecision, route: Route) -> PreparedDecision | None:
    """The decision that a unit of an allotment stands for; None: each request is decided by itself.

    It is the line's own, but what it consumes is recorded when a request ends, never by the decision.
    """
    view, program = decision.view, decision.program
    catalog = view.cache.catalog
    if allotment_of(route, view.effective.plan, catalog) == "off" or keys_one_by_one(route):
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


def given_back(decision: PreparedDecision, at_ms: int, units: int) -> list[Settlement]:
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
        held=Held(held, program.concurrency, slot, program.costs),
        correction=Correction(counted, program.rates, at_ms),
    )
    # One settlement gives back one permit of each concurrency limit.
    permit = Settlement(view, held=Held(concurrency=program.concurrency, slot=slot))
    return [whole, *[permit] * (units - 1 if program.concurrency else 0)]


def together(settlement: Settlement, times: int) -> list[Settlement]:
    """One settlement in place of several equal ones, where what they come to can be counted so."""
    held, recorded = settlement.held, settlement.used.recorded
    most = max((*held.quantities.values(), *recorded.values()), default=0)
    if times == 1 or held.concurrency or most * times > QUANTITY_MAX:
        return [settlement] * times
    return [
        Settlement(
            settlement.view,
            held=held._replace(quantities={meter: times * each for meter, each in held.quantities.items()}),
            used=Used(recorded={meter: times * each for meter, each in recorded.items()}),
        )
    ]
