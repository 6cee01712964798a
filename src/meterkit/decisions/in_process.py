"""What rates admit, counted within this process: the arithmetic of ``decide.lua``. Pure.

For requests that the store cannot decide. The replies have the shape of the script's, so that what is told of
them is worked out alike, the wait included.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.kinds import CEILING, FIXED_WINDOW, TOKEN_BUCKET
from meterkit.decisions.verdict import weighted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.program import Program

__all__ = ["EMPTY", "NOTHING_LEFT", "Left", "Window", "advance", "left_by", "left_where_allowed", "weigh"]

_COUNTS: Final = 3  # The first numbers of a program; then come those of its rates.
_NUMBERS: Final = 6  # Of each rate: kind, window, limit, refill, needed, taken.


class Window(NamedTuple):
    """What a rate has counted.

    Attributes:
        slot: the window's number since the epoch; of a bucket, until when it is accounted for (ms).
        counted: units in it; of a bucket, whole units owed.
        before: units in the window before; of a bucket, the rest owed in parts of a unit.
    """

    slot: int = 0
    counted: int = 0
    before: int = 0


EMPTY: Final = Window()


class Left(NamedTuple):
    """What the store has last refused a request by.

    Attributes:
        quantity: units that were left of the billing period, whatever was in flight.
        is_backed: whether grants or credits stood behind it.
        until_ms: the end of the period.
    """

    quantity: int
    is_backed: bool
    until_ms: int


NOTHING_LEFT: Final[Mapping[str, Left]] = {}


def advance(kind: int, window_ms: int, refill: int, at: Window, now_ms: int) -> tuple[Window, int]:
    """A rate brought forward to an instant, and the units used of it; see ``advance.lua``.

    Args:
        kind: of the rate.
        window_ms: its window; of a bucket, the denominator of its refill per ms.
        refill: of a bucket, the numerator of that.
        at: what was counted before.
        now_ms: the instant.
    """
    if kind == TOKEN_BUCKET:
        rest = min(at.before, window_ms - 1)
        owed = max(0, at.counted * window_ms + rest - refill * max(0, now_ms - at.slot))
        whole, rest = divmod(owed, window_ms)
        return Window(now_ms, whole, rest), whole + (rest > 0)
    slot = now_ms // window_ms
    if at.slot != slot:
        at = Window(slot, 0, at.counted if at.slot == slot - 1 else 0)
    if kind == FIXED_WINDOW or not at.before:
        return at, at.counted
    return at, at.counted + weighted(at.before, window_ms - now_ms % window_ms, window_ms)


def weigh(
    program: Program, known: Mapping[str, Window], left_of: Mapping[str, Left], now_ms: int
) -> tuple[list[int], dict[str, Window]]:
    """Decide by rates alone, and by the ceilings under which little is known to be left.

    What is in flight, and how far other ceilings and gauges are used, nobody knows here: they refuse nothing.

    Args:
        program: what is asked.
        known: what its rates have counted in this process, by their fields.
        left_of: what is left of a billing period, by the names of its policies.
        now_ms: this process's clock.

    Returns:
        The reply, as the decision script's; and what the rates have counted then, empty where it refuses.
    """
    counts: dict[str, Window] = {}
    told: list[int] = []
    nearest, least, share, before = 0, 0, inf, 0
    is_refused = False
    for nth in range(program.numbers[0]):
        at = _COUNTS + nth * _NUMBERS
        kind, window, limit, refill, needed, taken = program.numbers[at : at + _NUMBERS]
        found, used = advance(kind, window, refill, known.get(program.fields[nth], EMPTY), now_ms)
        told += (found.counted, found.before, 0)
        is_refused = is_refused or used + needed > limit
        left = limit - used - taken
        if left / limit < share:
            nearest, least, share, before = nth + 1, left, left / limit, found.before
        counts[program.fields[nth]] = Window(found.slot, found.counted + taken, found.before)
    backed: list[int] = []
    for measure in program.measures[program.numbers[0] :]:
        quantity = measure.limit
        if measure.kind == CEILING:
            known_left = left_of.get(measure.policy.name, None)
            backed.append(int(known_left is not None and known_left.is_backed))
            if known_left is not None and now_ms < known_left.until_ms:
                quantity = known_left.quantity
                is_refused = is_refused or measure.needed > quantity
        told += (quantity, 0, 0)
    if is_refused:
        return [1, now_ms, 0, *told, *backed], {}
    return [0, now_ms, nearest, least, before], counts


def left_by(program: Program, reply: Sequence[int], period_end_ms: int) -> dict[str, Left]:
    """What is left under the ceilings that have refused a request, whatever is in flight.

    Args:
        program: what was asked.
        reply: the script's: ``{1, now, ends, x, y, z, …}``.
        period_end_ms: the end of the period that would begin, where none has.
    """
    found: dict[str, Left] = {}
    backed = iter(reply[3 * len(program.measures) + 3 :])
    for nth, measure in enumerate(program.measures):
        quantity = reply[3 * nth + 3]
        if measure.kind == CEILING:
            is_backed = bool(next(backed, 0))
            if measure.needed > quantity:
                found[measure.policy.name] = Left(quantity, is_backed, reply[2] or period_end_ms)
    return found


def left_where_allowed(left: Mapping[str, Left], program: Program) -> Mapping[str, Left]:
    """What is left after a request was allowed: under the policies that it met there is something again."""
    met = {measure.policy.name for measure in program.measures}
    return {name: found for name, found in left.items() if name not in met} or NOTHING_LEFT
