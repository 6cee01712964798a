"""Runs a command against the store, and tells what went wrong in one message."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import meterkit
from meterkit.cli.output import print_note
from meterkit.errors import MeterkitError, PlansError, SettingsError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

__all__ = ["exit_code", "log_to_stderr", "make_kit", "open_kit", "started", "stop_signal", "tell"]

REFUSED = 1
WRONG_USAGE = 2
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def make_kit(*, plans: str | None, redis: str | None) -> meterkit.MeterKit:
    """A kit that delivers nothing by itself, not started yet."""
    log_to_stderr()
    return meterkit.MeterKit(plans, redis_url=redis, flush=False)


@asynccontextmanager
async def started(kit: meterkit.MeterKit, *, waits: bool = False) -> AsyncGenerator[None]:
    """Start and stop a kit.

    Args:
        kit: the kit.
        waits: go on where the store cannot be reached, until it can.

    Raises:
        StoreError: the store cannot be reached, unless ``waits``.
        SettingsError: the store cannot be used with these settings.
    """
    async with AsyncExitStack() as stack:
        with _raised_and_not_logged(logging.CRITICAL if waits else logging.ERROR):
            await stack.enter_async_context(kit)
        trouble = (await kit.store.lane()).trouble
        if trouble is not None and not waits:
            raise StoreError(f"{trouble}; --redis or METERKIT_REDIS_URL names another") from trouble
        if kit.store.address.kind == "memory":
            print_note("memory:// lives in this process only: what an app has counted is not in it")
        yield


@asynccontextmanager
async def open_kit(*, plans: str | None, redis: str | None) -> AsyncGenerator[meterkit.MeterKit]:
    """A started kit that delivers nothing by itself."""
    kit = make_kit(plans=plans, redis=redis)
    async with started(kit):
        yield kit


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
    signals = (signal.SIGTERM, signal.SIGINT)

    def ask_to_stop() -> None:
        stop.set()
        release()

    def release() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, ask_to_stop)
    try:
        yield stop
    finally:
        release()


def log_to_stderr() -> None:
    """Have what meterkit logs seen by whoever runs the command."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("meterkit").setLevel(logging.INFO)
    logging.getLogger("meterkit.plans").setLevel(logging.ERROR)  # What `check` is there for.


def tell(command: Callable[[], None]) -> int:
    """Run a command; its exit code, after one readable message where meterkit refused."""
    try:
        command()
    except (MeterkitError, ImportError) as error:
        if isinstance(error, ImportError) and error.name is not None:
            raise  # Not a missing extra, which names its cure.
        prefix = "" if isinstance(error, PlansError) else "meterkit: "
        print_note(f"{prefix}{error}")
        return exit_code(error)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print_note(f"meterkit: the output cannot be written: {os.strerror(error.errno)}")
        _forget_output()
        return REFUSED
    return 0


def _forget_output() -> None:
    """Drop what is left to be written, which Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(error: Exception) -> int:
    """2 where the command was called or set up wrongly, 1 where it was refused or the store is not well."""
    return WRONG_USAGE if isinstance(error, SettingsError | ImportError) else REFUSED
