"""Kits in processes of their own, told over a pipe what to do.

They are forked from a process that has imported their modules already: to start Python and import all of it
anew takes most of the CPU time of a process that answers a few commands.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from threading import Lock
from typing import Any, Final, TypeAlias

import anyio

from drivers.forked_command import forks
from drivers.worker_process import Serving

Program: TypeAlias = "Callable[[dict[str, Any]], AbstractAsyncContextManager[object]]"
"""Makes of options an object, whose methods the process is asked for."""
_PATIENCE_S: Final = 240.0


class Forked:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process, self._lock = process, Lock()
        assert process.pid is not None
        self.pid, self.kill = process.pid, process.kill

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    async def wait(self) -> int:
        await asyncio.to_thread(self._join)
        code = self._process.exitcode
        assert code is not None
        return code

    def _join(self) -> None:
        with self._lock:
            self._process.join()


class Worker:
    """A process with a kit; its program says what it can do."""

    def __init__(self, process: ForkServerProcess, pipe: Connection) -> None:
        self.process, self._pipe = Forked(process), pipe

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something; its answer. EOFError where it has died of it."""
        with suppress(ConnectionError):
            self._pipe.send_bytes(json.dumps({"do": do, **arguments}).encode())
        await anyio.wait_readable(self._pipe)
        try:
            return json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise EOFError(f"the worker ended with {await self.process.wait()}") from None

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """Ask for nothing any more, and wait until it has ended."""
        self._pipe.close()
        with anyio.move_on_after(_PATIENCE_S):
            await self.process.wait()
        await self.kill()


async def start(options: dict[str, Any], program: Program) -> Worker:
    ours, its = forks().Pipe()
    process = forks().Process(target=_be, args=(program, options, dict(os.environ), its))
    process.start()
    its.close()
    worker = Worker(process, ours)
    assert await worker.ask("") == "ready"
    return worker


@asynccontextmanager
async def started(
    count: int, program: Program, options: dict[str, Any], *, kill: bool = False
) -> AsyncGenerator[list[Worker]]:
    """Start processes; at the end they are killed, or end by themselves."""
    found = await asyncio.gather(*(start(options, program) for _ in range(count)))
    try:
        yield found
    finally:
        for worker in found if kill else ():
            worker.process.kill()
        await asyncio.gather(*(worker.end() for worker in found))


def workers(count: int, **options: Any) -> AbstractAsyncContextManager[list[Worker]]:
    """Start processes that consume, serve requests and deliver."""
    return started(count, Serving, options)


def _be(program: Program, options: dict[str, Any], environment: Mapping[str, str], pipe: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    asyncio.run(_obey(program, options, pipe))


async def _obey(program: Program, options: dict[str, Any], pipe: Connection) -> None:
    async with program(options) as commands:
        with suppress(EOFError):
            while command := json.loads(await asyncio.to_thread(pipe.recv_bytes)):
                do = command.pop("do")
                answer = await getattr(commands, do)(**command) if do else "ready"
                pipe.send_bytes(json.dumps(answer).encode())
