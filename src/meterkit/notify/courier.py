"""The courier of a channel: queues messages for events, and delivers what is due, retried with back-off."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import to_ms
from meterkit.errors import StoreError
from meterkit.notify.events import event_of
from meterkit.store.message_queue import MessageQueue, acknowledge_notice, read_notices

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.notify.events import CustomerEvent
    from meterkit.store.message_queue import Channel, CustomerNotice, KeptMessage, LeasedMessage
    from meterkit.store.store import Store

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
            while notices := await read_notices(self._store, shard, groups):
                for notice in notices:
                    await self._queue_notice(notice)
                    await acknowledge_notice(self._store, notice)

    async def _queue_notice(self, notice: CustomerNotice) -> None:
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
        taken = await self._queue.lease(_AT_ONCE)
        await asyncio.gather(*(start_task(self._send(send, one)) for one in taken))
        return len(taken) == _AT_ONCE

    async def _send(self, send: Callable[[Message], Awaitable[None]], taken: LeasedMessage) -> None:
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

    async def _failed(self, taken: LeasedMessage, failure: Failure) -> None:
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
        await self._queue.retry(taken, why, delay_ms=again_ms)
