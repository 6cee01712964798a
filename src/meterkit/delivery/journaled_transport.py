"""Transport that writes accepted intents into the journal of deliveries, as a group commit.

Rows are written after Stripe's response, and delivery does not wait for them: with a missing row the
comparison of sums decides.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.outbox.journal import JournalRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.delivery.delivery_outcome import DeliveryOutcome
    from meterkit.delivery.sender import Transport
    from meterkit.outbox.intents import SealedIntent
    from meterkit.outbox.journal import Journal

_logger = logging.getLogger("meterkit.delivery")

_PAGE: Final = 500
_WAITING_MOST: Final = 10_000
# A process that delivers once opens the database only at its end; on a busy machine, that takes seconds.
_CLOSE_S: Final = 10.0
_LOST: Final = (
    "the journal of deliveries lacks %d of the intents that Stripe has: after a restore, only Stripe's sums"
    " show them"
)


class JournaledTransport:
    """Transport that writes accepted intents into a journal.

    Delivery never waits for the journal: rows that come while one batch is written form the next batch. If
    the journal fails, up to 10,000 rows wait for the next delivery. Lost rows are counted in the log: after a
    restore, only Stripe's sums show what they delivered.

    Args:
        transport: delivers the intents.
        journal: gets the rows.
        now_ms: the store's clock.
    """

    def __init__(self, transport: Transport, journal: Journal, now_ms: Callable[[], int]) -> None:
        self._transport = transport
        self._journal = journal
        self._now_ms = now_ms
        self._waiting: list[JournalRow] = []
        self._writing: asyncio.Task[None] | None = None
        self._failures = Throttle(HOUR_S)

    @property
    def events_per_call(self) -> int:
        """Largest number of intents in a call."""
        return self._transport.events_per_call

    async def ready(self) -> DeliveryOutcome | None:
        """Prepare to send; return an outcome if that fails."""
        return await self._transport.ready()

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        """Try to deliver intents once, all or none; queue rows for accepted ones."""
        outcome = await self._transport.send(*intents)
        is_sure = outcome.delivered and (len(intents) == 1 or not outcome.is_of_contents)
        if is_sure:
            self._note(intents)
        return outcome

    async def close(self) -> None:
        """Close connections, and write the last rows within ten seconds."""
        await self._transport.close()
        rest = start_task(self._write_rest(), name="meterkit journal")
        await asyncio.wait((rest,), timeout=_CLOSE_S)
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)
        if self._waiting:
            _logger.warning(_LOST, len(self._waiting))

    async def _write_rest(self) -> None:
        if self._writing is not None:
            await self._writing
        await self._write()  # Again, if the previous write has failed.

    def _note(self, intents: tuple[SealedIntent, ...]) -> None:
        now_ms = self._now_ms()
        self._waiting += [
            JournalRow(
                identifier=one.identifier,
                customer=one.customer,
                event_name=one.event_name,
                stripe_customer=one.stripe_customer,
                minute_s=one.timestamp,
                value=one.value,
                delivered_at_ms=now_ms,
            )
            for one in intents
        ]
        lost = len(self._waiting) - _WAITING_MOST
        if lost > 0:
            del self._waiting[_WAITING_MOST:]
            if self._failures.is_due("lost"):
                _logger.warning(_LOST, lost)
        self._begin()

    def _begin(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = start_task(self._write(), name="meterkit journal")

    async def _write(self) -> None:
        try:
            while page := self._waiting[:_PAGE]:
                await self._journal.write(page)
                del self._waiting[: len(page)]
                self._failures.forget()
        except MeterkitError as error:
            if self._failures.is_due("write"):
                _logger.warning(
                    "the journal of deliveries is not written; usage is still delivered: %s", error
                )
