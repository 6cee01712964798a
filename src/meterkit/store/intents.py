"""What the outbox is made of: intents, and their moves from state to state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "BY_HAND",
    "CANNOT_BE_COUNTED",
    "Attempt",
    "Intent",
    "IntentState",
    "Move",
    "Sealed",
    "State",
    "Undelivered",
    "Work",
    "read_intent",
]

BY_HAND: Final = "parked by hand"
"""Begins why an intent is parked that a person has parked."""

CANNOT_BE_COUNTED: Final = 2
"""What move.lua and steer.lua say of an intent where its customer's totals cannot be counted in."""

State = Literal["leased", "queued", "delivered", "parked", "dead"]
IntentState = Literal["queued", "leased", "parked", "dead"]
"""Where an intent is that is not delivered; ``leased``: it is being sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """An intent as the outbox keeps it.

    Attributes:
        value: quantity in the meter's unit; below 0: it takes units back that Stripe has.
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
    """An intent that was leased, to be sent.

    Attributes:
        now_ms: the store's clock then.
        first_ms: when it was tried first before; 0: Stripe certainly has nothing of it.
        attempts: how often it was tried, with this one.
    """

    intent: Sealed
    now_ms: int
    first_ms: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The next state of a leased intent.

    Into ``queued`` it goes with a delay, a new idempotency key or an empty one, and ``untried`` where Stripe
    certainly knows nothing of it, as if it had never been tried. Into ``parked`` it goes with the delay after
    which it is compared with Stripe's summaries, 0: it is not. ``batch``: the idempotency key of a call with
    several intents that Stripe may have taken, by which it may tell of them later; empty: there was none.
    """

    intent: Sealed
    state: State
    delay_ms: int = 0
    key: str = ""
    untried: bool = False
    why: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a shard has to do: customers with pending usage, intents on their way."""

    shard: int
    dirty: int
    outbox: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """An intent that is parked or dead, and why.

    Attributes:
        restored: whether a restore of the store has parked it.
    """

    customer: str
    meter: str
    quantity: int
    state: Literal["parked", "dead"]
    why: str
    restored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A delivery to Stripe that is sealed and not made: usage of one customer, meter and minute.

    Attributes:
        identifier: Stripe's name for it, too: the meter event's ``identifier``.
        stripe_customer: whom it is addressed to.
        meter: its name in the plans file; that of an earlier one where it has gone from there.
        event_name: of the meter at Stripe.
        quantity: in the meter's unit; below 0: it takes units back that Stripe has.
        minute: the meter event's timestamp: it decides which invoice it is on.
        period_start: the first instant of the billing period that it is of.
        state: ``queued``; ``leased``: it is being sent; ``parked``: it waits for a person or a comparison;
            ``dead``: Stripe will never accept it.
        why: what the last try came to, or why it is in this state; empty: nothing is to be said.
        attempts: how often it was tried.
        first_attempt_at: since when Stripe may have it; None: Stripe certainly has nothing of it.
        sealed_at: when it was made.
        age_s: how long ago that is, in seconds.
        compared_at: when it is compared with Stripe's summary of its minute; None: it is not.
        restored: whether it was parked after a restore of the store: Stripe may have it under another
            identifier, and it is never sent before that is compared.
    """

    identifier: str
    customer: str
    stripe_customer: str
    meter: str
    event_name: str
    quantity: int
    minute: datetime
    period_start: datetime
    state: IntentState
    why: str
    attempts: int
    first_attempt_at: datetime | None
    sealed_at: datetime
    age_s: int
    compared_at: datetime | None
    restored: bool = False

    @property
    def is_parked_by_hand(self) -> bool:
        """Whether a person has parked it: it is redriven where it is named, and not with all others."""
        return self.state == "parked" and self.why.startswith(BY_HAND)


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
