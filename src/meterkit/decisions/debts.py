"""Debts: use beyond a balance in money, repaid by the next grants. Pure; see ``include/repay.lua``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from meterkit.decisions.holdings import holdings_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.grants import Prepaid
    from meterkit.decisions.holdings import Holding
    from meterkit.decisions.periods import Bounds

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


class Funds(NamedTuple):
    """All grants of a customer, after they repaid what is owed.

    Attributes:
        held: the grants, in the order in which they are used up.
        owed: target to the micro-credits that are still owed; only those above 0.
        repaid: name of a grant to what it repaid and the store has not written down yet.
    """

    held: Sequence[Holding]
    owed: Mapping[str, int]
    repaid: Mapping[str, int]


def funds_of(fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int) -> Funds:
    """Read the hash of grants, with the grants of the plan that are due."""
    held = holdings_of(fields, prepaid, bounds, now_ms)
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
    return Funds(held, owed, +repaid)
