"""Grants on file, with the plan's grants that are due; debts, balances, and grants of moved periods. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.allowance import PeriodGrants
from meterkit.decisions.grants import grant_name, once_field, sold_grants, target_of
from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, PlanGrant
    from meterkit.decisions.allowance import Allowance, EarlierPeriod, OnceGrant, Rolls
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.periods import Bounds


_RECURRING: Final = "p "
_PLANS: Final = (_RECURRING, "o ")
_KINDS: Final = frozenset({"a ", *_PLANS})
_DEBT: Final = "d "
_WRITTEN: Final = "written"


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """One grant as the store keeps it: units of a meter, or micro-credits.

    Attributes:
        name: ``a TARGET GRANT_ID`` for the app's grants, ``p TARGET KEY PERIOD`` for the plan's; ``o`` for
            those that it gives once in a customer's life.
        target: ``m:METER`` or ``c:CREDIT``.
        expires_ms: 9 * 10^15 for never.
        until_ms: when it leaves the store; a plan's grant stays at least for its period.
    """

    name: str
    target: str
    quantity: int
    used: int
    priority: int
    effective_ms: int
    expires_ms: int
    created_ms: int
    until_ms: int

    @classmethod
    def parse(cls, name: str, text: str) -> StoredGrant:
        """Read a field of the hash of grants."""
        target, *numbers = text.split(" ")
        quantity, used, priority, effective_ms, expires_ms, created_ms, until_ms = map(int, numbers)
        return cls(name, target, quantity, used, priority, effective_ms, expires_ms, created_ms, until_ms)

    @property
    def prefix(self) -> str:
        """Name of a plan's grant without its period."""
        return self.name.rpartition(" ")[0]

    @property
    def left(self) -> int:
        """Unused quantity, whether the grant is live or not."""
        return self.quantity - self.used

    def is_live(self, now_ms: int) -> bool:
        """Whether the grant pays now, if it has quantity left."""
        return self.effective_ms <= now_ms < self.expires_ms


@dataclass(frozen=True, slots=True)
class Debt:
    """Use beyond a balance in money that no grant has repaid.

    Attributes:
        owed: micro-credits.
        since_ms: the instant of the last use beyond the balance.
    """

    owed: int
    since_ms: int


class GrantFunds(NamedTuple):
    """Grants of a customer after they have repaid its debts.

    Attributes:
        held: the grants, in the order in which they are used up.
        owed: target to the micro-credits that are still owed; only those above 0.
        unwritten: lines of the ledger to quantities that the store has not written yet: ``repay NAME``,
            ``expire NAME``, ``rollover FROM TO NAME``.
    """

    held: Sequence[StoredGrant]
    owed: Mapping[str, int]
    unwritten: Mapping[str, int]


def read_funds(fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int) -> GrantFunds:
    """Read the hash of grants, with the grants of the plan that are due."""
    file = _GrantFile(fields, now_ms)
    if prepaid is not None:
        file.add_grants(prepaid, bounds)
    file.repay(now_ms)
    owed = {target: debt.owed for target, debt in file.debts.items() if debt.owed}
    return GrantFunds(sorted(file.every(), key=_burn_order), owed, +file.unwritten)


def rolled_over(held: Iterable[StoredGrant], allowance: Allowance | None, now_ms: int) -> Counter[str]:
    """Sum what has lived on into this period and is left, by target: units of a meter, or micro-credits."""
    rolls, found = None if allowance is None else allowance.rolls, Counter[str]()
    if rolls is not None:
        names = dict(rolls.rules)
        for one in held:
            is_older = one.effective_ms + SHORTEST_MS <= rolls.start_ms
            if one.prefix in names and is_older and one.is_live(now_ms):
                found[one.target] += one.left
    return found


