"""Rules of the fallback: rates counted in this process, as in ``decide.lua``, and recent refusals. Pure.

It serves requests that the store cannot decide. The replies have the shape of the script's, so that the edge
formats refusals the same way, the wait included.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from meterkit.decisions.limit_policies import (
    CEILING,
    FIXED_WINDOW,
    SLIDING_WINDOW,
    TOKEN_BUCKET,
    weighted_count,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.limit_policies import PolicyMeasure

Window: TypeAlias = tuple[int, int, int]
"""Counter of a rate: slot, counted, before.

A window has its number since the epoch, the units in it, and the units of the window before. A bucket has the
instant of its last update (ms), the whole units owed, and the fraction of a unit owed.
"""

EMPTY: Final[Window] = (0, 0, 0)


class RemainingQuantity(NamedTuple):
    """Rest of a billing period at the store's last refusal.

    Attributes:
        quantity: units left of the billing period, regardless of requests in flight.
        is_backed: whether grants or credits backed it.
        until_ms: the end of the period.
    """

    quantity: int
    is_backed: bool
    until_ms: int


NO_REMAINDERS: Final[Mapping[str, RemainingQuantity]] = {}


def advance(kind: int, window_ms: int, refill: int, at: Window, now_ms: int) -> tuple[Window, int]:
    """Advance a rate's counter to an instant, and return the units used; see ``advance_rate.lua``.

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
    """Decide by rates, and by ceilings whose rest is known from the store's last refusal.

    Requests in flight, other ceilings and gauges are unknown here: they refuse nothing.

    Args:
        program: compiled demands of the request.
        known: counters of its rates in this process, by field.
        left_of: known rests of the billing period, by policy name.
        now_ms: this process's clock.

    Returns:
        A reply in the decision script's shape, and the new counters; empty if it refuses.
    """
    counts: dict[str, Window] = {}
    nearest, least, share, before = 0, 0, inf, 0
    for nth, (field, kind, window, limit, refill, needed, taken) in enumerate(program.rate_terms, start=1):
        slot, used, earlier = at = known.get(field, EMPTY)
        counted = used
        # `advance` inlined: most requests fall into a window that has counts.
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
    """Reply for a refused request: the use of each policy, violated or not."""
    figures: list[int] = []
    for field, kind, window, _, refill, _, _ in program.rate_terms:
        (_, counted, before), _ = advance(kind, window, refill, known.get(field, EMPTY), now_ms)
        figures += (counted, before, 0)
    backed: list[int] = []
    for measure in program.measures[len(program.rate_terms) :]:
        left = _remaining_under(measure, left_of, now_ms)
        is_rate = measure.kind in {SLIDING_WINDOW, FIXED_WINDOW, TOKEN_BUCKET}  # A subject's: unknown here.
        figures += (0 if is_rate else measure.limit if left is None else left, 0, 0)
        if measure.kind == CEILING:
            last = left_of.get(measure.policy.name)
            backed.append(int(last is not None and last.is_backed))
    return [1, now_ms, 0, *figures, *backed]


def _remaining_under(
    measure: PolicyMeasure, left_of: Mapping[str, RemainingQuantity], now_ms: int
) -> int | None:
    """Rest under a ceiling that refused the customer in this period; None: unknown."""
    known = left_of.get(measure.policy.name) if measure.kind == CEILING else None
    return None if known is None or now_ms >= known.until_ms else known.quantity


def remaining_by_policy(
    program: Program, reply: Sequence[int], period_end_ms: int
) -> dict[str, RemainingQuantity]:
    """Rest under the ceilings that refused a request, without regard to requests in flight.

    Args:
        program: compiled demands of the request.
        reply: the script's: ``{1, now, ends, x, y, z, …}``.
        period_end_ms: end of the period that would begin, if none has.
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
    """Known rests after an allowed request, without those of its own policies: they have quantity again."""
    passed = {measure.policy.name for measure in program.measures}
    return {name: found for name, found in left.items() if name not in passed} or NO_REMAINDERS
