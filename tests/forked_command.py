"""Runs ``python -m meterkit`` in a process that is forked from one that has imported it already.

To start Python and import all of it anew takes most of the time that a command takes.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.context import ForkServerContext
    from pathlib import Path

__all__ = ["forks", "run_forked"]

# What commands import, the rarer ones only once they run, and what programs of the tests do.
IMPORTED_BEFORE: Final = [
    *("meterkit.cli.app", "meterkit.kit", "meterkit.cli.doctor.examination", "meterkit.sync"),
    *("meterkit.delivery.flusher", "meterkit.delivery.stripe_v1", "meterkit.delivery.stripe_stream"),
    *("meterkit.testing", "meterkit.testing.emulator.server", "redis.asyncio", "aiohttp"),
    *("meterkit.redis.admin", "meterkit.redis.cluster_client", "meterkit.stripe.http"),
    *("httpx", "starlette.testclient", "delivering", "reserving"),
]


@cache
def forks() -> ForkServerContext:
    """What makes processes that are forked from that one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_BEFORE)
    return context


def run_forked(
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    streams: tuple[Path, Path, Path],
    *,
    timeout_s: float,
) -> int | None:
    """Run a command to its end; its exit code, None where it did not end in time.

    Args:
        arguments: behind ``meterkit``.
        directory: where it runs.
        environment: all of its variables.
        streams: the files of its standard input, output and errors.
        timeout_s: after that it is aborted.
    """
    process = forks().Process(target=_command, args=(list(arguments), directory, dict(environment), streams))
    process.start()
    process.join(timeout_s)
    code = process.exitcode
    if code is None and process.pid is not None:
        os.kill(process.pid, signal.SIGABRT)
        process.join()
    process.close()
    return code


def _command(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], streams: Sequence[Path]
) -> None:
    """Become ``python -m meterkit``; exits with its code."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    faulthandler.enable()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.path.insert(0, str(directory))
    sys.argv[1:] = arguments
    runpy.run_module("meterkit", run_name="__main__", alter_sys=True)
