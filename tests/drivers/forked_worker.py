"""Runs a program of the tests in a process that is forked from one that has imported its modules already.

To start Python and import all of it anew takes most of the CPU time of a process that answers a few commands.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

from drivers.forked_command import forks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess


class ForkedWorker:
    """A forked process with pipes to its standard input and output, as of :mod:`asyncio.subprocess`."""

    def __init__(
        self, process: ForkServerProcess, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader
    ) -> None:
        self.stdin, self.stdout = stdin, stdout
        self._process = process
        self._lock = Lock()

    @property
    def pid(self) -> int:
        """Its number."""
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait until it has ended, and close the pipes; its exit code."""
        await asyncio.to_thread(self._join)
        self.stdin.close()
        # What it has written is read before its pipe is closed; others may be reading it.
        while not self.stdout.at_eof():
            with suppress(RuntimeError):
                await self.stdout.read(65_536)
            await asyncio.sleep(0)
        code = self._process.exitcode
        assert code is not None
        return code

    def _join(self) -> None:
        with self._lock:
            self._process.join()


async def fork_worker(program: str, *arguments: str) -> ForkedWorker:
    """Start the Python program of a path."""
    its_stdin, ours_in = forks().Pipe(duplex=False)
    ours_out, its_stdout = forks().Pipe(duplex=False)
    process = forks().Process(
        target=_become,
        args=([program, *arguments], os.getcwd(), dict(os.environ), its_stdin, its_stdout),  # noqa: PTH109
    )
    process.start()
    its_stdin.close()
    its_stdout.close()
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(_taken(ours_out), "rb", buffering=0)
    )
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()),
        os.fdopen(_taken(ours_in), "wb", buffering=0),
    )
    return ForkedWorker(process, asyncio.StreamWriter(transport, protocol, None, loop), reader)


def _taken(pipe: Connection) -> int:
    """The end of a pipe, which its connection no longer closes."""
    end = os.dup(pipe.fileno())
    pipe.close()
    return end


def _become(
    words: list[str], directory: str, environment: Mapping[str, str], stdin: Connection, stdout: Connection
) -> None:
    """Be the program; exits with its code."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for fd, pipe in enumerate((stdin, stdout)):
        os.dup2(pipe.fileno(), fd)
        pipe.close()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.argv[:] = words
    runpy.run_path(words[0], run_name="__main__")
