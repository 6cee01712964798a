"""Journal of deliveries: each identifier that Stripe has accepted, in a database outside the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class JournalRow(NamedTuple):
    """A meter event that Stripe has accepted.

    Attributes:
        identifier: of the meter event; Stripe counts it once.
        stripe_customer: the customer at Stripe.
        minute_s: its timestamp in Unix seconds, a whole minute.
        value: in the meter's unit; below 0: it takes units back.
        delivered_at_ms: when Stripe answered.
    """

    identifier: str
    customer: str
    event_name: str
    stripe_customer: str
    minute_s: int
    value: int
    delivered_at_ms: int


class Journal(Protocol):
    """Database of rows. Each method raises :class:`~meterkit.errors.MeterkitError` if it fails."""

    async def write(self, rows: Sequence[JournalRow]) -> None:
        """Write rows, all or none; an existing row stays as it is."""
        ...

    async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
        """Read the rows of a customer and event name that were accepted since an instant."""
        ...

    async def begun_ms(self) -> int | None:
        """Read when the first row of all was accepted; None: there is none."""
        ...

    async def remove(self, identifiers: Sequence[str]) -> None:
        """Remove events that Stripe refused after it had accepted them."""
        ...
