"""What is to be done about a look that failed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

from meterkit.errors import CustomerError, StripeError, StripeUnavailableError

__all__ = ["ATTEMPTS_MAX", "Next", "next_of"]

ATTEMPTS_MAX: Final = 12
"""After so many attempts that Stripe refused, or that could not be understood, a look is given up."""

_FIRST_MS: Final = 5_000
_MOST_MS: Final = 3_600_000
_NOT_OF_IT: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What becomes of an entry.

    Attributes:
        step: ``later`` or ``dead``.
        scope: what else would fail so: this ``entry`` only, or whatever is asked of Stripe: it does not
            ``answer``, or refuses the ``key``.
        delay_ms: later: in how long, at most; half of it at least.
        counts: later: whether it counts as an attempt.
    """

    step: Literal["later", "dead"]
    scope: Literal["entry", "answer", "key"]
    delay_ms: int = 0
    counts: bool = True


def next_of(error: Exception, attempts: int) -> Next:
    """What is to be done about an error of a look.

    Nothing is given up because Stripe is away, or because its key is refused: that says nothing of the entry.

    Args:
        error: what the look raised.
        attempts: how often it was tried before.
    """
    delay_ms = min(_MOST_MS, _FIRST_MS * 2 ** min(attempts, 20))
    if isinstance(error, StripeUnavailableError | TimeoutError):
        return Next(step="later", scope="answer", delay_ms=delay_ms)
    if isinstance(error, StripeError) and error.status in _NOT_OF_IT:
        return Next(step="later", scope="key", delay_ms=_FIRST_MS, counts=False)
    if isinstance(error, CustomerError) or attempts + 1 >= ATTEMPTS_MAX:
        return Next(step="dead", scope="entry")
    return Next(step="later", scope="entry", delay_ms=delay_ms)
