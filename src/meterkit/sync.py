"""The kit for code without an event loop: Celery, RQ, cron, scripts.

Each method is that of the kit itself, run to its end in the event loop of a thread: it takes, gives and
raises the same.
"""

from __future__ import annotations

import asyncio
import atexit
import os
from contextlib import suppress
from functools import partial, wraps
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Self, TypeVar, cast
from weakref import WeakSet

import anyio

from meterkit.cancellation import start_task
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from meterkit.catalog import Catalog
    from meterkit.customers.customers import Customer
    from meterkit.decisions.decision import Decision

P = ParamSpec("P")
T = TypeVar("T")


class BlockingCall(Generic[T]):
    """Coroutine that runs in the event loop of a thread while another thread waits for its reply.

    The thread that waits holds no lock of Python's, as a future does: a signal may interrupt it anywhere.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._function = function
        self._replies: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run the coroutine, and reply with its result or its error."""
        try:
            self._replies.put((await self._function(), None))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Reply with an error."""
        self._replies.put((None, error))

    def cancel(self) -> None:
        """Cancel the coroutine, in its event loop; one that has not begun was not submitted."""
        if self.task is not None:
            self.task.cancel()

    def wait(self) -> T:
        """Wait for the reply; returns the result or raises the error."""
        result, error = self._replies.get()
        if error is None:
            return cast("T", result)
        try:
            raise error
        finally:
            del self, error  # The traceback would keep them in a cycle.


class DaemonLoop:
    """Event loop in a thread, which must not keep the process alive; at exit it is stopped.

    Args:
        served: context manager that is entered when the event loop begins and left when it ends.

    Raises:
        BaseException: entering ``served`` has raised it.
    """

    def __init__(self, served: AbstractAsyncContextManager[object]) -> None:
        self._served = served
        self._calls: set[BlockingCall[Any]] = set()
        self._stopping = asyncio.Event()
        self._has_stopped = False
        begun: SimpleQueue[asyncio.AbstractEventLoop | BaseException] = SimpleQueue()
        self._thread = Thread(target=self._run, args=(begun,), name="meterkit", daemon=True)
        self._thread.start()
        found = begun.get()
        if isinstance(found, BaseException):
            self._thread.join()
            raise found
        self.loop = found

    def submit(self, call: BlockingCall[T]) -> None:
        """Begin a call, from any thread.

        Raises:
            MeterkitError: the event loop has ended; while it ends, waiting for the call raises this.
        """
        self._calls.add(call)
        try:
            self.loop.call_soon_threadsafe(self._begin, call)
        except RuntimeError:  # The event loop is closed.
            raise _stopped() from None

    def stop(self) -> None:
        """End the event loop once its calls have ended, and wait for that."""
        self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _begin(self, call: BlockingCall[Any]) -> None:
        if self._has_stopped:
            return  # It fails with the others that came too late.
        call.task = start_task(call.run())
        call.task.add_done_callback(lambda _: self._calls.discard(call))

    def _run(self, begun: SimpleQueue[asyncio.AbstractEventLoop | BaseException]) -> None:
        has_begun = False

        async def serve() -> None:
            nonlocal has_begun
            async with self._served:
                has_begun = True
                begun.put(asyncio.get_running_loop())
                await self._stopping.wait()
                while running := [call.task for call in self._calls.copy() if call.task is not None]:
                    await asyncio.wait(running)
                self._has_stopped = True

        try:
            anyio.run(serve)
        except BaseException as error:
            if has_begun:
                raise
            begun.put(error)
        finally:
            for call in self._calls.copy():  # They came too late.
                call.fail(_stopped())


def _stopped() -> MeterkitError:
    return MeterkitError("the kit was stopped by another thread: nothing was done")


class LoopThread:
    """Event loop in a thread of each process: runs coroutines to their end, called from any thread.

    It starts with the first call, and after a fork with the child's first call. It ends with the last
    :meth:`stop`, or with the process.

    Args:
        served: context manager that is entered when the event loop begins and left when it ends.
    """

    def __init__(self, served: AbstractAsyncContextManager[object]) -> None:
        self._served = served
        self._lock = Lock()
        self._starts = 0
        self._daemon: DaemonLoop | None = None
        self._of_parents: list[object] = []
        _everywhere.add(self)

    def start(self) -> None:
        """Begin now. Counted: each start wants a stop.

        Raises:
            MeterkitError: an event loop runs in this thread.
        """
        _refuse_running_loop()
        with self._lock:
            self._open()
            self._starts += 1

    def stop(self) -> None:
        """Undo one start; with the last one the event loop and its thread end."""
        with self._lock:
            self._starts = max(0, self._starts - 1)
            if not self._starts:
                self._close()

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **named: P.kwargs) -> T:
        """Run a coroutine to its end; returns its result or raises its error.

        Raises:
            MeterkitError: an event loop runs in this thread.
        """
        daemon, call = self._running(), BlockingCall(partial(function, *args, **named))
        try:
            daemon.submit(call)
            return call.wait()
        except BaseException:
            # Where a signal interrupts the waiting (Ctrl-C, a time limit of Celery) the call ends, too.
            with suppress(RuntimeError):  # The event loop is closed.
                daemon.loop.call_soon_threadsafe(call.cancel)
            raise

    def finish(self, cleanup: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an idempotent cleanup to its end, although a signal interrupts the waiting."""
        daemon, call = self._running(), BlockingCall(cleanup)
        try:
            daemon.submit(call)
            return call.wait()
        except BaseException:
            with suppress(MeterkitError):
                daemon.submit(BlockingCall(cleanup))  # The first one may not have been submitted.
            raise

    def begin(self, cleanup: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Begin an idempotent cleanup without waiting for it; where no event loop runs, there is none."""
        daemon = self._daemon
        if daemon is not None:
            with suppress(MeterkitError):
                daemon.submit(BlockingCall(cleanup))

    def blocking(self, function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        """Wrap a coroutine function in a blocking one with the same arguments."""

        @wraps(function)
        def run(*args: P.args, **named: P.kwargs) -> T:
            return self.call(function, *args, **named)

        return run

    def end(self) -> None:
        """End the event loop, however often it was started."""
        with self._lock:
            self._starts = 0
            self._close()

    def after_fork(self) -> None:
        """Reset in a child process: the parent's thread and connections are neither used nor closed."""
        self._of_parents.append(self._daemon)
        self._daemon = None
        self._lock = Lock()

    def _running(self) -> DaemonLoop:
        _refuse_running_loop()
        daemon = self._daemon
        if daemon is None:
            with self._lock:
                daemon = self._open()
        return daemon

    def _open(self) -> DaemonLoop:
        if self._daemon is None:
            self._daemon = DaemonLoop(self._served)
        return self._daemon

    def _close(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.stop()


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise MeterkitError(
        "sync() is for code without an event loop, and one runs in this thread, which the call would block:"
        " await the same method of the kit itself (async with MeterKit(…) as kit)"
    )


_everywhere: WeakSet[LoopThread] = WeakSet()


def _after_fork() -> None:
    for thread in _everywhere:
        thread.after_fork()


def _at_exit() -> None:
    for thread in list(_everywhere):
        thread.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


class SyncPart:
    """Part of a kit whose coroutine methods block: each runs to its end in the event loop of a thread.

    The stub ``sync.pyi`` has the signatures; ``python tests/drivers/sync_stub.py`` writes it.

    Args:
        part: the part of the asynchronous kit.
        loop: runs its coroutines.
    """

    _methods: ClassVar[tuple[str, ...]] = ()
    """Names of the coroutine methods that block here."""
    _shared: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are handed on as they are."""
    _parts: ClassVar[Mapping[str, type[SyncPart]]] = {}
    """Attributes that are parts themselves."""

    def __init__(self, part: Any, loop: LoopThread) -> None:
        self._part = part
        self._loop = loop
        for name in self._methods:
            setattr(self, name, loop.blocking(getattr(part, name)))
        for name in self._shared:
            setattr(self, name, getattr(part, name))
        for name, kind in self._parts.items():
            setattr(self, name, kind(getattr(part, name), loop))


class SyncCustomers(SyncPart):
    """Reads and changes customers; see :class:`meterkit.Customers`."""

    _methods = (
        "get",
        "known",
        "set_plan",
        "set_status",
        "override",
        "spend_limit",
        "link",
        "unlink",
        "delete",
        "history",
    )

    def subject(self, customer: str, **subject: str) -> SyncSubject:
        """Name a subject of a customer; see :meth:`meterkit.Customers.subject`."""
        return SyncSubject(self._part.subject(customer, **subject), self._loop)

    def list(self) -> Iterator[Customer]:
        """List all customers that have a record, in no order."""
        customers = self._part.list()

        async def fetch_next() -> Customer | None:
            return cast("Customer | None", await anext(customers, None))

        while (customer := self._loop.call(fetch_next)) is not None:
            yield customer


class SyncSubject(SyncPart):
    """Subject of a customer; see :class:`meterkit.CustomerSubject`."""

    _methods = ("override",)


class SyncCredits(SyncPart):
    """Sells balances in money; see :class:`meterkit.Credits`."""

    _methods = ("buy", "set_auto")


class SyncGrants(SyncPart):
    """Adds, lists and voids grants; see :class:`meterkit.Grants`."""

    _methods = ("add", "list", "void", "ledger")


class SyncGauges(SyncPart):
    """Reads and changes the levels of gauges; see :class:`meterkit.Gauges`."""

    _methods = ("get", "set", "adjust")


class SyncMessages(SyncPart):
    """Lists, resends and previews messages, and keeps what customers want; as ``kit.notify``."""

    _methods = ("preferences", "list", "redrive")
    _shared = ("preview",)


class SyncObjectStorage(SyncPart):
    """Counts stored objects and presigns uploads; see :class:`meterkit.ObjectStorage`."""

    _methods = ("count", "poll", "presign", "recalculate", "unclear")


class SyncQueuedItems(SyncPart):
    """Lists, redrives and drops queued invoice items; see :class:`meterkit.QueuedItems`."""

    _methods = ("list", "redrive", "drop")


class SyncIntents(SyncPart):
    """Lists, redrives, parks and drops intents; see :class:`meterkit.Intents`."""

    _methods = ("list", "show", "redrive", "park", "drop")
    _parts: ClassVar = {"items": SyncQueuedItems}


class SyncRevenue(SyncPart):
    """Reads figures of revenue; see :class:`meterkit.Revenue`."""

    _methods = ("at", "by_plan", "days", "spend", "snapshot")


class SyncStripeAccount(SyncPart):
    """Makes the objects of the plans file at Stripe; see :class:`meterkit.StripeAccount`."""

    _methods = ("sync",)


class SyncSubscriptions(SyncPart):
    """Begins, changes and ends subscriptions; see :class:`meterkit.Subscriptions`."""

    _methods = (
        "get",
        "sync",
        "create",
        "checkout",
        "portal",
        "preview",
        "change_plan",
        "set_seats",
        "set_addons",
        "cancel",
        "resume",
        "invoices",
        "check",
        "repair",
        "move_usage",
        "import_from_stripe",
        "retry_accepted",
    )


class SyncWebhooks(SyncPart):
    """Shows which of Stripe's events failed, and processes them again; as ``kit.webhooks``."""

    _methods = ("backlog", "dead", "redrive")


class SyncMeterKit(SyncPart):
    """A :class:`~meterkit.MeterKit` whose methods block, from any thread; ``kit.sync()`` makes it.

    The first call of a process connects; a block (``with kit.sync() as kit:``) or :meth:`start` does so at
    once, and raises what is wrong with the settings. It may be made, and started, before a fork: each child
    has an event loop, a thread and a connection of its own from its first call. What is still open when the
    process ends is closed then.

    Where an event loop runs in the calling thread each method raises :class:`~meterkit.errors.MeterkitError`.
    """

    _methods = (
        "check",
        "allows",
        "consume",
        "record",
        "record_usage",
        "correct",
        "reconcile",
        "statement",
        "usage",
        "rates",
        "health",
        "flush",
        "reload",
    )
    _shared = ("settings",)
    _parts: ClassVar = {
        "customers": SyncCustomers,
        "credits": SyncCredits,
        "grants": SyncGrants,
        "gauges": SyncGauges,
        "notify": SyncMessages,
        "outbox": SyncIntents,
        "revenue": SyncRevenue,
        "stripe": SyncStripeAccount,
        "storage": SyncObjectStorage,
        "subscriptions": SyncSubscriptions,
        "webhooks": SyncWebhooks,
    }

    def __init__(self, kit: Any) -> None:
        super().__init__(kit, LoopThread(kit))

    @property
    def catalog(self) -> Catalog:
        """The catalog: plans, meters, routes."""
        return cast("Catalog", self._part.catalog)

    def start(self) -> None:
        """Connect now. Counted: each start wants a stop.

        Raises:
            MeterkitError: an event loop runs in this thread.
            SettingsError: as of :meth:`meterkit.MeterKit.start`.
        """
        self._loop.start()

    def stop(self) -> None:
        """Undo one start; the last one settles what is left and closes all that was opened."""
        self._loop.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reserve(
        self,
        customer: str,
        quantities: Mapping[str, int],
        *,
        model: str | None = None,
        subjects: Mapping[str, str] | None = None,
    ) -> SyncReservation:
        """Hold quantities now and count the true ones later; see :meth:`meterkit.MeterKit.reserve`.

        ``with kit.reserve("acme", {"output_tokens": 4096}) as reservation:`` look at
        ``reservation.decision``, then ``reservation.capture({"output_tokens": 812})``.
        """
        held = self._part.reserve(customer, quantities, model=model, subjects=subjects)
        return SyncReservation(held, self._loop)


class SyncReservation(SyncPart):
    """Quantities that are set aside while their ``with`` block runs; see :class:`meterkit.Reservation`."""

    _methods = ("capture",)
    _open_in = 0
    """Process whose block holds quantities; 0: none does."""

    @property
    def decision(self) -> Decision:
        """Whether the quantities are set aside; a refused reservation holds nothing.

        Raises:
            MeterkitError: before the block has begun.
        """
        return cast("Decision", self._part.decision)

    def release(self) -> None:
        """Release the reservation: nothing is recorded, and rates count none of it. Idempotent."""
        # A child that a queue of jobs has forked ends without another word: what is under way then is lost.
        self._loop.finish(self._part.released)
        self._open_in = 0

    def __enter__(self) -> Self:
        self._open_in = os.getpid()
        try:
            self._loop.call(self._part.__aenter__)
        except MeterkitError:
            raise  # Nothing is held.
        except BaseException:  # A signal: no block begins, so none would end the hold.
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # A signal may interrupt `__exit__` before it releases anything.
        if self._open_in and self._open_in == os.getpid():
            self._loop.begin(self._part.released)
