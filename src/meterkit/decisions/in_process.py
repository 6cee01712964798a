"""What rates admit, counted within this process: the arithmetic of ``decide.lua``. Pure.

For requests that the store cannot decide. The replies have the shape of the script's, so that the edge
formats refusals the same way, the wait included.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from meterkit.decisions.policies import CEILING, FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET
from meterkit.decisions.verdict import weighted_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.policies import PolicyMeasure
    from meterkit.decisions.program import Program

Window: TypeAlias = tuple[int, int, int]
"""What a rate has counted: slot, counted, before.

The slot is the window's number since the epoch; of a bucket, until when it is accounted for (ms). What is
counted are units in it; of a bucket, whole units owed. Before that stand those of the window before; of a
bucket, the rest owed in parts of a unit.
"""

EMPTY: Final[Window] = (0, 0, 0)


class RemainingQuantity(NamedTuple):
    """What the store has last refused a request by.

    Attributes:
        quantity: units that were left of the billing period, whatever was in flight.
        is_backed: whether grants or credits stood behind it.
        until_ms: the end of the period.
    """

    quantity: int
    is_backed: bool
    until_ms: int


NO_REMAINDERS: Final[Mapping[str, RemainingQuantity]] = {}


def advance(kind: int, window_ms: int, refill: int, at: Window, now_ms: int) -> tuple[Window, int]:
    """A rate brought forward to an instant, and the units used of it; see ``advance.lua``.

    Args:
        kind: of the rate.
        window_ms: its window; of a bucket, the denominator of its refill per ms.
        refill: of a bucket, the numerator of that.
        at: what was counted before.
        now_ms: the instant.
    """
    slot, counted, before = at
    if kind == TOKEN_BUCKET:
        rest = min(before, window_ms - 1)
        owed = max(0, counted * window_ms + rest - refill * max(0, now_ms - slot))
        whole, rest = divmod(owed, window_ms)
        return (now_ms, whole, rest), whole + (rest > 0)
    now = now_ms // window_ms
    if slot != now:
        counted, before = 0, counted if slot == now - 1 else 0
    if kind == FIXED_WINDOW or not before:
        return (now, counted, before), counted
    return (now, counted, before), counted + weighted_count(before, window_ms - now_ms % window_ms, window_ms)


def decide_by_rates(
    program: Program, known: Mapping[str, Window], left_of: Mapping[str, RemainingQuantity], now_ms: int
) -> tuple[list[int], dict[str, Window]]:
    """Decide by rates alone, and by the ceilings under which little is known to be left.

    Requests in flight, other ceilings and gauges are unknown here: they refuse nothing.

    Args:
        program: what is asked.
        known: what its rates have counted in this process, by their fields.
        left_of: what is left of a billing period, by the names of its policies.
        now_ms: this process's clock.

    Returns:
        The reply, as the decision script's; and what the rates have counted then, empty where it refuses.
    """
    counts: dict[str, Window] = {}
    nearest, least, share, before = 0, 0, inf, 0
    for nth, (field, kind, window, limit, refill, needed, taken) in enumerate(program.rate_terms, start=1):
        slot, used, earlier = at = known.get(field, EMPTY)
        counted = used
        # As `advance` has it, without a call: most come into a window in which something was counted.
        if kind == TOKEN_BUCKET or slot != now_ms // window:
            (slot, counted, earlier), used = advance(kind, window, refill, at, now_ms)
        elif earlier and kind != FIXED_WINDOW:
            used += weighted_count(earlier, window - now_ms % window, window)
        if used + needed > limit:
            return _refusal_reply(program, known, left_of, now_ms), {}
        left = limit - used - taken
        part = left / limit
        if part < share:
            nearest, least, share, before = nth, left, part, earlier
        counts[field] = slot, counted + taken, earlier
    for measure in program.measures if left_of else ():
        quantity = _remaining_under(measure, left_of, now_ms)
        if quantity is not None and measure.needed > quantity:
            return _refusal_reply(program, known, left_of, now_ms), {}
    return [0, now_ms, nearest, least, before], counts


def _refusal_reply(
    program: Program, known: Mapping[str, Window], left_of: Mapping[str, RemainingQuantity], now_ms: int
) -> list[int]:
    """The reply for a refused request: how far each policy is used, violated or not."""
    told: list[int] = []
    for field, kind, window, _, refill, _, _ in program.rate_terms:
        (_, counted, before), _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
        told += (counted, before, 0)
    backed: list[int] = []
    for measure in program.measures[len(program.rate_terms) :]:
        left = _remaining_under(measure, left_of, now_ms)
        is_rate = measure.kind in {SLIDING_WINDOW, FIXED_WINDOW, TOKEN_BUCKET}  # A subject's: unknown here.
        told += (0 if is_rate else measure.limit if left is None else left, 0, 0)
        if measure.kind == CEILING:
            last = left_of.get(measure.policy.name)
            backed.append(int(last is not None and last.is_backed))
    return [1, now_ms, 0, *told, *backed]


def _remaining_under(
    measure: PolicyMeasure, left_of: Mapping[str, RemainingQuantity], now_ms: int
) -> int | None:
    """The rest under a ceiling that refused the customer in this period; None: unknown."""
    known = left_of.get(measure.policy.name) if measure.kind == CEILING else None
    return None if known is None or now_ms >= known.until_ms else known.quantity


def remaining_by_policy(
    program: Program, reply: Sequence[int], period_end_ms: int
) -> dict[str, RemainingQuantity]:
    """The rest under the ceilings that refused a request, without regard to requests in flight.

    Args:
        program: what was asked.
        reply: the script's: ``{1, now, ends, x, y, z, …}``.
        period_end_ms: the end of the period that would begin, where none has.
    """
    found: dict[str, RemainingQuantity] = {}
    backed = iter(reply[3 * len(program.measures) + 3 :])
    for nth, measure in enumerate(program.measures):
        quantity = reply[3 * nth + 3]
        if measure.kind == CEILING:
            is_backed = bool(next(backed, 0))
            if measure.needed > quantity:
                found[measure.policy.name] = RemainingQuantity(quantity, is_backed, reply[2] or period_end_ms)
    return found


def drop_replenished(
    left: Mapping[str, RemainingQuantity], program: Program
) -> Mapping[str, RemainingQuantity]:
    """The known rests after an allowed request: the policies that it met have quantity again."""
    met = {measure.policy.name for measure in program.measures}
    return {name: found for name, found in left.items() if name not in met} or NO_REMAINDERS
