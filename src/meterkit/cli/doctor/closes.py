"""Which periods are over and not confirmed by Stripe: what of them will be on no invoice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.cli.doctor.findings import Finding, named
from meterkit.store.closes import Closes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit import MeterKit
    from meterkit.redis.admin import Admin
    from meterkit.store.closes import Close

__all__ = ["look_at_closes", "unconfirmed"]

_MOST: Final = 1_000


async def look_at_closes(kit: MeterKit, admin: Admin) -> tuple[str, list[Finding]]:
    """How many somebody was told of, and which.

    Raises:
        StoreError: the store does not answer.
    """
    found = await Closes(kit.store, admin).told(most=_MOST)
    return f"{len(found):,} unconfirmed", unconfirmed(found)


def unconfirmed(closes: Sequence[Close]) -> list[Finding]:
    """The periods whose close was not confirmed in time, and is not yet."""
    if not closes:
        return []
    count = "1 billing period is" if len(closes) == 1 else f"{len(closes):,} billing periods are"
    whose = named([f"of customer {close.customer}, until {close.told_end}" for close in closes])
    return [
        Finding(
            check="closes",
            problem=f"{count} over, and Stripe has not counted all that was used: {whose}; what it lacks when"
            " an invoice is final is on no invoice",
            cure="`meterkit reconcile CUSTOMER --period DATE` has the figures of each, and what to do",
        )
    ]
