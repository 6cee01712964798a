"""Processes that are forked from one that has imported meterkit already: commands, and workers that die.

To start Python and import all of it anew takes most of the time that a command takes.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, Any, Final

# What commands import, the rarer ones only once they run, and what programs of the tests do.
IMPORTED_BEFORE: Final = [
    *("meterkit.cli.app", "meterkit.kit", "meterkit.health.check_runner", "meterkit.sync"),
    *("meterkit.delivery.flusher", "meterkit.delivery.stripe_v1", "meterkit.delivery.stripe_stream"),
    *("meterkit.testing", "stripe_emulator.server", "redis.asyncio", "aiohttp"),
    *("meterkit.redis.admin", "meterkit.stripe.http"),
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
    streams: Sequence[Path],
    *,
    timeout_s: float,
) -> int | None:
    """Run ``meterkit`` to its end; its exit code, None where it did not end in time.

    ``streams`` are the files of its standard input, output and errors.
    """
    process = _start(arguments, directory, environment, streams)
    process.join(timeout_s)
    code = process.exitcode
    if code is None and process.pid is not None:
        os.kill(process.pid, signal.SIGABRT)
        process.join()
    process.close()
    return code


def _start(*command: Any) -> ForkServerProcess:
    process = forks().Process(target=_command, args=command)
    process.start()
    return process


class RunningCommand:
    """A command that runs beside the test, with pipes from its standard output and errors.

    Its methods are those of :class:`subprocess.Popen`.
    """

    def __init__(self, process: ForkServerProcess, stdout: IO[str], stderr: IO[str]) -> None:
        self.stdout, self.stderr = stdout, stderr
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends; its exit code. Raises TimeoutError."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise TimeoutError(f"the command has not ended within {timeout_s:.0f} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Kill it if it runs, and close its pipes."""
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self.stdout.close()
        self.stderr.close()


def fork_command(arguments: Sequence[str], directory: Path, environment: Mapping[str, str]) -> RunningCommand:
    """Start a command that reads nothing."""
    with TemporaryDirectory() as folder:
        ends = [Path(folder) / name for name in ("stdout", "stderr")]
        for end in ends:
            os.mkfifo(end)
        process = _start(arguments, directory, environment, (Path(os.devnull), *ends))
        return RunningCommand(process, *(end.open(encoding="utf-8") for end in ends))


def _command(
    arguments: Sequence[str], directory: Path, environment: Mapping[str, str], streams: Sequence[Path]
) -> None:
    """Become ``python -m meterkit``; exits with its code."""
    for fd, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.enable()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.path.insert(0, str(directory))
    sys.argv[1:] = arguments
    runpy.run_module("meterkit", run_name="__main__", alter_sys=True)


# Without what Python looks for when it starts: most of the time that is left.
_PROGRAM: Final = """\
#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    told = {{"pid": os.getpid(), "arguments": sys.argv[1:]}}
    told |= {{"at": os.getcwd(), "environment": dict(os.environ)}}
    there.sendall(json.dumps(told).encode() + b"\\n")
    code = int(there.makefile().readline())
sys.exit(code)
"""


@contextmanager
def forked_program(directory: Path, *, timeout_s: float) -> Generator[Path]:
    """Yield a folder, below ``directory``, with the program; its commands end within the timeout."""
    folder = directory / "bin"
    folder.mkdir()
    address = folder / "socket"
    program = folder / "meterkit"
    program.write_text(_PROGRAM.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            told = json.loads(self.rfile.readline())
            streams = [Path(f"/proc/{told['pid']}/fd/{fd}") for fd in range(3)]
            at, environment = Path(told["at"]), told["environment"]
            code = run_forked(told["arguments"], at, environment, streams, timeout_s=timeout_s)
            self.wfile.write(b"%d\n" % (1 if code is None else code))

    # With threads: one command may read what another one writes.
    with ThreadingUnixStreamServer(str(address), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield folder
        finally:
            server.shutdown()


_DURING_S: Final = 0.002


def die(by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(os.getpid(), by)


def die_at(
    owner: Any, name: str, when: str = "after", *, nth: int = 1, by: signal.Signals = signal.SIGKILL
) -> None:
    """Have this process die ``before``, ``during`` or ``after`` the nth call of an asynchronous function.

    During: what the step asks has left, and the answer is not looked at.
    """
    step, calls = getattr(owner, name), count(1)

    async def dying(*args: Any, **options: Any) -> Any:
        now = when if next(calls) == nth else ""
        if now == "before":
            die(by)
        work = asyncio.ensure_future(step(*args, **options))
        if now == "during":
            await asyncio.wait({work}, timeout=_DURING_S)
            die(by)
        done = await work
        if now == "after":
            die(by)
        return done

    setattr(owner, name, dying)
