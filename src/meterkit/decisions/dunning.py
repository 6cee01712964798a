"""What a customer may do whose subscription has a status: the dunning policy of the plans file. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from meterkit.catalog import Dunning
    from meterkit.decisions.subscription import Access, Status

__all__ = ["FAILURES_REMIND", "FAILURES_RESTRICT", "Standing", "standing_of"]

FAILURES_REMIND: Final = 2
"""The failed attempt to collect that handlers are reminded at."""
FAILURES_RESTRICT: Final = 3
"""The failed attempt that ends grace, however much of it is left."""

_RESTRICTED: Final = frozenset({"paused", "incomplete"})


class Standing(NamedTuple):
    """What a customer may do, and until when by the clock (ms since the epoch)."""

    access: Access
    until_ms: int = NEVER_MS


def standing_of(
    status: Status | None, *, failures: int, failed_at_ms: int, dunning: Dunning, now_ms: int
) -> Standing:
    """What follows from a status at an instant.

    ``past_due`` is *grace* after the first and the second failed attempt until ``dunning.grace`` is over;
    *restricted* after the third, or once it is over; *suspended* from ``dunning.suspend_after`` on. Both
    count from the first failure. ``unpaid`` is suspended; ``paused`` and ``incomplete`` are restricted; all
    else, no subscription included, has full access, of the default plan where a subscription has ended.

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
    if now_ms >= suspension_ms:
        return Standing("suspended")
    if now_ms >= grace_end_ms or failures >= FAILURES_RESTRICT:
        return Standing("restricted", suspension_ms)
    return Standing("grace", grace_end_ms)
