"""Event loops that a kit serves: started, counted and stopped, with a supervisor of background tasks.

The supervisor restarts a task that ended by an error and logs each kind of error once: a task that ended
unnoticed would stop events or delivery in every process.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias
from weakref import WeakKeyDictionary

from meterkit.cancellation import complete, start_task
from meterkit.catalog.notes import log_notes
from meterkit.errors import MeterkitError, StoreError
from meterkit.insights.otel import observe_store
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.redis.event_loops import running_loop
from meterkit.redis.url import choose_store
from meterkit.store.event_names import remember_meters
from meterkit.store.excess_units import ExcessUnits
from meterkit.store.plan_definitions import exchange_plans
from meterkit.store.spool_file import reason_unusable
from meterkit.store.store import Store

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections import Counter
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from meterkit.catalog import Catalog
    from meterkit.redis.lane import Lane
    from meterkit.settings import Settings

    BackgroundTask: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

__all__ = ["BackgroundTasks", "KitLifecycle", "LoopServer", "store_of"]

_logger = logging.getLogger("meterkit")


def store_of(settings: Settings, catalog: Catalog, clock: Callable[[], float]) -> Store:
    """Make the store of a kit; warn if no setting names it, and if no request is decided.

    Raises:
        SettingsError: the store's address cannot be used.
    """
    choice = choose_store(
        settings.reveal(settings.redis_url), live=settings.live, is_shared=settings.is_redis_url_shared
    )
    if choice.address.tls is not None and not choice.address.tls.is_verified:
        _logger.warning(
            "REDIS_URL turns verification off (ssl_cert_reqs): TLS to the store encrypts, but any server is"
            " trusted; set METERKIT_REDIS_URL with ssl_ca_certs=FILE to verify it"
        )
    if settings.redis_url is None:
        _logger.warning("the store is %s: %s", choice.address, choice.why)
    if not catalog.routes:
        _logger.warning("%s has no routes: no request is decided", catalog.source)
    return Store.of(choice.address, catalog, settings, clock)


class LoopServer:
    """Starts and stops the store and the background tasks of each event loop.

    Args:
        store: of the kit.
        settings: of the kit.
        tasks: background tasks of each event loop, by name.
        finish: ends the work in progress in the running event loop, before its tasks are cancelled.
        close: closes the other resources of the running event loop, after its tasks have ended.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        tasks: Mapping[str, BackgroundTask],
        finish: Callable[[], Awaitable[None]],
        *,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._settings = settings
        self._tasks: dict[str, BackgroundTask] = {
            **tasks,
            "degraded": store.degraded.run,
            "excess": ExcessUnits(store).run,
            "unpriced": store.unpriced.run,
        }
        self._finish = finish
        self._close = close
        self._background = BackgroundTasks(store.task_failures)
        self._starts: WeakKeyDictionary[AbstractEventLoop, int] = WeakKeyDictionary()
        self._has_started = self._has_begun = False
        store.loops.before_stop = self._end
        store.on_unknown_plan = self._exchange_later

    async def start(self) -> None:
        """Serve the running event loop; see :meth:`KitLifecycle.start`."""
        loop = running_loop()
        observe_store(self._store)
        self._starts[loop] = self._starts.get(loop, 0) + 1
        try:
            lane = await self._serve(loop)
            if lane is not None:
                await self._store.start()
                await self.exchange_terms()
        except BaseException:  # A cancellation, too: a block that is not entered is not left either.
            await complete(self._undo_start(loop))
            raise

    async def begin(self) -> None:
        """Serve the running event loop unless that was started; see :meth:`KitLifecycle.begin`."""
        loop = running_loop()
        if loop in self._starts:
            await self._serve(loop)
            return
        # Before anything is awaited: many requests may come first at once.
        self._starts[loop] = 1
        if not self._has_begun:
            self._has_begun = True
            _logger.warning(
                "no lifespan has started meterkit (a mounted app, or a server that runs none): the first"
                " request of an event loop does, %s; it ends with the loop",
                "and delivers to Stripe" if self._settings.delivers else "and delivers nothing",
            )
        observe_store(self._store)
        lane = await self._serve(loop)
        if lane is not None:
            self._exchange_later()  # The request does not wait for it.

    async def stop(self) -> None:
        """Undo one start; see :meth:`KitLifecycle.stop`."""
        await complete(self._undo_start(running_loop(), finish=True))

    async def _undo_start(self, loop: AbstractEventLoop, *, finish: bool = False) -> None:
        """Undo one start; after the last one nothing of the kit is left in the loop."""
        left = self._starts.get(loop, 0) - 1
        if left > 0:
            self._starts[loop] = left
            return
        try:
            if finish and not self._store.is_off:
                await self._finish()
        finally:
            try:
                await self._end()
            finally:
                await self._store.stop()

    async def exchange_terms(self) -> None:
        """Store the terms of the plans file, and read those of other files; later if the store is down."""
        lane = self._store.lanes.get(running_loop())
        if lane is not None and lane.connected:
            await self._exchange_terms(lane)
        else:
            self._exchange_later()

    def _exchange_later(self) -> None:
        with suppress(MeterkitError):  # A view may be made where no event loop runs.
            if (lane := self._store.lanes.get(running_loop())) is not None:
                lane.spawn(self._exchange_terms(lane))

    async def _exchange_terms(self, lane: Lane) -> None:
        store = self._store
        with suppress(StoreError):  # It has gone down again; the next process or a flusher stores them.
            await lane.await_replies()
            admin = await store.admin()
            await remember_meters(admin, store.keys, store.catalog)
            await exchange_plans(admin, store)

    async def _serve(self, loop: AbstractEventLoop) -> Lane | None:
        if not self._has_started:
            self._has_started = True
            log_notes(self._store.catalog, self._settings.enforcement)
            self._log_unusable_spools()
        lane = None
        if not self._store.is_off:  # It may be switched off because of the store.
            lane = await self._store.lane()
            lane.is_served = True
        for name, work in self._tasks.items():
            self._background.ensure_running(loop, name, work)
        return lane

    def _log_unusable_spools(self) -> None:
        """Log that usage of an outage could not be kept on disk: in an outage it is too late."""
        directory = self._settings.spool_dir
        is_written = self._store.address.kind != "memory" and not self._store.is_off
        if is_written and (why := reason_unusable(directory)):
            _logger.warning(
                "usage of an outage cannot be spooled to %s: %s; it would stay in memory and be lost with the"
                " process",
                directory,
                why,
            )

    async def _end(self) -> None:
        loop = running_loop()
        self._starts.pop(loop, None)
        await self._background.end(loop)
        await self._close()


