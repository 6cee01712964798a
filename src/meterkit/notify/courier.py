"""The courier of a channel: queues messages for events, and delivers what is due, retried with back-off."""

from __future__ import annotations

import asyncio
import logging
from random import SystemRandom
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.decisions.keys import meter_token
from meterkit.errors import StoreError
from meterkit.notify.events import event_of
from meterkit.notify.message import PATIENCE_MS, Failure, Message, delay_ms, is_too_old, message_of
from meterkit.store.messages import MessageQueue, acknowledge, next_notices

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from meterkit.store.messages import Channel, Notice, Taken
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.notify")

_jitter = SystemRandom().uniform

_COLLECT_EVERY_S: Final = 30.0
_POLL_S: Final = 1.0
_AT_ONCE: Final = 8
_WHY_MOST: Final = 300
_PATIENCE_S: Final = 45.0  # Less than the lease of a message.


class Sender(Protocol):
    """A channel."""

    @property
    def channel(self) -> Channel:
        """Its name."""
        ...

    @property
    def events(self) -> tuple[str, ...]:
        """The events that it sends; none: the plans file has no such channel."""
        ...

    def opened(self) -> AbstractAsyncContextManager[Callable[[Message], Awaitable[None]]]:
        """What sends one message, until the block ends; raises Failure."""
        ...


class Courier:
    """Collects events for one channel and delivers their messages.

    Several processes may run one for the same channel: each message is one process's at a time.

    Args:
        store: where events and messages are.
        sender: the channel.
    """

    def __init__(self, store: Store, sender: Sender) -> None:
        self._store = store
        self._sender = sender
        self._queue = MessageQueue(store, sender.channel)

    async def run(self) -> None:
        """Collect and deliver until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        loop = asyncio.get_running_loop()
        collect_at = loop.time()
        async with self._sender.opened() as send:
            while True:
                if loop.time() >= collect_at:
                    await self.collect()
                    collect_at = loop.time() + _COLLECT_EVERY_S
                if not await self._deliver(send):
                    await asyncio.sleep(_POLL_S * _jitter(0.8, 1.2))

    async def deliver(self) -> None:
        """Deliver what is due now.

        Raises:
            StoreError: the store does not answer.
        """
        async with self._sender.opened() as send:
            while await self._deliver(send):
                pass

    async def collect(self) -> None:
        """Queue a message for each event that happened; an event is acknowledged after its message is queued.

        Raises:
            StoreError: the store does not answer.
        """
        groups = [f"{self._sender.channel} {event}" for event in self._sender.events]
        for shard in range(self._store.keys.shards if groups else 0):
            while notices := await next_notices(self._store, shard, groups):
                for notice in notices:
                    await self._queue_notice(notice)
                    await acknowledge(self._store, notice)

    async def _queue_notice(self, notice: Notice) -> None:
        meters = {meter_token(meter): meter for meter in self._store.catalog.meters}
        try:
            event = event_of(notice, meters)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            _logger.error(  # noqa: TRY400 - the event, not the code, is at fault
                "no message is sent for %s of customer %r: the event cannot be read: %r",
                notice.kind,
                notice.customer,
                error,
            )
            return
        if is_too_old(event, self._store.now_ms()):
            _logger.warning(
                "no message is sent for %s of customer %r: the event is more than %d hours old",
                notice.kind,
                notice.customer,
                PATIENCE_MS // 3_600_000,
            )
            return
        message = message_of(self._sender.channel, notice.kind, event)
        await self._queue.add(message.id, message.dump())

    async def _deliver(self, send: Callable[[Message], Awaitable[None]]) -> bool:
        """Send some messages that are due; whether there may be more."""
        if not self._sender.events:
            return False
        taken = await self._queue.take(_AT_ONCE)
        await asyncio.gather(*(start_task(self._send(send, one)) for one in taken))
        return len(taken) == _AT_ONCE

    async def _send(self, send: Callable[[Message], Awaitable[None]], taken: Taken) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await keep_cancellation(send(Message.load(taken.id, taken.text)))
        except Failure as failure:
            await self._failed(taken, failure)
        except (StoreError, TimeoutError) as error:
            await self._failed(taken, Failure(str(error) or "it took too long"))
        except Exception as error:
            # One message must not hold up the others.
            _logger.exception("message %s cannot be sent; it is tried again", taken.id)
            # Only the kind is kept and shown: an app's own errors may have what no page is to have.
            await self._failed(taken, Failure(f"{type(error).__name__}, which the log has in full"))
        else:
            await self._queue.done(taken)

    async def _failed(self, taken: Taken, failure: Failure) -> None:
        why, now_ms = f"{failure!s:.{_WHY_MOST}}", self._store.now_ms()
        again_ms = delay_ms(failure, attempts=taken.attempts, since_ms=taken.since_ms, now_ms=now_ms)
        if again_ms is None:
            if await self._queue.give_up(taken, why):
                _logger.error(
                    "message %s (%s) is dead: %s; after the cause is removed: meterkit notify redrive %s",
                    taken.id,
                    self._sender.channel,
                    why,
                    taken.id,
                )
            return
        await self._queue.later(taken, why, delay_ms=again_ms)
