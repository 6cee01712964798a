"""The seam between the flusher and Stripe: what is sent, and who sends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.delivery.outcomes import Outcome
    from meterkit.store.intents import Sealed

__all__ = ["Answer", "Transport", "Unanswered"]


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

    async def send(self, intent: Sealed) -> Outcome:
        """Try once to deliver ``intent``. Raises nothing but cancellation."""
        ...

    async def close(self) -> None:
        """Give back connections. Closing twice is harmless; what is sent afterwards is not done."""
        ...