class _GrantFile:
    """The hash of grants, with what must be written into it."""

    def __init__(self, fields: Mapping[str, str], now_ms: int) -> None:
        self._fields, self._now_ms = fields, now_ms
        found = [StoredGrant.parse(name, text) for name, text in fields.items() if name[:2] in _KINDS]
        self._found = found
        self._known = {one.name: one for one in found if one.until_ms > now_ms}
        self._ended = {one.name: one for one in found if one.until_ms <= now_ms}
        self.debts = {
            field.removeprefix(_DEBT): Debt(*map(int, text.split(" ")))
            for field, text in fields.items()
            if field.startswith(_DEBT)
        }
        effective = (one.effective_ms for one in found if one.name.startswith(_RECURRING))
        written_ms, _, self._history = fields.get(_WRITTEN, "0").partition(" ")
        self._newest_ms = max((int(written_ms), *effective))
        self._is_trimmed = False
        self.unwritten = Counter[str]()

    def every(self) -> Iterator[StoredGrant]:
        """All grants, in no order."""
        yield from self._ended.values()
        yield from self._known.values()

    def add_grants(self, prepaid: Prepaid, bounds: Bounds) -> None:
        """Add what the plan gives by now, and let live on what is left of earlier periods' grants."""
        now_ms, allowance = self._now_ms, prepaid.allowance
        start_ms, end_ms = bounds.start_ms, bounds.end_ms
        if now_ms >= end_ms:
            start_ms, end_ms = bounds.end_ms, bounds.next_end_ms
        rolls = None if allowance is None else allowance.rolls
        if rolls is not None:
            self._keep_ended(rolls)
        past = [int(text.split(" ")[2]) for name, text in self._fields.items() if name.startswith("past ")]
        first_ms = min((*past, *(one.created_ms for one in self._found)), default=NEVER_MS)
        history = "" if allowance is None else allowance.history
        self._is_trimmed = not history or history != self._history
        current = {line[0] for line in prepaid.recurring}
        for period in () if allowance is None else allowance.earlier:
            if (period.is_certain or first_ms < period.end_ms) and self._newest_ms < period.end_ms:
                over = self._ended_of(period, current)
                self._add_due(period.grants, period.start_ms, period.end_ms, over)
        limits = () if allowance is None or allowance.grants is None else allowance.grants.limits
        self._add_due(PeriodGrants(prepaid.recurring, limits), start_ms, end_ms, None)
        for grant in prepaid.once:
            self._add_once(grant, start_ms, end_ms)
        if rolls is not None:
            self._roll_over(rolls)

    def repay(self, at_ms: int) -> None:
        """Pay debts with the grants that were effective at an instant; see ``include/plan_repayment.lua``."""
        for target, debt in self.debts.items():
            owed = debt.owed
            every = [(one, place) for place in (self._ended, self._known) for one in place.values()]
            for one, place in sorted(
                every, key=lambda found: (found[0].effective_ms, *_burn_order(found[0]))
            ):
                if one.target == target and one.effective_ms <= at_ms and one.expires_ms > debt.since_ms:
                    part = min(one.left, owed)
                    place[one.name] = replace(one, used=one.used + part)
                    self.unwritten[f"repay {one.name}"] += part
                    owed -= part
            self.debts[target] = replace(debt, owed=owed)

    def _keep_ended(self, rolls: Rolls) -> None:
        """Keep grants that have ended, but may live on; see ``include/keep_ended.lua``."""
        rules = dict(rolls.rules)
        for name, one in list(self._ended.items()):
            if one.prefix in rules and one.effective_ms > rolls.starts[0] - SHORTEST_MS:
                del self._ended[name]
                self._known[name] = replace(one, until_ms=rolls.starts[-1])

    def _roll_over(self, rolls: Rolls) -> None:
        """Let what is left live on, less what is beyond the cap; see ``include/roll_over.lua``."""
        rules = dict(rolls.rules)
        for place, (start_ms, end_ms) in enumerate(pairwise(rolls.starts)):
            self.repay(start_ms - 1)
            before_ms = rolls.starts[max(0, place - 1)]
            rooms = {name: of_periods[place].room for name, of_periods in rules.items()}
            for one in sorted(self._known.values(), key=lambda found: -found.effective_ms):
                name = one.prefix
                age = place + 1 - bisect_left(rolls.starts, one.effective_ms + SHORTEST_MS)
                if name not in rules or age <= 0:
                    continue
                kept = min(one.left, rooms[name])
                if one.expires_ms >= end_ms:
                    rooms[name] -= kept
                elif age <= rules[name][place].periods and one.expires_ms >= start_ms and one.left:
                    rooms[name] -= kept
                    self.unwritten[f"expire {one.name}"] += one.left - kept
                    changed = replace(one, used=one.used + one.left - kept)
                    if kept:
                        self.unwritten[f"rollover {before_ms} {start_ms} {one.name}"] += kept
                        changed = replace(changed, expires_ms=end_ms, until_ms=max(one.until_ms, end_ms))
                    self._known[one.name] = changed

    def _add_once(self, grant: OnceGrant, start_ms: int, end_ms: int) -> None:
        """Add a grant that was never given; see ``include/add_once.lua``."""
        name, target, quantity, priority, life_ms = grant.line
        if grant.start_ms is not None and grant.end_ms is not None:
            start_ms, end_ms = grant.start_ms, grant.end_ms
        expires_ms = start_ms + life_ms if life_ms else end_ms
        if once_field(name) not in self._fields and expires_ms > self._now_ms:
            named, until_ms = f"{name} {start_ms}", max(expires_ms, end_ms)
            times = (start_ms, expires_ms, start_ms, until_ms)
            self._known[named] = StoredGrant(named, target, quantity, 0, priority, *times)

    def _ended_of(self, period: EarlierPeriod, current: Container[str]) -> list[StoredGrant]:
        """The grants of a period that have ended, and that its plan would give again by now.

        Args:
            period: an earlier one.
            current: the names of what the plan gives now.
        """
        given = {line[0] for line in period.grants.lines}
        return [
            one
            for one in self._ended.values()
            if one.name.startswith(_RECURRING)
            and period.start_ms <= one.effective_ms < period.end_ms
            and (one.prefix in given or one.prefix not in current)
        ]

    def _add_due(
        self, grants: PeriodGrants, start_ms: int, end_ms: int, over: Sequence[StoredGrant] | None
    ) -> None:
        """Add a period's recurring grants that are not on file; see ``include/add_recurring_grants.lua``.

        Args:
            grants: of the period.
            start_ms: its first instant.
            end_ms: the first instant after it.
            over: of an earlier period, what counts as given though it has ended; None: it is this period.
        """
        known, now_ms, is_over = self._known, self._now_ms, over is not None
        of_period = [
            holding
            for holding in known.values()
            if holding.name.startswith(_RECURRING)
            and (
                (is_over and start_ms <= holding.effective_ms < end_ms)
                or holding.name.endswith(f" {start_ms}")
            )
        ]
        own = {one.prefix: one for one in sorted(of_period, key=lambda found: found.effective_ms)}
        whole: Counter[str] = Counter()
        given: Counter[str] = Counter()
        for holding in of_period:
            given[holding.target] += holding.quantity
        for _, target, quantity, _, _ in grants.lines:
            whole[target] += quantity
        for target, limit in grants.limits:
            whole[target] = limit
            excess = given[target] - limit if self._is_trimmed else 0
            for holding in _cut_grants(own.values(), target, excess):
                given[target] -= own[holding.prefix].quantity - holding.quantity
                known[holding.name] = own[holding.prefix] = holding
        ended: Counter[str] = Counter()
        for holding in over or ():
            given[holding.target] += holding.quantity
            ended[holding.prefix] += holding.quantity
        for prefix, target, quantity, priority, life_ms in grants.lines:
            expires_ms = start_ms + life_ms if life_ms > 0 else end_ms
            before = own.get(prefix)
            had = ended[prefix] + (before.quantity if before else 0)
            more = min(quantity - had, whole[target] - given[target])
            lives_ms = expires_ms if before is None else before.expires_ms
            is_gone = is_over and life_ms >= 0 and lives_ms <= now_ms
            if more <= 0 or is_gone:
                continue
            given[target] += more
            if before is None:
                found = StoredGrant(
                    name=f"{prefix} {start_ms}",
                    target=target,
                    quantity=more,
                    used=0,
                    priority=priority,
                    effective_ms=start_ms,
                    expires_ms=expires_ms,
                    created_ms=start_ms,
                    until_ms=max(expires_ms, end_ms),
                )
            else:
                lives_ms = max(lives_ms, expires_ms) if lives_ms > now_ms else lives_ms
                found = replace(before, quantity=before.quantity + more, expires_ms=lives_ms)
            known[found.name] = found


