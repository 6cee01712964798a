"""Suspect lines: customers and meters whose last delivery has an unknown outcome. They are sent last."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meterkit.outbox.intents import Attempt, Sealed
    from meterkit.outbox.outbox import Outbox

_LINES_MOST: Final = 1_000


Line: TypeAlias = tuple[str, str]
"""A customer and an event name."""


def line_of(sealed: Sealed) -> Line:
    """Customer and event name of an intent."""
    return sealed.customer, sealed.event_name


class SuspectLines:
    """Lines that may be why Stripe does not answer, with the attempts of their most tried intent.

    A suspect line shares no call and is sent after all others; the least tried is first. Intents keep
    their attempts, so a new process reads its suspects from the store, once per shard.
    """

    def __init__(self) -> None:
        self._attempts: dict[Line, int] = {}
        self._shards_read: set[int] = set()

    def __contains__(self, line: object) -> bool:
        return line in self._attempts

    def attempts_of(self, sealed: Sealed) -> int:
        """Attempts of the intent's line; 0 if it is not suspect."""
        return self._attempts.get(line_of(sealed), 0)

    async def read(self, outbox: Outbox, shard: int) -> None:
        """Add the lines of a shard's intents that Stripe may have; does nothing the second time.

        Raises:
            StoreError: the store does not answer.
        """
        if shard in self._shards_read:
            return
        for line, attempts in (await outbox.unanswered(shard)).items():
            self._add(line, attempts)
        self._shards_read.add(shard)

    def note(self, attempts: Iterable[Attempt], *, is_unanswered: bool) -> None:
        """Add the lines of a call that was not answered; remove those of one that was."""
        for attempt in attempts:
            if is_unanswered:
                self._add(line_of(attempt.intent), attempt.attempts)
            else:
                self._attempts.pop(line_of(attempt.intent), None)

    def _add(self, line: Line, attempts: int) -> None:
        if line in self._attempts or len(self._attempts) < _LINES_MOST:
            self._attempts[line] = max(attempts, self._attempts.get(line, 0))

    def attempts_by_shard(self, shard_of: Callable[[str], int]) -> dict[int, int]:
        """Shards that have suspect lines, with the attempts of the least tried one, in this order."""
        least: dict[int, int] = {}
        for (customer, _), attempts in self._attempts.items():
            shard = shard_of(customer)
            least[shard] = min(attempts, least.get(shard, attempts))
        return dict(sorted(least.items(), key=itemgetter(1)))
