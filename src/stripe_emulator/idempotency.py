"""The ``Idempotency-Key`` store: in flight, stored, forgotten.

Keys have at most 255 characters, are kept for at least 24 hours, and stand for one endpoint and one set of
parameters: https://docs.stripe.com/api/idempotent_requests and
https://docs.stripe.com/error-low-level#idempotency.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import ApiError

if TYPE_CHECKING:
    from stripe_emulator.call import Call
    from stripe_emulator.protocol import ApiReply

MEMORY_S: Final = 86_400
LENGTH_MAX: Final = 255


@dataclass(slots=True, kw_only=True)
class StoredKey:
    """A key that was used. ``reply`` is None while its request is in flight."""

    call: Call
    request_id: str
    reply: ApiReply | None = None


class IdempotencyKeys:
    """The keys of the last 24 hours."""

    def __init__(self) -> None:
        self._by_key: dict[str, StoredKey] = {}

    def begin(self, call: Call, *, request_id: str) -> StoredKey | None:
        """Mark the call's key as in flight, or return its stored entry if it was used before.

        Raises:
            ApiError: if the key is in flight, or was used for another request.
        """
        key = call.idempotency_key
        if key is None:
            return None
        if len(key) > LENGTH_MAX:
            raise ApiError(f"Idempotency keys can be at most {LENGTH_MAX} characters long.")
        self._forget(now=call.now)
        earlier = self._by_key.get(key)
        if earlier is None:
            self._by_key[key] = StoredKey(call=call, request_id=request_id)
            return None
        _refuse_misuse(earlier, call=call, key=key)
        return earlier

    def finish(self, call: Call, *, reply: ApiReply | None) -> None:
        """Store the reply, or forget the key if there is none to store."""
        if call.idempotency_key is None:
            return
        if reply is None or not reply.stored:
            self._by_key.pop(call.idempotency_key, None)
        elif call.idempotency_key in self._by_key:
            self._by_key[call.idempotency_key].reply = reply

    def _forget(self, *, now: float) -> None:
        while self._by_key:
            key, oldest = next(iter(self._by_key.items()))
            if oldest.reply is None or now - oldest.call.now < MEMORY_S:
                return
            del self._by_key[key]


def _refuse_misuse(earlier: StoredKey, *, call: Call, key: str) -> None:
    if earlier.call.path != call.path:
        raise ApiError(
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{call.path}' vs '{earlier.call.path}'). Try using a key other than '{key}' if you meant to "
            "execute a different request.",
            kind="idempotency_error",
        )
    if (earlier.call.params, earlier.call.body) != (call.params, call.body):
        raise ApiError(
            "Keys for idempotent requests can only be used with the same parameters they were first used "
            f"with. Try using a key other than '{key}' if you meant to execute a different request.",
            kind="idempotency_error",
        )
    if earlier.reply is None:
        raise ApiError(
            "There is currently another in-progress request using this Idempotent Key (that probably means "
            "you submitted twice, and the other request is still going through): "
            f"{key}. Please try again later.",
            status=HTTPStatus.CONFLICT,
            code="idempotency_key_in_use",
            headers={"stripe-should-retry": "true"},
        )