def _burn_order(holding: StoredGrant) -> tuple[int, int, int, str]:
    return holding.priority, holding.expires_ms, holding.created_ms, holding.name


def _cut_grants(holdings: Iterable[StoredGrant], target: str, excess: int) -> Iterator[StoredGrant]:
    """The grants of a target that lose unused units in excess, those that pay last first."""
    able = sorted((found for found in holdings if found.target == target), key=_burn_order)
    for found in reversed(able):
        cut = min(found.left, excess)
        if cut > 0:
            excess -= cut
            yield replace(found, quantity=found.quantity - cut)


class GrantBalance:
    """Balance of live grants by target, less debts and the claims of held quantities."""

    def __init__(
        self,
        holdings: Iterable[StoredGrant],
        prepaid: Prepaid | None,
        now_ms: int,
        owed: Mapping[str, int] | None = None,
    ) -> None:
        self._prepaid = prepaid
        self._left: dict[str, int] = {target: -micros for target, micros in (owed or {}).items()}
        for holding in holdings:
            if holding.is_live(now_ms):
                self._left[holding.target] = self._left.get(holding.target, 0) + holding.left

    def of(self, target: str) -> int:
        """Units of a meter, or micro-credits; below 0 where it is owed."""
        return self._left.get(target, 0)

    def units_beyond_plan(
        self,
        meter: str,
        entitlements: Mapping[str, Entitlement],
        counted: Callable[[str], int],
        held: Callable[[str], int],
        held_credit: Callable[[str], int],
    ) -> int:
        """Units that grants and credits add to a plan's meter; see ``include/extend_ceilings.lua``.

        Args:
            meter: the meter; where its cost depends on the model, units at the default are meant.
            entitlements: of every meter.
            counted: units of a meter that included has paid for in this period.
            held: held units of a meter.
            held_credit: cost of these in micro-credits, for a meter whose cost depends on the model.
        """
        units, prepaid = self.of(target_of("meter", meter)), self._prepaid
        if prepaid is None or meter not in prepaid.paid_with:
            return units
        credit, cost = prepaid.paid_with[meter]
        free, claimed, uncovered = self.of(credit), 0, 0
        for other in prepaid.meters_sharing_credit([meter]):
            included, by_model = entitlements[other].included, prepaid.by_model.get(other)
            if included is None or (other == meter and by_model is None):
                continue
            covered = max(0, included - counted(other)) + self.of(target_of("meter", other))
            beyond = max(0, held(other) - covered)
            if by_model is None:
                claim = beyond * prepaid.paid_with[other][1]
            else:
                claim = min(beyond * by_model.highest, held_credit(other))
            if other == meter:
                claimed, uncovered = claim, beyond
            else:
                free -= claim
        free = max(min(0, self.of(credit)), free)
        if claimed > max(0, free):  # It does not pay all of them, but no fewer than at the highest cost.
            return units + min(uncovered, free // prepaid.by_model[meter].highest)
        return units + (free - claimed) // cost + uncovered


class MovedGrant(NamedTuple):
    """A change of a recurring grant on file.

    Attributes:
        name: of the grant.
        expires_ms: when it ends now.
        until_ms: when it leaves the store now.
        given_as: the name under which the plan would give it again; empty: it would not.
    """

    name: str
    expires_ms: int
    until_ms: int
    given_as: str = ""


def find_moved_grants(
    fields: Mapping[str, str], catalog: Catalog, before: Bounds, after: Bounds
) -> list[MovedGrant]:
    """Find the grants on file that end at another instant, or are given already in the moved period.

    A grant without a life of its own ends with its period: earlier where another period begins, later where
    the period is prolonged. So does what lived on into it. A period that begins again within two minutes, or
    earlier than it was known to, is the same one.

    Args:
        fields: the hash of grants.
        catalog: says which grants have a life of their own.
        before: the period as it was known.
        after: the period now.
    """
    if before == after:
        return []
    sold: dict[str, list[PlanGrant]] = {}
    for grant in sold_grants(catalog):
        sold.setdefault(grant_name(grant), []).append(grant)
    is_another = after.start_ms >= before.start_ms + SHORTEST_MS
    moved = list[MovedGrant]()
    for name, text in fields.items():
        prefix, _, start = name.rpartition(" ")
        if not name.startswith(_PLANS):
            continue
        holding, grants = StoredGrant.parse(name, text), sold.get(prefix, [])
        is_of_the_period = start == str(before.start_ms)
        has_rolled = holding.effective_ms < before.start_ms and holding.expires_ms == before.end_ms
        has_rolled = has_rolled and any(grant.rollover is not None for grant in grants)
        ends_with_period = _ends_with(before, holding, grants) and (is_of_the_period or has_rolled)
        if is_another:
            if ends_with_period and holding.expires_ms > after.start_ms:
                moved.append(MovedGrant(name, after.start_ms, holding.until_ms))
        elif is_of_the_period or has_rolled or start == str(after.start_ms):
            expires_ms = after.end_ms if ends_with_period else holding.expires_ms
            is_given_again = is_of_the_period and before.start_ms != after.start_ms and name.startswith("p ")
            again = f"{prefix} {after.start_ms}" if is_given_again else ""
            moved.append(MovedGrant(name, expires_ms, max(expires_ms, after.end_ms), again))
    return moved


def _ends_with(period: Bounds, holding: StoredGrant, grants: Sequence[PlanGrant]) -> bool:
    """Whether a grant on file has no life of its own; plans may give one of its id with a life or without.

    Args:
        period: in which it was given.
        holding: the grant.
        grants: all that have its name.
    """
    lasts = {grant.expires_ms is not None for grant in grants}
    return holding.expires_ms == period.end_ms if len(lasts) > 1 else lasts == {False}
