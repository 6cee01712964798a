"""Reasons and waits of refusals, and decisions of admissions, from the script's reply. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Final

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.value_parsers import is_money, micros_per_minor_unit
from meterkit.decisions.decision import Decision, MoneyShortfall, Reason, SpendLevel
from meterkit.decisions.gauges import gauge_refusal
from meterkit.decisions.limit_policies import (
    CEILING,
    CONCURRENCY,
    FIXED_WINDOW,
    GAUGE,
    SLIDING_WINDOW,
    SPENT,
    TOKEN_BUCKET,
    bucket_wait_ms,
    sliding_wait_ms,
    weighted_count,
)
from meterkit.decisions.periods import HOLD_SLOT_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.decisions.compiled_decision import Program
    from meterkit.decisions.decision import GaugeLevel
    from meterkit.decisions.limit_policies import PolicyMeasure

_PRECEDENCE: Final[tuple[Reason, ...]] = (
    "storage",
    "seats",
    "concurrency",
    "rate",
    "cap",
    "included",
    "credits",
    "spend",
)
_OF_A_REPEAT: Final = 8
_MICROS_PER_CENT: Final = micros_per_minor_unit(BALANCE_CURRENCY)
UNKNOWN_WAIT_MS: Final = 1000
"""The wait that a refusal names if the end of another request decides."""
IN_FLIGHT: Final = Decision(
    allowed=False, reason="in_flight", retry_after=timedelta(milliseconds=UNKNOWN_WAIT_MS)
)
"""The refusal of a repeat whose first request has not ended; its end is unknown."""


def allowed_decision(
    program: Program,
    reply: Sequence[int],
    period_end_ms: int,
    *,
    customer: str | None = None,
    plan: str | None = None,
    degraded: bool = False,
) -> Decision:
    """Decision of the reply ``{0, now, n, remaining, before}``."""
    _, now_ms, nth, remaining, before = reply
    if not nth:
        return Decision(customer=customer, plan=plan, allowed=True, degraded=degraded)
    measure = program.measures[nth - 1]
    reset = reset_ms(measure, remaining, before, now_ms, period_end_ms)
    return Decision(
        customer=customer,
        plan=plan,
        allowed=True,
        limit=measure.policy.name,
        remaining=max(0, remaining),
        reset_after=None if reset is None else timedelta(milliseconds=reset),
        degraded=degraded,
    )


def reset_ms(
    measure: PolicyMeasure, remaining: int, before: int, now_ms: int, period_end_ms: int
) -> int | None:
    """Until more is left than now, or as much as was asked where that is more; None for concurrency.

    Args:
        measure: the policy.
        remaining: what is left under it, below 0 where more was counted than it allows.
        before: what was counted in the window before this one, or the rest that a bucket owes.
        now_ms: when that was.
        period_end_ms: the end of the billing period: a ceiling's own.
    """
    kind, limit, window = measure.kind, measure.limit, measure.window
    if kind == CEILING or (kind == SPENT and not window):
        return period_end_ms - now_ms
    if kind == CONCURRENCY:
        return None
    if kind == SPENT:
        return window - now_ms % window
    if remaining >= limit:
        return 0
    wanted = remaining + 1 if remaining >= measure.needed else measure.needed
    if kind == SLIDING_WINDOW:
        counted = limit - remaining - weighted_count(before, window - now_ms % window, window)
        return sliding_wait_ms(measure, counted, before, wanted, now_ms)
    if kind == FIXED_WINDOW:
        return window - now_ms % window
    return bucket_wait_ms(measure, limit - remaining - (before > 0), before, wanted)


NextLimit = Callable[[str, int], int]
"""Units of a meter that the period from an instant (ms) on admits: see ``CustomerView.next_limit``."""


def refused_decision(
    program: Program, reply: Sequence[int], period_end_ms: int, next_limit: NextLimit | None = None
) -> Decision:
    """Decision of the reply ``{1, now, ends, x, y, z, ...}``: all violated policies, and the longest wait.

    Ceilings and gauges are not checked for a repeat (``{8, …}``). A ceiling that grants or credits backed in
    this period gives the reason *credits*, and so does a balance in money, whether or not it ever had any.

    Args:
        program: compiled demands of the request.
        reply: the script's.
        period_end_ms: the end of the period that would begin, where none has.
        next_limit: limits of the next period; default, and for subjects: those of this period.
    """
    now_ms, ends_ms = reply[1], reply[2] or period_end_ms
    violated: list[tuple[PolicyMeasure, int, int | None]] = []
    backed = iter(reply[3 * len(program.measures) + 3 :])
    reasons: list[Reason] = []
    full: list[tuple[Reason, GaugeLevel]] = []
    spend: SpendLevel | None = None
    shortfalls: dict[Reason, MoneyShortfall] = {}
    own_count = len(program.measures) - sum(len(one.measures) for one in program.subjects)
    for n, measure in enumerate(program.measures):
        x, y, z = reply[3 * n + 3 : 3 * n + 6]
        following = next_limit if n < own_count else None
        left, wait = _remaining_and_wait(measure, x, y, z, now_ms, ends_ms, following)
        is_backed = measure.kind == CEILING and bool(next(backed, 0))
        asks = reply[0] != _OF_A_REPEAT or measure.kind not in {CEILING, GAUGE}
        needed = z if measure.kind == SPENT else measure.needed
        # What costs nothing is refused by no budget, even one that is overspent.
        if asks and needed > left and (needed or measure.kind != SPENT):
            if measure.kind == SPENT:
                spend = _spend_level(measure, left)
                shortfalls["spend"] = MoneyShortfall.of(needed, left, measure.refill, is_balance=False)
                left = spend.limit_cents - spend.spent_cents
            violated.append((measure, left, wait))
            if measure.kind == GAUGE:
                full.append(gauge_refusal(measure.policy, x, y + z, measure.needed))
            else:
                # What a plan gives each user in money is a limit, and no balance.
                is_balance = measure.kind == CEILING and n < own_count and is_money(measure.policy.quota_unit)
                reasons.append("credits" if is_backed or is_balance else _reason(measure))
                if is_balance:
                    amounts = MoneyShortfall.of(needed, left, _MICROS_PER_CENT, is_balance=True)
                    shortfalls["credits"] = amounts
    names = tuple(found[0].policy.name for found in violated)
    if full:
        reason, gauge = min(full, key=lambda found: _PRECEDENCE.index(found[0]))
        left = max(0, gauge.limit - gauge.used)
        return Decision(
            allowed=False, reason=reason, limit=gauge.meter, remaining=left, violated=names, gauge=gauge
        )
    longest, left, wait = max(violated, key=lambda found: inf if found[2] is None else found[2])
    after = None if wait is None else timedelta(milliseconds=wait)
    reason = min(reasons, key=_PRECEDENCE.index)
    return Decision(
        allowed=False,
        reason=reason,
        limit=longest.policy.name,
        remaining=max(0, left),
        reset_after=after,
        retry_after=after,
        violated=names,
        spend=spend,
        shortfall=shortfalls.get(reason),
    )


def _reason(measure: PolicyMeasure) -> Reason:
    if measure.kind == CONCURRENCY:
        return "concurrency"
    if measure.kind == CEILING:
        return "cap" if measure.capped else "included"
    return "spend" if measure.kind == SPENT else "rate"


def _spend_level(measure: PolicyMeasure, left: int) -> SpendLevel:
    """Spend level of a budget with so many micro-units left."""
    return SpendLevel(limit_cents=measure.limit, spent_cents=measure.limit - left // measure.refill)


def _remaining_and_wait(
    measure: PolicyMeasure,
    x: int,
    y: int,
    z: int,
    now_ms: int,
    period_end_ms: int,
    next_limit: NextLimit | None,
) -> tuple[int, int | None]:
    """The rest under a policy, and the wait until ``needed`` is available (ms); None: never."""
    limit, needed = measure.limit, measure.needed
    if measure.kind == CEILING:
        return x - y - z, _ceiling_wait(measure, x, y, z, now_ms, period_end_ms, next_limit)
    if measure.kind == CONCURRENCY:
        return x - y - z, UNKNOWN_WAIT_MS
    if measure.kind == GAUGE:
        return x - y - z, None
    if measure.kind == SPENT:
        return x - y, _spend_wait(measure, x, z, now_ms, period_end_ms)
    if measure.kind == TOKEN_BUCKET:
        left = limit - x - (y > 0)
        return left, None if needed > limit else bucket_wait_ms(measure, x, y, needed)
    slides = measure.kind != FIXED_WINDOW
    rest_ms = measure.window - now_ms % measure.window
    left = limit - x - (weighted_count(y, rest_ms, measure.window) if slides else 0)
    if needed > limit:
        return left, None
    return left, sliding_wait_ms(measure, x, y, needed, now_ms) if slides else rest_ms


def _ceiling_wait(
    measure: PolicyMeasure,
    left: int,
    held: int,
    held_before: int,
    now_ms: int,
    period_end_ms: int,
    next_limit: NextLimit | None,
) -> int | None:
    """Wait until holds have expired, or until the period has ended if that is needed (ms)."""
    turn_ms = now_ms - now_ms % HOLD_SLOT_MS + HOLD_SLOT_MS
    for at_ms in sorted((turn_ms, turn_ms + HOLD_SLOT_MS, period_end_ms)):
        alive = held + held_before if at_ms < turn_ms else held if at_ms < turn_ms + HOLD_SLOT_MS else 0
        units = left
        if at_ms >= period_end_ms:
            units = measure.limit if next_limit is None else next_limit(measure.policy.meter, period_end_ms)
        if measure.needed <= units - alive:
            return at_ms - now_ms
    return None


def _spend_wait(
    measure: PolicyMeasure, left: int, needed: int, now_ms: int, period_end_ms: int
) -> int | None:
    """Wait until requests in flight have ended if that is enough, otherwise until the span is over (ms)."""
    if needed > measure.limit * measure.refill:
        return None
    reset_ms = measure.window - now_ms % measure.window if measure.window else period_end_ms - now_ms
    return min(reset_ms, 2 * HOLD_SLOT_MS - now_ms % HOLD_SLOT_MS) if needed <= left else reset_ms
