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
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess
    from pathlib import Path

# What commands import, the rarer ones only once they run, and what programs of the tests do.
IMPORTED_BEFORE: Final = [
    *("meterkit.cli.app", "meterkit.kit", "meterkit.health.examination", "meterkit.sync"),
    *("meterkit.delivery.flusher", "meterkit.delivery.stripe_v1", "meterkit.delivery.stripe_stream"),
    *("meterkit.testing", "meterkit.testing.emulator.server", "redis.asyncio", "aiohttp"),
    *("meterkit.redis.admin", "meterkit.redis.cluster_client", "meterkit.stripe.http"),
    *("httpx", "starlette.testclient", "drivers.delivery", "drivers.reservations"),
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


class RunningCommand:
    """A command that runs beside the test, with pipes from its standard output and errors.

    Its methods are those of :class:`subprocess.Popen`.
    """

    def __init__(self, process: ForkServerProcess, stdout: IO[str], stderr: IO[str]) -> None:
        self.stdout, self.stderr = stdout, stderr
        self._process = process

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends; its exit code. Raises TimeoutError."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise TimeoutError(f"the command has not ended within {timeout_s:.0f} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def close(self) -> None:
        """Kill it if it runs, and close its pipes."""
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self.stdout.close()
        self.stderr.close()


def fork_command(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> RunningCommand:
    """Start a command; the arguments are those of :func:`run_forked`."""
    pipes = [forks().Pipe(duplex=False) for _ in range(2)]
    ends = [its for _, its in pipes]
    process = forks().Process(
        target=_command_with_pipes, args=(list(arguments), directory, dict(environment), ends)
    )
    process.start()
    ours = list[IO[str]]()
    for mine, its in pipes:
        its.close()
        ours.append(os.fdopen(os.dup(mine.fileno()), encoding="utf-8"))
        mine.close()
    return RunningCommand(process, *ours)


def _command_with_pipes(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], pipes: Sequence[Connection]
) -> None:
    """Become ``python -m meterkit``, which reads nothing and writes to the pipes."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for fd, pipe in enumerate(pipes, start=1):
        os.dup2(pipe.fileno(), fd)
        pipe.close()
    _become(arguments, directory, environment)


def _command(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], streams: Sequence[Path]
) -> None:
    """Become ``python -m meterkit``, with files as its streams."""
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    _become(arguments, directory, environment)


def _become(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
    """Be the command; exits with its code."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.path.insert(0, str(directory))
    sys.argv[1:] = arguments
    runpy.run_module("meterkit", run_name="__main__", alter_sys=True)
