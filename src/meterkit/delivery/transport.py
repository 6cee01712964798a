"""The seam between the flusher and Stripe: what is sent, and who sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meterkit.delivery.outcomes import Outcome
    from meterkit.store.intents import Sealed

__all__ = ["Transport"]


class Transport(Protocol):
    """Delivers intents, one at a time; safe to call concurrently within one event loop."""

    async def send(self, intent: Sealed) -> Outcome:
        """Try once to deliver ``intent``. Raises nothing but cancellation."""
        ...

    async def close(self) -> None:
        """Give back connections. Closing twice is harmless; what is sent afterwards is not done."""
        ...
