"""Grants of plans that reach beyond their period: by a life of their own, by rollover, given once. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.allowance import OnceGrant, PeriodGrants, RollRule, Rolls
from meterkit.decisions.grants import grant_name, micros_of, once_lines, sold_grants
from meterkit.decisions.periods import DAY_MS
from meterkit.decisions.subscription import NEVER_MS
from meterkit.terms.rows import AT_ONCE_MS

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.decisions.allowance import GrantLine
    from meterkit.decisions.periods import Bounds

_NOTHING: Final = RollRule(0, 0)
_LISTED_MIN: Final = 3


class GrantReach(NamedTuple):
    """Reach of the grants of a plans file beyond their period.

    Attributes:
        life_ms: the longest life; 0: none lives longer than its period.
        periods: the most further periods that something lives on for.
        has_once: whether any is given once in a customer's life.
    """

    life_ms: int
    periods: int
    has_once: bool


def grant_reach(catalog: Catalog) -> GrantReach:
    """Find the reach of the grants of a plans file."""
    life_ms, periods, has_once = 0, 0, False
    for grant in sold_grants(catalog):
        life_ms = max(life_ms, grant.expires_ms or 0)
        periods = max(periods, grant.rollover.periods if grant.rollover else 0)
        has_once = has_once or grant.every == "once"
    return GrantReach(life_ms, periods, has_once)


def roll_rules(plan: Plan | None) -> dict[str, RollRule]:
    """Terms on which older grants live on into a period that begins on a plan, by the name of the grant.

    The new period's share is part of the cap, so older units have only the rest of it.
    """
    found: dict[str, RollRule] = {}
    for grant in () if plan is None else plan.grants:
        if grant.rollover is not None:
            name, rollover = grant_name(grant), grant.rollover
            room, periods = found.get(name, _NOTHING)
            room += micros_of(replace(grant, quantity=rollover.at_most - grant.quantity))
            found[name] = RollRule(room, max(periods, rollover.periods))
    return found


class PlanHistory(NamedTuple):
    """The plans of a customer, and its billing periods.

    Attributes:
        plans: each with its first instant (-NEVER_MS: not known), and whether Stripe charged the change to it
            by the second; None: a plan that is not known.
        bounds_at: the period of an instant.
        is_prorated: whether each plan of a period gives its part; else the last one gives all.
    """

    plans: Sequence[tuple[Plan | None, int, bool]]
    bounds_at: Callable[[int], Bounds]
    is_prorated: bool

    def plan_at(self, start_ms: int) -> Plan | None:
        """The plan in force when a period begins."""
        return next(
            plan
            for plan, from_ms, is_priced in reversed(self.plans)
            if from_ms <= start_ms + is_priced * AT_ONCE_MS
        )

    def is_of_period(self, place: int, bounds: Bounds) -> bool:
        """Whether a plan, by its place, gives something in the period in which it begins."""
        return all(
            self.is_prorated and is_priced and from_ms > bounds.start_ms + AT_ONCE_MS
            for _, from_ms, is_priced in self.plans[place + 1 :]
            if from_ms < bounds.end_ms
        )


def find_rolls(history: PlanHistory, now_ms: int) -> Rolls | None:
    """Find the terms on which grants live on into the period of an instant; None: none does."""
    bounds = history.bounds_at(now_ms)
    last = roll_rules(history.plan_at(bounds.start_ms))
    if not last:
        return None
    starts, rules = [bounds.start_ms], [last]
    while len(starts) <= max(rule.periods for rule in last.values()) and last.keys() & rules[0].keys():
        starts.insert(0, history.bounds_at(starts[0] - 1).start_ms)
        rules.insert(0, roll_rules(history.plan_at(starts[0])))
    by_name = ((name, tuple(found.get(name, _NOTHING) for found in rules)) for name in sorted(last))
    keeps_ms = (len(starts) - 1) * (bounds.end_ms - bounds.start_ms + 3 * DAY_MS)
    return Rolls((*starts, bounds.end_ms), tuple(by_name), keeps_ms)


def find_once(
    history: PlanHistory, plans: Sequence[Plan], start_ms: int, now_ms: int
) -> tuple[OnceGrant, ...] | None:
    """List the grants that are given once in a customer's life; None: those of the plan, in this period.

    Each plan of a period gives the whole. If the first period on a plan with such a grant is over, or the
    time on the plan is, the grant has the rest of its life.

    Args:
        history: of the customer.
        plans: of this period, the one in force last.
        start_ms: first instant of the period.
        now_ms: now.
    """
    found = {line[0]: OnceGrant(line) for plan in reversed(plans) for line in once_lines(plan)}
    first: dict[str, tuple[int, OnceGrant]] = {}
    for place, (plan, from_ms, _) in reversed(tuple(enumerate(history.plans))):
        lines = () if plan is None or not -NEVER_MS < from_ms < start_ms else once_lines(plan)
        if lines and history.is_of_period(place, bounds := history.bounds_at(from_ms)):
            for line in lines:
                once = OnceGrant(line, bounds.start_ms, bounds.end_ms)
                first[line[0]] = (bounds.start_ms + line[4], once)
    for name, (over_ms, once) in first.items():
        if name in found or over_ms > now_ms:
            found[name] = once
    given = tuple(found.values())
    return None if given == tuple(map(OnceGrant, once_lines(plans[-1]))) else given


def mark_rolled(grants: PeriodGrants, rolls: Rolls | None, end_ms: int) -> PeriodGrants:
    """Mark the grants of an earlier period that may have lived on until now."""
    if rolls is None:
        return grants
    lines = (
        (*line[:4], -1) if not line[4] and rolls.lives_until_now(line[0], end_ms) else line
        for line in grants.lines
    )
    return grants._replace(lines=tuple(lines))


def living_lines(
    grants: PeriodGrants, rolls: Rolls | None, start_ms: int, now_ms: int, listed: Counter[str]
) -> Iterator[GrantLine]:
    """The grants of an earlier period that may still pay.

    Args:
        grants: of the period.
        rolls: what lives on.
        start_ms: first instant of the period.
        now_ms: now.
        listed: the most that later periods have left; nothing older is beyond the cap.
    """
    rules = {} if rolls is None else dict(rolls.rules)
    for line in grants.lines:
        name, _, quantity, _, life_ms = line
        if life_ms < 0:
            room = max(rule.room for rule in rules[name])
            times = f"{name} times"
            if listed[name] < room or listed[times] < _LISTED_MIN:
                listed[name] += quantity
                listed[times] += 1
                yield line
        elif life_ms and start_ms + life_ms > now_ms:
            yield line
