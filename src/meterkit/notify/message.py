"""A message: an event on its way through one channel. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.notify.events import CustomerEvent
    from meterkit.store.messages import Channel, KeptMessage

_HOUR_MS: Final = 3_600_000
_WATCHED: Final = frozenset({"usage.spike", "storage.over", "period.summary"})

PATIENCE_MS: Final = 72 * _HOUR_MS
"""For how long a message is tried; then it is dead."""

_DELAYS_MS: Final = (
    *(5_000, 300_000, 1_800_000),
    *(2 * _HOUR_MS, 5 * _HOUR_MS, 10 * _HOUR_MS, 14 * _HOUR_MS, 20 * _HOUR_MS, 24 * _HOUR_MS),
)
"""After each failed attempt, as Standard Webhooks proposes."""


class Failure(Exception):  # noqa: N818 - raised and taken within this room
    """Sending a message has failed.

    Attributes:
        is_final: whether no further attempt can succeed.
        retry_after_ms: the delay that the receiver asks for; 0: none.
    """

    def __init__(self, why: str, *, is_final: bool = False, retry_after_ms: int = 0) -> None:
        super().__init__(why)
        self.is_final = is_final
        self.retry_after_ms = retry_after_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event, as one channel sends it.

    Attributes:
        id: the same for each attempt; made of the cause and the channel.
        event: the event's name, for example ``usage.threshold``.
        customer: the customer's id.
        at: when the event happened, in ISO 8601 UTC.
        data: the event's attributes as JSON has them.
    """

    id: str
    event: str
    customer: str
    at: str
    data: Mapping[str, Any]

    def dump(self) -> str:
        """The message as the queue keeps it."""
        return json.dumps({"event": self.event, "customer": self.customer, "at": self.at, "data": self.data})

    @classmethod
    def load(cls, message_id: str, text: str) -> Message:
        """Read :meth:`dump`.

        Raises:
            Failure: it cannot be read; final.
        """
        try:
            found = json.loads(text)
            return cls(
                id=message_id,
                event=str(found["event"]),
                customer=str(found["customer"]),
                at=str(found["at"]),
                data=dict(found["data"]),
            )
        except (ValueError, LookupError, TypeError) as error:
            raise Failure(f"the message cannot be read: {error!r}", is_final=True) from error

    def body(self) -> str:
        """The body of Standard Webhooks."""
        return json.dumps({"type": self.event, "timestamp": self.at, "data": self.data}, ensure_ascii=False)


def about(kept: KeptMessage) -> tuple[str | None, str | None]:
    """The event and the customer of a message in the queue; None and None: it cannot be read."""
    try:
        message = Message.load(kept.id, kept.text)
    except Failure:
        return None, None
    return message.event, message.customer


def message_of(channel: Channel, name: str, event: CustomerEvent) -> Message:
    """The message that a channel sends for an event."""
    # Ids of what was watched are made of the cause; others may come again after a store was restored.
    at = "" if name in _WATCHED else str(to_ms(event.at))
    cause = f"{channel}\0{name}\0{event.id}\0{event.customer}\0{at}"
    digest = blake2b(cause.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    data = dict(_pair(field.name, getattr(event, field.name)) for field in fields(event))
    return Message(id=f"msg_{digest}", event=name, customer=event.customer, at=_iso(event.at), data=data)


def is_too_old(event: CustomerEvent, now_ms: int) -> bool:
    """Whether a message about an event would come too late to be of use."""
    return now_ms - to_ms(event.at) > PATIENCE_MS


def delay_ms(failure: Failure, *, attempts: int, since_ms: int, now_ms: int) -> int | None:
    """In how long a message is tried again; None: it is dead.

    Args:
        failure: of the last attempt.
        attempts: the failed attempts before it.
        since_ms: when the message was queued or redriven.
        now_ms: now.
    """
    left_ms = since_ms + PATIENCE_MS - now_ms
    if failure.is_final or left_ms <= 0:
        return None
    planned_ms = _DELAYS_MS[min(attempts, len(_DELAYS_MS) - 1)]
    return min(left_ms, max(planned_ms, failure.retry_after_ms))


def _pair(name: str, value: object) -> tuple[str, object]:
    if isinstance(value, datetime):
        return name, _iso(value)
    if isinstance(value, timedelta):
        return f"{name}_seconds", int(value.total_seconds())
    return name, value


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
