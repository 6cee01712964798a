"""What the outbox is made of: intents, and their moves from state to state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Attempt",
    "Move",
    "Sealed",
    "State",
    "Undelivered",
    "Work",
    "read_intent",
]

State = Literal["leased", "queued", "delivered", "parked", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """An intent as the outbox keeps it.

    Attributes:
        value: quantity in the meter's unit.
        timestamp: Unix seconds, a whole minute.
        key: the idempotency key of the next try.
        sealed_ms: when it was made.
        due_ms: when it is, or was, due.
    """

    identifier: str
    customer: str
    stripe_customer: str
    period: str
    meter_token: str
    event_name: str
    value: int
    timestamp: int
    key: str
    sealed_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An intent that was leased: the store's clock then, its first attempt, and how many there were."""

    intent: Sealed
    now_ms: int
    first_ms: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The next state of a leased intent.

    Into ``queued`` it goes with a delay, a new idempotency key or an empty one, and ``untried`` where Stripe
    certainly knows nothing of it, as if it had never been tried.
    """

    intent: Sealed
    state: State
    delay_ms: int = 0
    key: str = ""
    untried: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a shard has to do: customers with pending usage, intents on their way."""

    shard: int
    dirty: int
    outbox: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """An intent that is parked or dead, and why."""

    customer: str
    meter: str
    quantity: int
    state: Literal["parked", "dead"]
    why: str


def read_intent(identifier: str, due_ms: int, fields: Mapping[str, str]) -> Sealed:
    """An intent from what is kept of it."""
    return Sealed(
        identifier=identifier,
        customer=fields["customer"],
        stripe_customer=fields["stripe"],
        period=fields["period"],
        meter_token=fields["meter"],
        event_name=fields["event"],
        value=int(fields["value"]),
        timestamp=int(fields["time"]),
        key=fields["key"],
        sealed_ms=int(fields["at"]),
        due_ms=due_ms,
    )
