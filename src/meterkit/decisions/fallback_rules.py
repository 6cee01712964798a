"""Rules of the fallback: rates counted in this process, as in ``decide.lua``, and what is left. Pure.

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
    from collections.abc import Iterator, Mapping

    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.limit_policies import PolicyMeasure

Window: TypeAlias = tuple[int, int, int]
"""Counter of a rate: slot, counted, before.

A window has its number since the epoch, the units in it, and the units of the window before. A bucket has the
instant of its last update (ms), the whole units owed, and the fraction of a unit owed.
"""

EMPTY: Final[Window] = (0, 0, 0)


class RemainingQuantity(NamedTuple):
    """Units that this process may still admit under a ceiling without the store.

    Attributes:
        quantity: units left.
        is_backed: whether grants or credits backed the ceiling at the store's last refusal.
        is_known: whether a reply of the store in this period is known; otherwise the quantity is a new
            customer's.
    """

    quantity: int
    is_backed: bool
    is_known: bool


def advance(kind: int, window_ms: int, refill: int, at: Window, now_ms: int) -> tuple[Window, int]:
    """Advance a rate's counter to an instant, and return the units used; see ``advance_rate.lua``.

    If the clock went back, a window restarts, as in the script. A bucket, which restarts there, keeps what it
    owes: so it admits no more than its rate in real time.

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
    """Decide by rates, and by what is left under ceilings.

    Budgets, concurrency, gauges and a subject's rates are unknown here: they refuse nothing.

    Args:
        program: compiled demands of the request.
        known: counters of its rates in this process, by field.
        left_of: what is left, by policy name.
        now_ms: this process's clock.

    Returns:
        A reply in the decision script's shape, and the new counters; empty if it refuses. A refusal by what
        the store has never said has the code :data:`IN_DOUBT`.
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
    measured = [(measure.needed, left_of[name]) for measure, name in ceilings_of(program)]
    short = [left for needed, left in measured if needed > left.quantity]
    if any(left.is_known for left in short):
        return _refusal_reply(program, known, left_of, now_ms), {}
    if short:
        return [IN_DOUBT, now_ms], {}
    return [0, now_ms, nearest, least, before], counts


IN_DOUBT: Final = -1
"""Code of a refusal without the store: it may be that the customer has more left than is known."""


def ceilings_of(program: Program) -> Iterator[tuple[PolicyMeasure, str]]:
    """Measures of the ceilings, and names of their policies."""
    names = {name for _, name in program.ceilings}
    for measure in program.measures:
        if measure.kind == CEILING and measure.policy.name in names:
            yield measure, measure.policy.name


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
        left = left_of.get(measure.policy.name) if measure.kind == CEILING else None
        is_rate = measure.kind in {SLIDING_WINDOW, FIXED_WINDOW, TOKEN_BUCKET}  # A subject's: unknown here.
        if left is not None and left.is_known:
            figures += (left.quantity, 0, 0)
        else:
            figures += (0 if is_rate else max(measure.limit, measure.needed), 0, 0)
        if measure.kind == CEILING:
            backed.append(int(left is not None and left.is_backed))
    return [1, now_ms, 0, *figures, *backed]
