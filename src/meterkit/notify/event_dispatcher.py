"""The event dispatcher: calls the app's handlers for each notice in the store, at least once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from meterkit.cancellation import keep_cancellation, start_task
from meterkit.decisions.keys import meter_token
from meterkit.errors import MeterkitError, StoreError
from meterkit.notify.events import EVENTS, event_of
from meterkit.store.message_queue import acknowledge_notice, read_notices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from meterkit.store.message_queue import CustomerNotice
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.notify")
_PATIENCE_S: Final = 30.0  # Less than the time after which another process gets the notice.

Handler = TypeVar("Handler", bound="Callable[[Any], object]")


class Handlers:
    """Runs the app's handlers; their errors are logged, and harm no other handler."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Callable[[Any], object]]] = {}
        self._own: dict[str, tuple[Callable[[], bool], Callable[[Any], object]]] = {}

    @property
    def events(self) -> Collection[str]:
        """What there are handlers for."""
        return self._handlers.keys()

    def add(self, event: str, handler: Handler) -> Handler:
        """Have a handler, sync or async, told of an event from now on.

        Raises:
            MeterkitError: there is no such event.
        """
        if event not in EVENTS:
            raise MeterkitError(f"event: found {event!r:.80}; allowed are {', '.join(EVENTS)}")
        self._handlers.setdefault(event, []).append(handler)
        return handler

    def add_own(
        self, group: str, event: str, handler: Callable[[Any], object], *, is_wanted: Callable[[], bool]
    ) -> None:
        """Add a handler of meterkit's own, which gets each event beside the app's handlers.

        Args:
            group: its name among the readers of the event.
            event: for example ``credits.low``.
            handler: sync or async.
            is_wanted: whether this process is to handle it; asked each time.
        """
        self._own[f"{group} {event}"] = (is_wanted, handler)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of readers in this process: ``EVENT`` for the app's handlers, ``GROUP EVENT`` for others."""
        return (*self._handlers, *(group for group, (is_wanted, _) in self._own.items() if is_wanted()))

    async def tell(self, event: str, what: object, *, group: str) -> bool:
        """Call the handlers of a group of readers, all at once; whether all have taken the event."""
        handlers = [self._own[group][1]] if group in self._own else self._handlers.get(group, [])
        return all(await asyncio.gather(*(start_task(_tell(event, handler, what)) for handler in handlers)))


async def _tell(event: str, handler: Callable[[Any], object], what: object) -> bool:
    waiting = asyncio.timeout(_PATIENCE_S)
    try:
        async with waiting:
            answer = handler(what)
            if isawaitable(answer):
                await keep_cancellation(answer)
    except Exception:
        if waiting.expired():
            _logger.error("a handler of %s was cancelled: it took longer than %d s", event, _PATIENCE_S)  # noqa: TRY400 - where it was tells nothing
        else:
            _logger.exception("a handler of %s failed", event)
        return False
    return True


_LOOK_EVERY_S: Final = 30.0
_LATE_S: Final = 2.0
_AT_ONCE_MOST: Final = 32


class EventDispatcher:
    """Tells of notices: at once of what a settlement of this process brought, of any other within a minute.

    All processes that have handlers of an event share what there is to tell: each notice goes to one of
    them. One that is not acknowledged, because its process died or a handler failed, goes to any of them a
    minute later; ten times at most.

    Args:
        store: where the notices are.
        handlers: the app's, by event.
    """

    def __init__(self, store: Store, handlers: Handlers) -> None:
        self._store = store
        self._handlers = handlers
        self._due: WeakKeyDictionary[asyncio.AbstractEventLoop, _Due] = WeakKeyDictionary()
        store.on_notice = self._on_notice

    async def run(self) -> None:
        """Tell what there is to tell, beside the running event loop, until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        due, loop = self._due_here(), asyncio.get_running_loop()
        look_at = loop.time()
        while True:
            if loop.time() >= look_at:
                due.shards.update(range(self._store.keys.shards))
                look_at = loop.time() + _LOOK_EVERY_S
            due.wake.clear()
            await self._tell_all(due)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await due.wake.wait()

    async def finish(self, *, timeout_s: float) -> None:
        """Call handlers for new notices; one that takes too long is called again later."""
        due = self._due_here()
        with suppress(TimeoutError, StoreError):
            async with asyncio.timeout(timeout_s):
                await self._tell_all(due)
                if due.telling:
                    await asyncio.wait(due.telling)
        late = [task for task in due.telling if task.cancel()]
        if late:
            _logger.error("handlers of events were cancelled when the kit stopped: %d", len(late))
            # No longer: a handler may itself wait for this end.
            await asyncio.wait(late, timeout=_LATE_S)

    def _due_here(self) -> _Due:
        return self._due.setdefault(asyncio.get_running_loop(), _Due())

    def _on_notice(self, shard: int) -> None:
        due = self._due_here()
        due.shards.add(shard)
        due.wake.set()

    async def _tell_all(self, due: _Due) -> None:
        """Begin to tell all there is in the shards that are due."""
        groups = self._handlers.groups
        async with due.asking:
            while groups and due.shards:
                shard = due.shards.pop()  # Before it is asked: what comes meanwhile makes it due again.
                notices = await read_notices(self._store, shard, groups)
                if notices:
                    due.shards.add(shard)
                for notice in notices:
                    await due.room.acquire()
                    task = start_task(self._tell(notice))
                    due.telling.add(task)
                    task.add_done_callback(due.told)

    async def _tell(self, notice: CustomerNotice) -> None:
        meters = {meter_token(meter): meter for meter in self._store.catalog.meters}
        try:
            event = event_of(notice, meters)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # Another release wrote it, whose processes may read it.
            is_taken, why = False, f"reading it ({error!r})"
        else:
            is_taken = await self._handlers.tell(notice.kind, event, group=notice.group)
            why = "telling it"
        if not is_taken and notice.is_last:
            _logger.error(
                "%s of customer %r is given up: %s has failed %d times (id %s-%s)",
                notice.kind,
                notice.customer,
                why,
                notice.times,
                notice.shard,
                notice.entry,
            )
            is_taken = True
        if is_taken:
            with suppress(StoreError):  # It is delivered again.
                await acknowledge_notice(self._store, notice)


class _Due:
    """What one event loop has to tell: the shards to look at, and what is being told."""

    def __init__(self) -> None:
        self.shards: set[int] = set()
        self.wake = asyncio.Event()
        self.asking = asyncio.Lock()
        self.room = asyncio.Semaphore(_AT_ONCE_MOST)
        self.telling: set[asyncio.Task[None]] = set()

    def told(self, task: asyncio.Task[None]) -> None:
        """Take note of the end of a task."""
        self.telling.discard(task)
        self.room.release()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _logger.error("an event cannot be delivered to handlers; it is tried again", exc_info=error)
