"""The session of a command: its common options, its kit, its signals, error messages."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
import re
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import update_wrapper
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import meterkit
from meterkit.cancellation import start_task
from meterkit.cli.help_pages import Command
from meterkit.cli.options import common_options, note_missing_plan
from meterkit.cli.output import PlainLines, print_json, print_note, print_records
from meterkit.errors import MeterkitError, PlansError, SettingsError, StoreError, StripeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence

    import typer
    from _typeshed import DataclassInstance

    from meterkit.subscriptions.service.stripe_customers import ContactSource

_Record = TypeVar("_Record", bound="DataclassInstance")

REFUSED = 1
WRONG_USAGE = 2
# Replies of a server that can still be read: full memory, a replica, no disk, no replicas.
_NO_WRITES: Final = re.compile(r"refuses to serve: (?:OOM|READONLY|MISCONF|NOREPLICAS)\b")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Session:
    """The common options of a command."""

    plans: str | None
    redis: str | None
    json: bool

    def make_kit(self, contact: ContactSource | None = None) -> meterkit.MeterKit:
        """Make a kit that delivers nothing by itself; it is not started."""
        # Show meterkit's log on the terminal.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(PlainLines())
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("meterkit").setLevel(logging.INFO)
        logging.getLogger("meterkit.plans").setLevel(logging.ERROR)  # `meterkit check` shows these.
        return meterkit.MeterKit(self.plans, redis_url=self.redis, flush=False, contact=contact)

    @asynccontextmanager
    async def kit(
        self, customer: str | None = None, *, reads: bool = False
    ) -> AsyncGenerator[meterkit.MeterKit]:
        """Start a kit; print a note if the plan of ``customer`` is missing.

        ``reads``: the command only reads, so a store that refuses writes will do.
        """
        kit = self.make_kit()
        async with started(kit, reads=reads):
            if customer is not None:
                note_missing_plan(kit, await kit.customers.get(customer))
            yield kit

    def show(self, value: object, as_text: Callable[[], None]) -> None:
        """Print a value as JSON with ``--json``, otherwise as text."""
        print_json(value) if self.json else as_text()

    def show_rows(
        self,
        found: Sequence[_Record],
        row: Callable[[_Record], Mapping[str, object]],
        *,
        rare: Collection[str] = (),
        empty: str,
    ) -> None:
        """Print dataclasses as JSON with ``--json``, otherwise as a table."""
        self.show(
            [asdict(one) for one in found],
            lambda: print_records([row(one) for one in found], rare=rare, empty=empty),
        )


def command(
    group: typer.Typer,
    name: str | None = None,
    *,
    unused: Collection[str] = (),
    by_default: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of a session, sync or async, as a command; Typer declares its other parameters.

    Args:
        group: the command group.
        name: default: the function's name.
        unused: those of ``plans``, ``redis`` and ``json`` that have no effect here.
        by_default: the group runs it without a subcommand, and before one, which its context names.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*, plans: str | None, redis: str | None, json: bool, **given: Any) -> None:
            work = function(Session(plans, redis, json), **given)
            if inspect.iscoroutine(work):
                asyncio.run(work)

        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        parameters = [*own, *common_options(unused)]
        typed: Any = update_wrapper(run, function)
        typed.__signature__ = signature.replace(parameters=parameters)
        typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        if by_default:
            group.callback(invoke_without_command=True)(typed)
        else:
            group.command(name, cls=Command)(typed)
        return function

    return register


@asynccontextmanager
async def started(
    kit: meterkit.MeterKit, *, waits: bool = False, reads: bool = False
) -> AsyncGenerator[None]:
    """Start and stop a kit.

    Args:
        kit: the kit.
        waits: do not fail if the store is down; wait for it.
        reads: do not fail if the store refuses writes; print a note.

    Raises:
        StoreError: the store cannot be reached, unless ``waits``.
        SettingsError: the store cannot be used with these settings.
    """
    async with AsyncExitStack() as stack:
        with _hide_startup_errors(logging.CRITICAL if waits else logging.ERROR):
            await stack.enter_async_context(kit)
        trouble = (await kit.store.lane()).connection_error
        if trouble is not None and reads and _NO_WRITES.search(str(trouble)):
            print_note(f"{trouble}; reading only")
        elif trouble is not None and not waits:
            is_reachable = "cannot be reached" not in str(trouble)
            names_another = "start it, or name another with --redis or METERKIT_REDIS_URL"
            cure = "`meterkit doctor` says what to do" if is_reachable else names_another
            raise StoreError(f"{trouble}; {cure}") from trouble
        if kit.store.address.kind == "memory":
            print_note("memory:// lives in this process only: it has none of your app's usage")
        yield


@contextmanager
def _hide_startup_errors(level: int) -> Generator[None]:
    """Hide log lines about an unusable store: the command ends with the same error."""

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno < level

    logger = logging.getLogger("meterkit.store")
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)


@asynccontextmanager
async def stop_signal() -> AsyncGenerator[asyncio.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; the second one acts as usual."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with ExitStack() as handlers:

        def ask_to_stop() -> None:
            stop.set()
            handlers.close()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask_to_stop)
            handlers.callback(loop.remove_signal_handler, number)
        yield stop


@asynccontextmanager
async def reload_signal(kit: meterkit.MeterKit) -> AsyncGenerator[None]:
    """Reload the plans file at SIGHUP, and print the result."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def reload() -> None:
        try:
            print_note(
                "the plans file was reloaded" if await kit.reload() else "the plans file has not changed"
            )
        except MeterkitError as error:
            print_note(f"the plans file is refused; the previous one stays active: {error}")

    def begin() -> None:
        task = start_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGHUP, begin)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await asyncio.gather(*tasks)


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit code; print one readable message for each expected error."""
    try:
        command()
    except (MeterkitError, ImportError) as error:
        if isinstance(error, ImportError) and error.name is not None:
            raise  # Not a missing extra, which names its cure.
        prefix = "" if isinstance(error, PlansError) else "meterkit: "
        print_note(f"{prefix}{error}{_cure_of(error)}", level=logging.ERROR)
        return WRONG_USAGE if isinstance(error, SettingsError | ImportError) else REFUSED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print_note(f"meterkit: the output cannot be written: {os.strerror(error.errno)}", level=logging.ERROR)
        _discard_output()
        return REFUSED
    return 0


def _cure_of(error: Exception) -> str:
    """Return the cure for a refused Stripe key, otherwise an empty text."""
    if isinstance(error, StripeError) and error.status == HTTPStatus.UNAUTHORIZED:
        return "; set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account"
    return ""


def _discard_output() -> None:
    """Discard buffered output, which Python would write again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
