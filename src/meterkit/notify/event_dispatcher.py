"""Event dispatcher: calls the app's handlers for each notice in the store, at least once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from meterkit.cancellation import start_task
from meterkit.decisions.keys import meter_token
from meterkit.errors import StoreError
from meterkit.notify.events import read_event
from meterkit.store.customer_notices import acknowledge_notice, read_notices

if TYPE_CHECKING:
    from meterkit.notify.event_handlers import Handlers
    from meterkit.store.customer_notices import CustomerNotice
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.notify")
_POLL_S: Final = 30.0
_LATE_S: Final = 2.0
_AT_ONCE_MOST: Final = 32


class EventDispatcher:
    """Calls handlers for notices: at once for settlements of this process, within a minute for others.

    The processes that have handlers of an event share its notices: each goes to one of them. A notice
    that is not acknowledged, because its process died or a handler failed, is delivered again a minute
    later, at most ten times.

    Args:
        store: has the notices.
        handlers: the handlers by event.
    """

    def __init__(self, store: Store, handlers: Handlers) -> None:
        self._store = store
        self._handlers = handlers
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, _DispatchState] = WeakKeyDictionary()

    async def run(self) -> None:
        """Dispatch notices until cancelled.

        Raises:
            StoreError: the store does not answer.
        """
        state, loop = self._loop_state(), asyncio.get_running_loop()
        poll_at = loop.time()
        while True:
            if loop.time() >= poll_at:
                state.shards.update(range(self._store.keys.shards))
                poll_at = loop.time() + _POLL_S
            state.wake.clear()
            await self._dispatch_due(state)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(poll_at):
                    await state.wake.wait()

    async def finish(self, *, timeout_s: float) -> None:
        """Dispatch new notices; a handler that takes too long is called again later."""
        state = self._loop_state()
        with suppress(TimeoutError, StoreError):
            async with asyncio.timeout(timeout_s):
                await self._dispatch_due(state)
                if state.running:
                    await asyncio.wait(state.running)
        late = [task for task in state.running if task.cancel()]
        if late:
            _logger.error("event handlers were cancelled when the kit stopped: %d", len(late))
            # A handler may itself wait for the kit to stop.
            await asyncio.wait(late, timeout=_LATE_S)

    def _loop_state(self) -> _DispatchState:
        return self._states.setdefault(asyncio.get_running_loop(), _DispatchState())

    def on_notice(self, shard: int) -> None:
        """Dispatch the notices of a shard now: this process has just stored one."""
        state = self._loop_state()
        state.shards.add(shard)
        state.wake.set()

    async def _dispatch_due(self, state: _DispatchState) -> None:
        """Start tasks for the notices of all due shards."""
        groups = self._handlers.groups
        async with state.fetching:
            while groups and state.shards:
                # Before the read: a notice that arrives during it makes the shard due again.
                shard = state.shards.pop()
                notices = await read_notices(self._store, shard, groups)
                if notices:
                    state.shards.add(shard)
                for notice in notices:
                    await state.slots.acquire()
                    task = start_task(self._notify_handlers(notice))
                    state.running.add(task)
                    task.add_done_callback(state.finish_task)

    async def _notify_handlers(self, notice: CustomerNotice) -> None:
        meters = {meter_token(meter): meter for meter in self._store.catalog.meters}
        try:
            event = read_event(notice, meters)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # A process of another release may be able to read it.
            is_handled, reason = False, f"the event cannot be read ({error!r})"
        else:
            is_handled = await self._handlers.call(notice.kind, event, group=notice.group)
            reason = "a handler failed"
        if not is_handled and notice.is_last:
            _logger.error(
                "%s of customer %r is dropped after %d attempts: %s (id %s-%s)",
                notice.kind,
                notice.customer,
                notice.times,
                reason,
                notice.shard,
                notice.entry,
            )
            is_handled = True
        if is_handled:
            with suppress(StoreError):  # The notice is delivered again.
                await acknowledge_notice(self._store, notice)


class _DispatchState:
    """Dispatching of one event loop: shards that are due, and running handlers."""

    def __init__(self) -> None:
        self.shards: set[int] = set()
        self.wake = asyncio.Event()
        self.fetching = asyncio.Lock()
        self.slots = asyncio.Semaphore(_AT_ONCE_MOST)
        self.running: set[asyncio.Task[None]] = set()

    def finish_task(self, task: asyncio.Task[None]) -> None:
        """Free the slot of a finished task, and log its error."""
        self.running.discard(task)
        self.slots.release()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _logger.error("an event cannot be delivered to handlers; it will be retried", exc_info=error)
