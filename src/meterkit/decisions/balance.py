"""What a customer's grants come to at an instant, from what the store keeps. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from meterkit.decisions.prepaid import target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from meterkit.catalog import Entitlement
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.prepaid import Prepaid

__all__ = ["Balance", "Holding", "holdings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One grant as the store keeps it: units of a meter, or micro-credits.

    Attributes:
        name: ``a TARGET GRANT_ID`` for the app's, ``p TARGET KEY PERIOD`` for the plan's.
        target: ``m:METER`` or ``c:CREDIT``.
        expires_ms: 9 * 10^15 for never.
        until_ms: when it leaves the store; what a plan gave is kept for the whole period, too.
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
    def parse(cls, name: str, text: str) -> Holding:
        """Read a field of the hash of grants."""
        target, *numbers = text.split(" ")
        quantity, used, priority, effective_ms, expires_ms, created_ms, until_ms = map(int, numbers)
        return cls(
            name=name,
            target=target,
            quantity=quantity,
            used=used,
            priority=priority,
            effective_ms=effective_ms,
            expires_ms=expires_ms,
            created_ms=created_ms,
            until_ms=until_ms,
        )

    @property
    def left(self) -> int:
        """What it has left, whether it counts now or not."""
        return self.quantity - self.used

    def is_live(self, now_ms: int) -> bool:
        """Whether it pays for something now, if it has something left."""
        return self.effective_ms <= now_ms < self.expires_ms


def holdings_of(
    fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int
) -> list[Holding]:
    """All grants on file and those of the plan that are due, in the order in which they are used up."""
    found = [Holding.parse(name, text) for name, text in fields.items() if name.startswith(("a ", "p "))]
    known = {holding.name: holding for holding in found if holding.until_ms > now_ms}
    ended = [holding for holding in found if holding.until_ms <= now_ms]
    if prepaid is not None:
        in_first = now_ms < bounds.end_ms
        start_ms, end_ms = (
            (bounds.start_ms, bounds.end_ms) if in_first else (bounds.end_ms, bounds.next_end_ms)
        )
        for holding in _due(known.values(), prepaid, start_ms, end_ms, now_ms):
            known[holding.name] = holding
    return sorted(
        [*ended, *known.values()],
        key=lambda found: (found.priority, found.expires_ms, found.created_ms, found.name),
    )


def _due(
    on_file: Iterable[Holding], prepaid: Prepaid, start_ms: int, end_ms: int, now_ms: int
) -> Iterator[Holding]:
    """What a plan gives in a period that is not on file yet; see ``include/recur.lua``."""
    known = {holding.name: holding for holding in on_file}
    given: Counter[str] = Counter()
    for holding in known.values():
        if holding.name.startswith("p ") and holding.name.endswith(f" {start_ms}"):
            given[holding.target] += holding.quantity
    whole: Counter[str] = Counter()
    for _, target, quantity, _, _ in prepaid.recurring:
        whole[target] += quantity
    for prefix, target, quantity, priority, life_ms in prepaid.recurring:
        name, expires_ms = f"{prefix} {start_ms}", start_ms + life_ms if life_ms else end_ms
        before = known.get(name)
        more = min(quantity - (before.quantity if before else 0), whole[target] - given[target])
        if more <= 0:
            continue
        given[target] += more
        if before is None:
            yield Holding(
                name=name,
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
            lives_ms = before.expires_ms
            if lives_ms > now_ms:
                lives_ms = max(lives_ms, expires_ms)
            yield replace(before, quantity=before.quantity + more, expires_ms=lives_ms)


class Balance:
    """What live grants have left, by target, and what held quantities claim of it."""

    def __init__(self, holdings: Iterable[Holding], prepaid: Prepaid | None, now_ms: int) -> None:
        self._prepaid = prepaid
        self._left: dict[str, int] = {}
        for holding in holdings:
            if holding.is_live(now_ms):
                self._left[holding.target] = self._left.get(holding.target, 0) + holding.left

    def of(self, target: str) -> int:
        """Units of a meter, or micro-credits."""
        return self._left.get(target, 0)

    def more(
        self,
        meter: str,
        entitlements: Mapping[str, Entitlement],
        counted: Callable[[str], int],
        held: Callable[[str], int],
    ) -> int:
        """Units that grants and credits add to what a plan gives of a meter.

        Args:
            meter: the meter.
            entitlements: of every meter.
            counted: what included has paid for of a meter in this period.
            held: what is held of a meter.
        """
        units = self.of(target_of("meter", meter))
        if self._prepaid is None or meter not in self._prepaid.paid_with:
            return units
        credit, cost = self._prepaid.paid_with[meter]
        claimed = 0
        for other in self._prepaid.sharing([meter]):
            included = entitlements[other].included
            if other != meter and included is not None:
                covered = max(0, included - counted(other)) + self.of(target_of("meter", other))
                claimed += max(0, held(other) - covered) * self._prepaid.paid_with[other][1]
        return units + max(0, self.of(credit) - claimed) // cost
