"""The courier of a channel: queues a message for each event and retries it until it is dead."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from operator import itemgetter
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import HOUR_MS, to_ms
from meterkit.errors import StoreError
from meterkit.notify.events import read_event
from meterkit.store.customer_notices import acknowledge_notice, read_notices
from meterkit.store.message_queue import MessageQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from meterkit.notify.events import CustomerEvent
    from meterkit.store.customer_notices import CustomerNotice
    from meterkit.store.message_queue import Channel, KeptMessage, LeasedMessage
    from meterkit.store.store import Store

_WATCHED_EVENTS: Final = frozenset({"usage.spike", "storage.over", "period.summary"})

PATIENCE_MS: Final = 72 * HOUR_MS
"""A message is retried for this long, then it is dead."""

_DELAYS_MS: Final = (
    5_000,
    300_000,
    1_800_000,
    2 * HOUR_MS,
    5 * HOUR_MS,
    10 * HOUR_MS,
    14 * HOUR_MS,
    20 * HOUR_MS,
    24 * HOUR_MS,
)
"""Delays after each failed attempt, as Standard Webhooks proposes."""


class SendError(Exception):
    """Sending a message has failed.

    Attributes:
        is_final: no further attempt can succeed.
        retry_after_ms: the delay that the receiver asks for; 0: none.
    """

    def __init__(self, reason: str, *, is_final: bool = False, retry_after_ms: int = 0) -> None:
        super().__init__(reason)
        self.is_final = is_final
        self.retry_after_ms = retry_after_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event as one channel sends it.

    Attributes:
        id: idempotency key, derived from the cause and the channel.
        event: the event's name, for example ``usage.threshold``.
        customer: the customer's id.
        at: when the event happened (ISO 8601, UTC).
        data: the event's attributes as JSON.
    """

    id: str
    event: str
    customer: str
    at: str
    data: Mapping[str, Any]

    def dump(self) -> str:
        """Serialize the message for the queue."""
        return json.dumps({"event": self.event, "customer": self.customer, "at": self.at, "data": self.data})

    @classmethod
    def load(cls, message_id: str, text: str) -> Message:
        """Parse the text of :meth:`dump`.

        Raises:
            SendError: the text cannot be read; final.
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
            raise SendError(f"the message cannot be read: {error!r}", is_final=True) from error

    def body(self) -> str:
        """Serialize the body of a Standard Webhooks post."""
        return json.dumps({"type": self.event, "timestamp": self.at, "data": self.data}, ensure_ascii=False)


def read_event_and_customer(kept: KeptMessage) -> tuple[str | None, str | None]:
    """Read event and customer of a queued message; None and None if it cannot be read."""
    try:
        message = Message.load(kept.id, kept.text)
    except SendError:
        return None, None
    return message.event, message.customer


def make_message(channel: Channel, name: str, event: CustomerEvent) -> Message:
    """Make the message that a channel sends for an event."""
    # A restored store may repeat ids of notices; ids of watched events derive from their cause.
    at = "" if name in _WATCHED_EVENTS else str(to_ms(event.at))
    cause = f"{channel}\0{name}\0{event.id}\0{event.customer}\0{at}"
    digest = blake2b(cause.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    data = dict(_json_item(field.name, getattr(event, field.name)) for field in fields(event))
    if not data.get("currency", True):
        del data["currency"]  # The plans file has only one.
    return Message(id=f"msg_{digest}", event=name, customer=event.customer, at=_iso(event.at), data=data)


def delay_ms(failure: SendError, *, attempts: int, since_ms: int, now_ms: int) -> int | None:
    """Return the delay before the next attempt; None: the message is dead.

    Args:
        failure: the error of the last attempt.
        attempts: the number of failed attempts before it.
        since_ms: when the message was queued or redriven.
        now_ms: now.
    """
    left_ms = since_ms + PATIENCE_MS - now_ms
    if failure.is_final or left_ms <= 0:
        return None
    planned_ms = _DELAYS_MS[min(attempts, len(_DELAYS_MS) - 1)]
    return min(left_ms, max(planned_ms, failure.retry_after_ms))


def _json_item(name: str, value: object) -> tuple[str, object]:
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
_BATCH: Final = 8
_REASON_MAX: Final = 300
_PATIENCE_S: Final = 45.0  # Less than the lease of a message.
_IN_ORDER_S: Final = 10.0  # Together with that, too.
_HOLDS_MS: Final = 1_800_000
"""A message that fails holds back those after it up to this delay: later the fault may be its own."""


def _by_customer(taken: Iterable[LeasedMessage]) -> Sequence[Sequence[LeasedMessage]]:
    """Group messages by customer, each in the order of events: the last one must say what holds. Pure."""
    found: dict[str, list[tuple[datetime, LeasedMessage]]] = {}
    for one in taken:
        try:
            message = Message.load(one.id, one.text)
            of, at = message.customer, datetime.fromisoformat(message.at).astimezone(UTC)
        except (SendError, ValueError, OverflowError):
            of, at = one.id, datetime.min.replace(tzinfo=UTC)
        found.setdefault(of, []).append((at, one))
    return [[one for _, one in sorted(of, key=itemgetter(0))] for of in found.values()]


class MessageSender(Protocol):
    """A channel that sends messages."""

    @property
    def channel(self) -> Channel:
        """Name of the channel."""
        ...

    @property
    def events(self) -> tuple[str, ...]:
        """Events that the channel sends; empty if the plans file lacks the channel."""
        ...

    def opened(self) -> AbstractAsyncContextManager[Callable[[Message], Awaitable[None]]]:
        """Open the channel; yields a function that sends one message or raises SendError."""
        ...


class MessageCourier:
    """Queues messages for the events of a channel, and delivers due ones.

    Several processes may run couriers of one channel: each message is leased by one of them.

    Args:
        store: has the events and the queue.
        sender: the channel.
    """

    def __init__(self, store: Store, sender: MessageSender) -> None:
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
                if not await self._deliver_batch(send):
                    await asyncio.sleep(_POLL_S * _jitter(0.8, 1.2))

    async def deliver(self) -> None:
        """Deliver due messages.

        Raises:
            StoreError: the store does not answer.
        """
        self._queue.check_all_shards()
        async with self._sender.opened() as send:
            while await self._deliver_batch(send):
                pass

    async def collect(self) -> None:
        """Queue a message for each new event, then acknowledge_notice the event.

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
            event = read_event(notice, meters)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            _logger.error(  # noqa: TRY400 - the event is at fault, not the code
                "no message is sent for %s of customer %r: the event cannot be read: %r",
                notice.kind,
                notice.customer,
                error,
            )
            return
        if self._store.now_ms() - to_ms(event.at) > PATIENCE_MS:
            _logger.warning(
                "no message is sent for %s of customer %r: the event is more than %d hours old",
                notice.kind,
                notice.customer,
                PATIENCE_MS // HOUR_MS,
            )
            return
        message = make_message(self._sender.channel, notice.kind, event)
        await self._queue.add(message.customer, message.id, message.dump())

    async def _deliver_batch(self, send: Callable[[Message], Awaitable[None]]) -> bool:
        """Send a batch of due messages; return whether there may be more."""
        if not self._sender.events:
            return False
        taken = await self._queue.lease(_BATCH)
        await asyncio.gather(*(start_task(self._send_in_order(send, of)) for of in _by_customer(taken)))
        return len(taken) == _BATCH

    async def _send_in_order(
        self, send: Callable[[Message], Awaitable[None]], messages: Sequence[LeasedMessage]
    ) -> None:
        """Send messages about one customer; those whose lease might end meanwhile are left for later.

        None is due before an earlier one that failed, and none is tried while that is retried soon.
        """
        loop, delay_ms = asyncio.get_running_loop(), 0
        until = loop.time() + _IN_ORDER_S
        for one in messages:
            if loop.time() >= until or 0 < delay_ms <= _HOLDS_MS:
                await self._queue.retry(one, "", delay_ms=delay_ms, counts=False)
            else:
                delay_ms = max(delay_ms, await self._send_message(send, one, least_ms=delay_ms))

    async def _send_message(
        self, send: Callable[[Message], Awaitable[None]], taken: LeasedMessage, *, least_ms: int
    ) -> int:
        """Send a message; returns the delay until its retry, at least the given one; 0: there is none."""
        try:
            self._check_age(taken)
            async with asyncio.timeout(_PATIENCE_S):
                await keep_cancellation(send(Message.load(taken.id, taken.text)))
        except SendError as error:
            failure = error
        except (StoreError, TimeoutError) as error:
            failure = SendError(str(error) or "it timed out")
        except Exception as error:
            # One message must not block the others.
            _logger.exception("message %s cannot be sent; it will be retried", taken.id)
            # Store only the kind: an error of the app may contain secrets, and pages show it.
            failure = SendError(f"{type(error).__name__}; the log has the traceback")
        else:
            await self._queue.done(taken)
            return 0
        return await self._record_failure(taken, failure, least_ms=least_ms)

    def _check_age(self, taken: LeasedMessage) -> None:
        """Refuse a message that no process tried to send in time: what it says may not hold any more.

        Raises:
            SendError: it has waited for an hour longer than messages are retried; final.
        """
        if self._store.now_ms() - taken.since_ms > PATIENCE_MS + HOUR_MS:
            raise SendError(f"it waited for more than {PATIENCE_MS // HOUR_MS} hours", is_final=True)

    async def _record_failure(self, taken: LeasedMessage, failure: SendError, *, least_ms: int) -> int:
        reason, now_ms = f"{failure!s:.{_REASON_MAX}}", self._store.now_ms()
        retry_ms = delay_ms(failure, attempts=taken.attempts, since_ms=taken.since_ms, now_ms=now_ms)
        if retry_ms is None:
            if await self._queue.give_up(taken, reason):
                _logger.error(
                    "message %s (%s) is dead: %s; remove the cause, then run: meterkit notify redrive %s",
                    taken.id,
                    self._sender.channel,
                    reason,
                    taken.id,
                )
            return 0
        retry_ms = max(retry_ms, least_ms)
        await self._queue.retry(taken, reason, delay_ms=retry_ms)
        return retry_ms
