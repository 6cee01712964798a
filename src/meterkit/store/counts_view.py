"""Counts of one customer as the store keeps them, brought forward to an instant without writing. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.keys import HEAD_FIELD, credit_hold_field
from meterkit.decisions.packed import Head, MeterCounts

if TYPE_CHECKING:
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.stored_grants import Balance

_PERIOD_LEAST_MS: Final = 120_000  # A shorter one has no two whole minutes to stamp deliveries with.
# Names of totals of a closed period by the class that its usage was in; see close_period.lua.
_CLOSED: Final = {
    "i": "included",
    "g": "granted",
    "c": "credited",
    "o": "overage",
    "j": "over_cap",
    "p": "pending",
}


class CountsView:
    """The stored counts, brought forward to now without writing."""

    def __init__(
        self,
        counters: dict[str, bytes],
        totals: dict[str, str],
        now_ms: int,
        start_ms: int,
        end_ms: int,
        balance: Balance,
    ) -> None:
        self.balance = balance
        self._is_past = self._is_open = False
        self._counters = counters
        self._totals = totals
        head = Head.read(counters.get(HEAD_FIELD))
        began, ends = head.begins_ms, head.ends_ms
        # As scripts do (close_period.lua): counters of a period that ends when this one does go on in it.
        is_another = ends != end_ms and start_ms >= began + _PERIOD_LEAST_MS
        self._over = now_ms >= ends or is_another
        if is_another:
            stamped_ms = max(
                (self._stored(name[:-1]).stamped_ms for name in counters if name.endswith("m")), default=0
            )
            ends = min(ends, max(start_ms, stamped_ms + _PERIOD_LEAST_MS))
        self.start_ms = max(start_ms, ends) if self._over else began
        self.end_ms = end_ms
        # Clocks go back; a customer's time does not.
        self.now_ms = max(now_ms, head.seen_ms)

    def go_back(self, at_ms: int, grid: Bounds) -> bool:
        """Show the period that an instant lies in; whether that is one that is over.

        Args:
            at_ms: the instant.
            grid: its period by the subscription, for one in which nothing was recorded.
        """
        if self.start_ms <= at_ms < self.end_ms:
            return False
        head = Head.read(self._counters.get(HEAD_FIELD))
        spans = {int(name[:-2]): int(end) for name, end in self._totals.items() if name.endswith("|e")}
        if self._over and head.ends_ms:
            # No script has closed it yet. Another subscription, or none, may have cut it short.
            spans[head.begins_ms] = min(head.ends_ms, self.start_ms)
            self._is_open = head.begins_ms <= at_ms < spans[head.begins_ms]
        found = [start for start, end in spans.items() if start <= at_ms < end]
        if found:
            self.start_ms, self.end_ms = found[0], spans[found[0]]
        else:
            before = [end for end in (*spans.values(), self.end_ms) if end <= at_ms]
            after = [start for start in (*spans, self.start_ms) if start > at_ms]
            self.start_ms, self.end_ms = max([grid.start_ms, *before]), min([grid.end_ms, *after])
        self._is_past = True
        return True

    def counted(self, token: str) -> MeterCounts:
        """The counts of a meter in this period."""
        if self._is_past and not self._is_open:
            return MeterCounts(**{name: self.delivery(token, kind) for kind, name in _CLOSED.items()})
        if self._over and not self._is_past:
            return MeterCounts()
        return self._stored(token)

    def held(self, token: str) -> int:
        """What live holds hold."""
        return 0 if self._is_past else self._stored(token).held_at(self.now_ms)

    def held_credit(self, meter: str) -> int:
        """What live holds of a meter would cost at the prices of their models, in micro-credits."""
        if self._is_past:
            return 0
        return MeterCounts.read(self._counters.get(credit_hold_field(meter))).held_at(self.now_ms)

    def _stored(self, token: str) -> MeterCounts:
        return MeterCounts.read(self._counters.get(f"{token}m"))

    def marks(self, token: str, kind: str = "s") -> str:
        """The price segments of this period that have ended; of kind ``n`` what invoice items bill."""
        return self._totals.get(f"{self.start_ms}|{token}{kind}", "")

    def delivery(self, token: str, kind: str) -> int:
        """What became of this period's usage after it was sealed, less what is taken back in that state."""
        kept, field = self._totals, f"{self.start_ms}|{token}"
        back = 0 if kind.isupper() else int(kept.get(f"{field}{kind.upper()}", 0))
        return int(kept.get(f"{field}{kind}", 0)) - back
