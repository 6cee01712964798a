"""What commands share: their common options, a kit, and one message about what went wrong."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import os
import re
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import update_wrapper
from http import HTTPStatus
from shlex import quote
from typing import TYPE_CHECKING, Any, Final, TypeVar

import meterkit
from meterkit.cancellation import start_task
from meterkit.catalog.errors import suggestion
from meterkit.cli.options import Command, common_options
from meterkit.cli.output import PlainLines, print_json, print_note, print_records
from meterkit.customers.customer_ids import customers_set_up
from meterkit.errors import MeterkitError, PlansError, SettingsError, StoreError, StripeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence

    import typer
    from _typeshed import DataclassInstance

    from meterkit.customers.customers import Customer
    from meterkit.kit import MeterKit
    from meterkit.subscriptions.service.stripe_customers import ContactSource

_Record = TypeVar("_Record", bound="DataclassInstance")

REFUSED = 1
WRONG_USAGE = 2
# What a server answers that can be read from: it is full, a replica, without its disk or without replicas.
_NO_WRITES: Final = re.compile(r"refuses to serve: (?:OOM|READONLY|MISCONF|NOREPLICAS)\b")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Session:
    """What a command was given beside its own arguments and options."""

    plans: str | None
    redis: str | None
    json: bool

    def make_kit(self, contact: ContactSource | None = None) -> meterkit.MeterKit:
        """A kit that delivers nothing by itself, not started yet."""
        # Show meterkit's log on the terminal.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(PlainLines())
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("meterkit").setLevel(logging.INFO)
        logging.getLogger("meterkit.plans").setLevel(logging.ERROR)  # What `check` is there for.
        return meterkit.MeterKit(self.plans, redis_url=self.redis, flush=False, contact=contact)

    @asynccontextmanager
    async def kit(
        self, customer: str | None = None, *, reads: bool = False
    ) -> AsyncGenerator[meterkit.MeterKit]:
        """A started kit; a note is printed if the plan of ``customer`` is missing.

        ``reads``: what is done with it changes nothing, and needs no store that takes writes.
        """
        kit = self.make_kit()
        async with started(kit, reads=reads):
            if customer is not None:
                note_missing_plan(kit, await kit.customers.get(customer))
            yield kit

    def show(self, value: object, as_text: Callable[[], None]) -> None:
        """Print a value as JSON with ``--json``, else as text."""
        print_json(value) if self.json else as_text()

    def show_rows(
        self,
        found: Sequence[_Record],
        row: Callable[[_Record], Mapping[str, object]],
        *,
        rare: Collection[str] = (),
        empty: str,
    ) -> None:
        """Print dataclasses as JSON with ``--json``, else as a table with a row of each."""
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
    """Make a command of a function, sync or async, of a session and of what else is declared by Typer.

    Args:
        group: what it is a command of.
        name: by default the function's.
        unused: those of ``plans``, ``redis`` and ``json`` that change nothing here.
        by_default: the group runs it without a subcommand, and before a subcommand, which its context names.
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
        waits: go on where the store cannot be reached, until it can.
        reads: go on where the store takes no writes, and say so.

    Raises:
        StoreError: the store cannot be reached, unless ``waits``.
        SettingsError: the store cannot be used with these settings.
    """
    async with AsyncExitStack() as stack:
        with _raised_and_not_logged(logging.CRITICAL if waits else logging.ERROR):
            await stack.enter_async_context(kit)
        trouble = (await kit.store.lane()).connection_error
        if trouble is not None and reads and _NO_WRITES.search(str(trouble)):
            print_note(f"{trouble}; it is only read from")
        elif trouble is not None and not waits:
            is_there = "cannot be reached" not in str(trouble)
            names_another = "--redis or METERKIT_REDIS_URL names another"
            cure = "`meterkit doctor` says what to do" if is_there else names_another
            raise StoreError(f"{trouble}; {cure}") from trouble
        if kit.store.address.kind == "memory":
            print_note("memory:// lives in this process only: what an app has counted is not in it")
        yield


@contextmanager
def _raised_and_not_logged(level: int) -> Generator[None]:
    """Leave out of the log what keeps the store from being used: the command ends by it, and says it."""

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
    """An event that the first SIGTERM or SIGINT sets; the second one acts as usual."""
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
    """SIGHUP has the plans file read again; what comes of it is noted."""
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def reload() -> None:
        try:
            print_note(
                "the plans file is in force" if await kit.reload() else "the plans file means the same"
            )
        except MeterkitError as error:
            print_note(f"the plans file is refused; the one before holds: {error}")

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


def tell(command: Callable[[], None]) -> int:
    """Run a command; its exit code, after one readable message where meterkit refused."""
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
        _forget_output()
        return REFUSED
    return 0


def _cure_of(error: Exception) -> str:
    """Advice for a key that Stripe refuses; Stripe's own words say only what it found."""
    if isinstance(error, StripeError) and error.status == HTTPStatus.UNAUTHORIZED:
        return "; METERKIT_STRIPE_API_KEY is to be a secret or restricted key of the account"
    return ""


def _forget_output() -> None:
    """Drop what is left to be written, which Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_COMPARED_MAX: Final = 5_000
"""Among more customers than this the nearest one is not looked for: it would take seconds."""


async def note_unknown(
    kit: MeterKit, customer: str, *, shown: str = " This is the state of a new customer"
) -> None:
    """Because an unknown id may be a typo, print a note about it, and about the ``shown`` values."""
    if not await kit.customers.known(customer):
        print_note(f"{await _unknown(kit, customer)}{shown}")


def note_missing_plan(kit: MeterKit, customer: Customer) -> None:
    """Say so where a customer's plan is gone from the plans file."""
    if customer.missing_plan is not None:
        print_note(
            f"customer {customer.customer}: plan `{customer.missing_plan}` is not in {kit.catalog.source}:"
            f" served on `{customer.plan}`"
        )


async def check_known(kit: MeterKit, customer: str) -> None:
    """See that something is known of a customer.

    Raises:
        MeterkitError: nothing is; the nearest customer is named.
    """
    if not await kit.customers.known(customer):
        raise MeterkitError(f"{await _unknown(kit, customer)} Nothing was changed")


async def hint_of_new(kit: MeterKit, customer: str) -> str:
    """What to say where a customer that is about to be changed is a new one, else nothing."""
    if await kit.customers.known(customer):
        return ""
    hint = await _nearest(kit, customer)
    undo = f" `meterkit customers delete {quote(customer)}` takes this back" if hint else ""
    return f"new customer {customer}: nothing was known of it{hint}{undo}"


async def _unknown(kit: MeterKit, customer: str) -> str:
    hint = await _nearest(kit, customer)
    return f"nothing is known of customer {customer}{hint or '.'}"


async def _nearest(kit: MeterKit, customer: str) -> str:
    """``; did you mean 'x'?`` if a customer with a similar id has a record, else nothing."""
    found: list[str] = []
    async with aclosing(customers_set_up(await kit.store.admin(), kit.store.keys)) as customers:
        async for known in customers:
            found.append(known)
            if len(found) > _COMPARED_MAX:
                return ""
    return suggestion(customer, sorted(found))
