"""Idempotency keys of changes at Stripe; only this module makes them.

Stripe does a request once per key in 24 hours, and repeats its first answer, an error too, even a 500
(https://docs.stripe.com/api/idempotent_requests). So a key is made of the operation, the requested values and
the values before: up, down and up again are three changes. After a timeout, a lost connection or a crash, a
repeat has the same key, as Stripe may have done the request. Once Stripe repeats an error, the next attempt
has another key. All processes count attempts alike, so they send the same keys.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from secrets import token_hex
from typing import Final, NewType

IdempotencyKey = NewType("IdempotencyKey", str)
"""The key of a change, without the number of its attempt."""

_COUNTED_MOST: Final = 10_000


def key_of(operation: str, *asked: object) -> IdempotencyKey:
    """Make the key of a change.

    Args:
        operation: names the change.
        asked: what identifies it: the object, the requested values, and the values before; JSON.
    """
    identity = json.dumps([operation, *asked], separators=(",", ":"), sort_keys=True)
    digest = blake2b(identity.encode(), digest_size=16).hexdigest()
    return IdempotencyKey(f"{key_prefix(operation)}{digest}")


def unique_key() -> IdempotencyKey:
    """Make a key for one call alone, which its caller may repeat as another request."""
    return IdempotencyKey(token_hex(16))


def key_prefix(operation: str) -> str:
    """The beginning of the keys of an operation."""
    return f"meterkit-{operation}-"


class KeyAttempts:
    """Numbers of the attempts of changes whose errors Stripe repeats.

    They save requests: a process that does not know them finds the same number again, as Stripe then repeats
    the error of each attempt.
    """

    def __init__(self) -> None:
        self._ended: dict[IdempotencyKey, int] = {}

    def sent_key(self, key: IdempotencyKey) -> str:
        """The key of the present attempt, as it is sent."""
        number = self._ended.get(key, 0)
        return f"{key}-{number}" if number else key

    def end(self, key: IdempotencyKey) -> None:
        """Go on to the next attempt: Stripe repeats the error of this one."""
        if len(self._ended) >= _COUNTED_MOST:
            self._ended.clear()
        self._ended[key] = self._ended.get(key, 0) + 1
