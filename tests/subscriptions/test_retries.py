"""What becomes of a look that failed."""

from __future__ import annotations

import pytest

from meterkit import CustomerError, StripeError, StripeUnavailableError
from meterkit.subscriptions.webhooks.worker import ATTEMPTS_MAX, Next, next_of

LAST = ATTEMPTS_MAX - 1


@pytest.mark.parametrize(
    ("error", "attempts", "expected"),
    [
        (StripeUnavailableError("x", status=500), 0, Next(step="later", scope="answer", delay_ms=5_000)),
        (StripeUnavailableError("x"), 3, Next(step="later", scope="answer", delay_ms=40_000)),
        (StripeUnavailableError("x"), LAST, Next(step="later", scope="answer", delay_ms=3_600_000)),
        (StripeUnavailableError("x"), 10**6, Next(step="later", scope="answer", delay_ms=3_600_000)),
        (TimeoutError(), LAST, Next(step="later", scope="answer", delay_ms=3_600_000)),
        (StripeError("x", status=401), 99, Next(step="later", scope="key", delay_ms=5_000, counts=False)),
        (StripeError("x", status=403), 0, Next(step="later", scope="key", delay_ms=5_000, counts=False)),
        (StripeError("x", status=400), 0, Next(step="later", scope="entry", delay_ms=5_000)),
        (StripeError("x", status=404), 5, Next(step="later", scope="entry", delay_ms=160_000)),
        (StripeError("x", status=400), LAST, Next(step="dead", scope="entry")),
        (ValueError("odd"), 1, Next(step="later", scope="entry", delay_ms=10_000)),
        (KeyError("odd"), LAST, Next(step="dead", scope="entry")),
        (CustomerError("linked elsewhere"), 0, Next(step="dead", scope="entry")),
    ],
)
def test_what_becomes_of_it(error: Exception, attempts: int, expected: Next) -> None:
    assert next_of(error, attempts) == expected
