"""Idempotent changes at Stripe: an idempotency key for each requested change.

Stripe does the same under one idempotency key once in 24 hours, and answers every repeat as it did the
first time, a refusal too (https://docs.stripe.com/api/idempotent_requests). So a key is made of what is
asked and of what was there before. What was there holds a mark that each change leaves on the subscription:
up, down and up again are three changes. If an old refusal is answered again, the object is fetched
anew, and if it still differs from the request, that is sent under another key.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meterkit.errors import StripeError
from meterkit.subscriptions.at_stripe.objects import part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

MARK: Final = "meterkit_change"
"""The key of the metadata of a subscription under which the mark of the last change stands."""
_AGAIN_MAX: Final = 8
_T = TypeVar("_T")


def key_of(what: str, *asked: object) -> str:
    """The idempotency key of a change.

    Args:
        what: the change, a word.
        asked: the requested values and the values before; JSON.
    """
    told = json.dumps([what, *asked], separators=(",", ":"), sort_keys=True)
    return f"meterkit-{what}-{blake2b(told.encode(), digest_size=16).hexdigest()}"


def mark_of(found: Mapping[str, Any]) -> str:
    """The mark of the last change on a subscription as Stripe shows it; empty: there was none."""
    return text_in(part_of(found, "metadata"), MARK)


async def persistently(attempt: Callable[[int], Awaitable[_T]]) -> _T:
    """Do something at Stripe, also where Stripe has refused the same within the last 24 hours.

    Args:
        attempt: looks at what is there and does what is left to do, under keys that hold the number that it
            is given.

    Raises:
        StripeError: what ``attempt`` raises, unless it is an old answer.
    """
    for again in range(_AGAIN_MAX):
        try:
            return await attempt(again)
        except StripeError as error:
            if not error.is_replayed:
                raise
    return await attempt(_AGAIN_MAX)