class KitLifecycle:
    """Starts and stops a kit, by itself or as an async context manager."""

    _serving: LoopServer

    async def start(self) -> None:
        """Connect for the running event loop. Counted: each start wants a stop.

        A store that cannot be reached within ``start_timeout`` is logged, and tried on in the background.

        Raises:
            MeterkitError: the running event loop is not asyncio's: trio is not supported.
            SettingsError: the store belongs to another number of shards or to a newer release, or the
                embedded server cannot be run.
        """
        await self._serving.start()

    async def begin(self) -> None:
        """Serve the running event loop unless that was started, as the first request does without a lifespan.

        Counts as one start without a stop: it ends with the event loop. Does not wait for the store.

        Raises:
            MeterkitError: the running event loop is not asyncio's.
        """
        await self._serving.begin()

    async def stop(self) -> None:
        """Undo one start; the last one settles what is left and closes all that belongs to the loop.

        A cancellation does not interrupt it: it is raised once all is closed, after some seconds at most.
        """
        await self._serving.stop()

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "a kit needs an event loop: write `async with kit:`, or in code without one"
            " `with MeterKit(…).sync() as kit:`"
        )

    def __exit__(self, *_: object) -> None:
        """Complete the protocol without which Python does not call ``__enter__``."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


_task_logger = logging.getLogger("meterkit.serving")

_jitter = SystemRandom().uniform

_AGAIN_FIRST_S: Final = 1.0
_AGAIN_MOST_S: Final = 60.0
_STEADY_S: Final = 60.0
_NO_THREADS: Final = "cannot schedule new futures after"
"""So begins the error of a pool of threads that takes no more work, as its process ends."""


class BackgroundTasks:
    """Supervisor of named background tasks, one of each name in an event loop.

    A task that fails is restarted after a second, then after twice as long each time, up to a minute. Each
    kind of error is logged once, and again each hour until the task has run for a minute; errors of the store
    once for all tasks.

    Args:
        failures: counts how often each task has ended by an error.
    """

    def __init__(self, failures: Counter[str]) -> None:
        self._failures = failures
        self._store_throttle = Throttle(HOUR_S)
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[None]]]
        self._tasks = WeakKeyDictionary()

    def ensure_running(
        self, loop: asyncio.AbstractEventLoop, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Start a task in the running loop, unless it runs already."""
        tasks = self._tasks.setdefault(loop, {})
        if name not in tasks or tasks[name].done():
            tasks[name] = start_task(self._run_task(name, work), name=f"meterkit {name}")

    async def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel a loop's tasks, and wait until they have ended."""
        tasks = self._tasks.pop(loop, {}).values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run_task(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        log_throttle, pause_s, loop = Throttle(HOUR_S), _AGAIN_FIRST_S, asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - no other code would log it, or start again
                if isinstance(error, RuntimeError) and str(error).startswith(_NO_THREADS):
                    return
                failed = error
            else:
                return
            self._failures[name] += 1
            # A store that is down ends every task: one line of the first, not one of each.
            throttle = self._store_throttle if isinstance(failed, StoreError) else log_throttle
            if loop.time() - began_s >= _STEADY_S:
                throttle.forget()
                pause_s = _AGAIN_FIRST_S
            if throttle.is_due(type(failed)):
                _log_failure(name, failed)
            await asyncio.sleep(pause_s * _jitter(0.5, 1.0))
            pause_s = min(_AGAIN_MOST_S, 2 * pause_s)


def _log_failure(name: str, failed: Exception) -> None:
    if isinstance(failed, MeterkitError):  # Mostly the store is down: a traceback would not help.
        _task_logger.warning("the background task %r ended by an error and begins anew: %s", name, failed)
    else:
        _task_logger.error("the background task %r ended by an error and begins anew", name, exc_info=failed)
