"""Retries of a failed sync of a Stripe customer: waits of 5 s doubled up to an hour, 12 attempts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

from meterkit.errors import CustomerError, StripeError, StripeUnavailableError

ATTEMPTS_MAX: Final = 12
"""A sync is given up after so many attempts that Stripe refused, or whose response could not be read."""

_WAIT_FIRST_MS: Final = 5_000
_WAIT_MAX_MS: Final = 3_600_000
_WAIT_RIGHT_MS: Final = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """The next step of a failed sync.

    Attributes:
        step: retry it ``later``, or give it up (``dead``).
        scope: of the failure: this ``entry`` only; all requests, as Stripe does not ``answer`` or refuses the
            ``key``; or those that need a ``right`` which the key lacks: only some entries may need it.
        delay_ms: longest delay of the retry; the shortest is half of it.
        counts: whether it counts as an attempt.
    """

    step: Literal["later", "dead"]
    scope: Literal["entry", "answer", "key", "right"]
    delay_ms: int = 0
    counts: bool = True


def decide_retry(error: Exception, attempts: int) -> RetryDecision:
    """Decide the next step after an error of a sync.

    No sync is given up because Stripe is down or refuses the key: the entry is not at fault.

    Args:
        error: of the sync.
        attempts: failed attempts before.
    """
    delay_ms = min(_WAIT_MAX_MS, _WAIT_FIRST_MS * 2 ** min(attempts, 20))
    if isinstance(error, StripeUnavailableError | TimeoutError):
        return RetryDecision(step="later", scope="answer", delay_ms=delay_ms)
    if isinstance(error, StripeError) and error.status == HTTPStatus.UNAUTHORIZED:
        return RetryDecision(step="later", scope="key", delay_ms=_WAIT_FIRST_MS, counts=False)
    if isinstance(error, StripeError) and error.status == HTTPStatus.FORBIDDEN:
        return RetryDecision(step="later", scope="right", delay_ms=min(delay_ms, _WAIT_RIGHT_MS))
    if isinstance(error, CustomerError) or attempts + 1 >= ATTEMPTS_MAX:
        return RetryDecision(step="dead", scope="entry")
    return RetryDecision(step="later", scope="entry", delay_ms=delay_ms)
