"""Runs a command against the store, and tells what went wrong in one message."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import meterkit
from meterkit.cli.output import print_note
from meterkit.errors import MeterkitError, PlansError, SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

__all__ = ["exit_code", "log_to_stderr", "open_kit", "stop_signal", "tell"]

REFUSED = 1
WRONG_USAGE = 2


@asynccontextmanager
async def open_kit(*, plans: str | None, redis: str | None) -> AsyncGenerator[meterkit.MeterKit]:
    """A started kit that delivers nothing by itself."""
    log_to_stderr()
    async with meterkit.MeterKit(plans, redis_url=redis, flush=False) as kit:
        if kit.store.address.kind == "memory":
            print_note("memory:// lives in this process only: what an app has counted is not in it")
        yield kit


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
    return 0


def exit_code(error: Exception) -> int:
    """2 where the command was called or set up wrongly, 1 where it was refused or the store is not well."""
    return WRONG_USAGE if isinstance(error, SettingsError | ImportError) else REFUSED
