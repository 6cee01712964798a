"""Dunning: access by a subscription's status and failed payments, and reminders. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from meterkit.decisions.subscription import NEVER_MS, OWING

if TYPE_CHECKING:
    from meterkit.catalog import Dunning
    from meterkit.decisions.subscription import Status

Access = Literal["full", "grace", "restricted", "suspended"]


class AccessTerm(NamedTuple):
    """Access of a customer, and its end by the clock (ms since the epoch)."""

    access: Access
    until_ms: int = NEVER_MS


def access_term_of(
    status: Status | None, *, failures: int, failed_at_ms: int, dunning: Dunning, now_ms: int
) -> AccessTerm:
    """Access by a subscription's status at an instant.

    ``past_due`` is *grace* until ``dunning.grace`` is over, or until ``dunning.attempts`` have failed; then
    *restricted*; *suspended* from ``dunning.suspend_after`` on. Both spans count from the first failure.
    ``unpaid`` is suspended; ``paused`` is restricted; all else, no subscription and an unpaid sign-up
    (``incomplete``) included, has full access, of the default plan where a subscription has ended.

    Args:
        status: of the subscription; None: there is none.
        failures: failed attempts to collect the latest invoice.
        failed_at_ms: the first of them.
        dunning: the policy.
        now_ms: the instant.
    """
    if status == "unpaid":
        return AccessTerm("suspended")
    if status == "paused":
        return AccessTerm("restricted")
    if status != "past_due":
        return AccessTerm("full")
    suspension_ms = failed_at_ms + dunning.suspend_after_ms
    grace_end_ms = min(failed_at_ms + dunning.grace_ms, suspension_ms)
    has_failed_often = dunning.attempts is not None and failures >= dunning.attempts
    if now_ms >= suspension_ms:
        return AccessTerm("suspended")
    if now_ms >= grace_end_ms or has_failed_often:
        return AccessTerm("restricted", suspension_ms)
    return AccessTerm("grace", grace_end_ms)


def restrict_unpaid(standing: AccessTerm) -> AccessTerm:
    """Access of a customer whose period is not paid for: at most restricted."""
    return standing._replace(access="restricted") if standing.access in {"full", "grace"} else standing


def is_for_debt(status: Status | None) -> bool:
    """Whether access below full is for an unpaid invoice; otherwise for a pause, also of collection."""
    return status in OWING


def reminders_due(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """The number of reminders that are due at an instant, counted from the first failure."""
    return sum(failed_at_ms + after_ms <= now_ms for after_ms in dunning.remind_ms)


def next_reminder_ms(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """Instant of the next reminder; :data:`NEVER_MS`: none is left."""
    due = (failed_at_ms + after_ms for after_ms in dunning.remind_ms)
    return min((at_ms for at_ms in due if at_ms > now_ms), default=NEVER_MS)
