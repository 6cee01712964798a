"""What a customer may do whose subscription has a status: the dunning policy of the plans file. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from meterkit.catalog import Dunning
    from meterkit.decisions.subscription import Access, Status

__all__ = ["OWING", "Standing", "next_reminder_ms", "reminders_due", "standing_of", "without_payment"]

OWING: Final[frozenset[Status | None]] = frozenset({"past_due", "unpaid"})
"""The statuses in which handlers are reminded of an invoice that was not paid."""

_RESTRICTED: Final = frozenset({"paused", "incomplete"})


class Standing(NamedTuple):
    """What a customer may do, and until when by the clock (ms since the epoch)."""

    access: Access
    until_ms: int = NEVER_MS


def standing_of(
    status: Status | None, *, failures: int, failed_at_ms: int, dunning: Dunning, now_ms: int
) -> Standing:
    """What follows from a status at an instant.

    ``past_due`` is *grace* until ``dunning.grace`` is over, or until ``dunning.attempts`` have failed; then
    *restricted*; *suspended* from ``dunning.suspend_after`` on. Both spans count from the first failure.
    ``unpaid`` is suspended; ``paused`` and ``incomplete`` are restricted; all else, no subscription included,
    has full access, of the default plan where a subscription has ended.

    Args:
        status: of the subscription; None: there is none.
        failures: failed attempts to collect the latest invoice.
        failed_at_ms: the first of them.
        dunning: the policy.
        now_ms: the instant.
    """
    if status == "unpaid":
        return Standing("suspended")
    if status in _RESTRICTED:
        return Standing("restricted")
    if status != "past_due":
        return Standing("full")
    suspension_ms = failed_at_ms + dunning.suspend_after_ms
    grace_end_ms = min(failed_at_ms + dunning.grace_ms, suspension_ms)
    has_failed_often = dunning.attempts is not None and failures >= dunning.attempts
    if now_ms >= suspension_ms:
        return Standing("suspended")
    if now_ms >= grace_end_ms or has_failed_often:
        return Standing("restricted", suspension_ms)
    return Standing("grace", grace_end_ms)


def without_payment(standing: Standing) -> Standing:
    """What a customer may do for whose period nothing is paid: at most what restricted access gives."""
    return standing._replace(access="restricted") if standing.access in {"full", "grace"} else standing


def reminders_due(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """The number of reminders that are due at an instant, counted from the first failure."""
    return sum(failed_at_ms + after_ms <= now_ms for after_ms in dunning.remind_ms)


def next_reminder_ms(failed_at_ms: int, dunning: Dunning, now_ms: int) -> int:
    """When the next reminder is due; :data:`NEVER_MS`: none is left."""
    due = (failed_at_ms + after_ms for after_ms in dunning.remind_ms)
    return min((at_ms for at_ms in due if at_ms > now_ms), default=NEVER_MS)
