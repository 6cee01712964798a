"""What may be done with an intent that Stripe may have already, by how long ago it was tried first. Pure."""

from __future__ import annotations

from typing import Final

RESEND_MAX_MS: Final = 23 * 3_600_000
"""Until then a repeat is counted once: an identifier is unique within "a rolling period of at least 24 hours"
(https://docs.stripe.com/api/billing/meter-event/create), and a request takes its time."""

COMPARABLE_AFTER_MS: Final = 26 * 3_600_000
"""From then on Stripe's summaries say whether it has an intent: its last try is three hours ago by then."""

READS_APART_MS: Final = 600_000
"""Between the two looks at a summary."""


def can_resend(first_ms: int, now_ms: int) -> bool:
    """Whether a repeat under the same identifier is counted once for certain.

    Args:
        first_ms: when it was tried first; 0: Stripe certainly does not have it.
        now_ms: now.
    """
    return first_ms == 0 or now_ms - first_ms <= RESEND_MAX_MS


def compare_in_ms(first_ms: int, now_ms: int) -> int:
    """How long until an intent that was tried first then may be compared with Stripe's summaries."""
    return max(0, first_ms + COMPARABLE_AFTER_MS - now_ms)
