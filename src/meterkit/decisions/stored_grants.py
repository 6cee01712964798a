"""Grants on file, with the plan's grants that are due; debts, balances, and grants of moved periods. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.grants import grant_name, sold_grants, target_of
from meterkit.decisions.packed import text_fields
from meterkit.decisions.periods import SHORTEST_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, PlanGrant
    from meterkit.decisions.allowance import Allowance
    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.periods import Bounds


_PLANS: Final = ("p ", "o ")


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


def read_funds(reply: Sequence[Sequence[bytes]]) -> GrantFunds:
    """Read what ``read_funds.lua`` says of a customer's grants; empty: it has none."""
    grants, debts, lines = reply or ((), (), ())
    # One that has ended and another that its period gives again may have the same name.
    words = (word.decode() for word in grants)
    held = [StoredGrant.parse(name, text) for name, text in zip(words, words, strict=True)]
    owed = {target: int(text) for target, text in text_fields(debts).items() if text != "0"}
    unwritten = {line: int(text) for line, text in text_fields(lines).items()}
    return GrantFunds(sorted(held, key=_burn_order), owed, unwritten)


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


def _burn_order(holding: StoredGrant) -> tuple[int, int, int, str]:
    return holding.priority, holding.expires_ms, holding.created_ms, holding.name


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
