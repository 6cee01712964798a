"""The seam between the flusher and Stripe: what is sent, and who sends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.delivery.outcomes import Outcome

__all__ = ["Answer", "Intent", "Transport", "Unanswered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Sealed usage on its way to Stripe. What it says never changes; only ``idempotency_key`` may.

    Attributes:
        identifier: 1 to 100 characters, never used for another value; Stripe counts it once.
        event_name: the ``event_name`` of the Stripe meter.
        stripe_customer: ``cus_…``.
        value: quantity in the meter's unit, from 0 to 10^15 - 1.
        timestamp: Unix seconds; decides the invoice.
        idempotency_key: names the attempt; equals ``identifier`` on the first one.
    """

    identifier: str
    event_name: str
    stripe_customer: str
    value: int
    timestamp: int
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """A request without a whole answer, and what went wrong, by the name of the error.

    ``not_sent``: not one byte of it has left; ``no_reply``: it may have been executed.
    """

    failure: Literal["not_sent", "no_reply"]
    why: str


class Transport(Protocol):
    """Delivers intents, one at a time; safe to call concurrently within one event loop."""

    async def send(self, intent: Intent) -> Outcome:
        """Try once to deliver ``intent``. Raises nothing but cancellation."""
        ...

    async def close(self) -> None:
        """Give back connections. Closing twice is harmless; what is sent afterwards is not done."""
        ...
