"""Grants on file, with the plan's grants that are due; debts, balances, and grants of moved periods. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.allowance import PeriodGrants
from meterkit.decisions.grants import sold_grants, target_of
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.periods import Bounds


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """One grant as the store keeps it: units of a meter, or micro-credits.

    Attributes:
        name: ``a TARGET GRANT_ID`` for the app's grants, ``p TARGET KEY PERIOD`` for the plan's.
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
    def left(self) -> int:
        """Unused quantity, whether the grant is live or not."""
        return self.quantity - self.used

    def is_live(self, now_ms: int) -> bool:
        """Whether the grant pays now, if it has quantity left."""
        return self.effective_ms <= now_ms < self.expires_ms


def read_stored_grants(
    fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int
) -> list[StoredGrant]:
    """All grants on file and those of the plan that are due, in the order in which they are used up."""
    found = [StoredGrant.parse(name, text) for name, text in fields.items() if name.startswith(("a ", "p "))]
    known = {holding.name: holding for holding in found if holding.until_ms > now_ms}
    ended = [holding for holding in found if holding.until_ms <= now_ms]
    if prepaid is not None:
        in_first, allowance = now_ms < bounds.end_ms, prepaid.allowance
        start_ms, end_ms = (
            (bounds.start_ms, bounds.end_ms) if in_first else (bounds.end_ms, bounds.next_end_ms)
        )
        past = [int(text.split(" ")[2]) for name, text in fields.items() if name.startswith("past ")]
        first_ms = min((*past, *(holding.created_ms for holding in found)), default=NEVER_MS)
        for period in () if allowance is None else allowance.earlier:
            if period.is_certain or first_ms < period.end_ms:
                _add_due(known, period.grants, period.start_ms, period.end_ms, now_ms, is_over=True)
        limits = () if allowance is None or allowance.grants is None else allowance.grants.limits
        _add_due(known, PeriodGrants(prepaid.recurring, limits), start_ms, end_ms, now_ms, is_over=False)
    return sorted([*ended, *known.values()], key=_burn_order)


def _burn_order(holding: StoredGrant) -> tuple[int, int, int, str]:
    return holding.priority, holding.expires_ms, holding.created_ms, holding.name


def _add_due(
    known: dict[str, StoredGrant],
    grants: PeriodGrants,
    start_ms: int,
    end_ms: int,
    now_ms: int,
    *,
    is_over: bool,
) -> None:
    """Add a period's recurring grants that are not on file yet; see ``include/add_recurring_grants.lua``."""
    own = {
        holding.name.rpartition(" ")[0]: holding
        for holding in known.values()
        if holding.name.startswith("p ")
        and ((is_over and start_ms <= holding.effective_ms < end_ms) or holding.name.endswith(f" {start_ms}"))
    }
    whole: Counter[str] = Counter()
    for _, target, quantity, _, _ in grants.lines:
        whole[target] += quantity
    for target, limit in grants.limits:
        whole[target] = limit
        for holding in _cut_grants(own.values(), target, limit):
            known[holding.name] = own[holding.name.rpartition(" ")[0]] = holding
    given: Counter[str] = Counter()
    for holding in own.values():
        given[holding.target] += holding.quantity
    for prefix, target, quantity, priority, life_ms in grants.lines:
        expires_ms = start_ms + life_ms if life_ms else end_ms
        before = own.get(prefix)
        more = min(quantity - (before.quantity if before else 0), whole[target] - given[target])
        lives_ms = expires_ms if before is None else before.expires_ms
        if more <= 0 or (is_over and lives_ms <= now_ms):
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


def _cut_grants(holdings: Iterable[StoredGrant], target: str, limit: int) -> Iterator[StoredGrant]:
    """The grants of a target that lose unused units beyond a limit, those that pay last first."""
    able = sorted((found for found in holdings if found.target == target), key=_burn_order)
    excess = sum(found.quantity for found in able) - limit
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


_FIELD = "d "


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
        repaid: name of a grant to the repayment that the store has not written yet.
    """

    held: Sequence[StoredGrant]
    owed: Mapping[str, int]
    repaid: Mapping[str, int]


def read_funds(fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int) -> GrantFunds:
    """Read the hash of grants, with the grants of the plan that are due."""
    held = read_stored_grants(fields, prepaid, bounds, now_ms)
    repaid = Counter[str]()
    owed = dict[str, int]()
    for field, text in fields.items():
        if field.startswith(_FIELD):
            target, debt = field.removeprefix(_FIELD), Debt(*map(int, text.split(" ")))
            left = debt.owed
            for place in sorted(range(len(held)), key=lambda at: held[at].effective_ms):
                one = held[place]
                if one.target == target and one.effective_ms <= now_ms and one.expires_ms > debt.since_ms:
                    part = min(one.left, left)
                    held[place] = replace(one, used=one.used + part)
                    repaid[one.name] += part
                    left -= part
            if left:
                owed[target] = left
    return GrantFunds(held, owed, +repaid)


SHORTEST_MS: Final = 120_000
"""A period that another one follows sooner goes on in it: counts stay (``close_period.lua``), grants too."""
_PLANS: Final = "p "


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
    the period is prolonged. A period that begins again within two minutes, or earlier than it was known to,
    is the same one.

    Args:
        fields: the hash of grants.
        catalog: says which grants have a life of their own.
        before: the period as it was known.
        after: the period now.
    """
    if before == after:
        return []
    lives = {
        f"{_PLANS}{target_of(grant.kind, grant.name)} {grant.key}": grant.expires_ms or 0
        for grant in sold_grants(catalog)
    }
    moved = list[MovedGrant]()
    for name, text in fields.items():
        prefix, _, start = name.rpartition(" ")
        if not name.startswith(_PLANS) or start not in {str(before.start_ms), str(after.start_ms)}:
            continue
        holding, ends_with_period = StoredGrant.parse(name, text), lives.get(prefix) == 0
        if after.start_ms >= before.start_ms + SHORTEST_MS:
            if start == str(before.start_ms) and ends_with_period and holding.expires_ms > after.start_ms:
                moved.append(MovedGrant(name, after.start_ms, holding.until_ms))
            continue
        is_of_the_period = start == str(before.start_ms)
        expires_ms = after.end_ms if ends_with_period and is_of_the_period else holding.expires_ms
        again = f"{prefix} {after.start_ms}" if before.start_ms != after.start_ms else ""
        moved.append(
            MovedGrant(name, expires_ms, max(expires_ms, after.end_ms), again if is_of_the_period else "")
        )
    return moved
