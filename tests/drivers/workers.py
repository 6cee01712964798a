"""Kits in processes of their own, told over a pipe what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from drivers.forked_worker import fork_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.forked_worker import ForkedWorker

PROGRAM: Final = Path(__file__).with_name("worker_process.py")


class Worker:
    """A process with a kit; see ``worker_process.py`` for what it can do."""

    def __init__(self, process: ForkedWorker) -> None:
        self.process = process

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something; its answer. EOFError where it has died of it."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await self.process.stdin.drain()
        line = await self.process.stdout.readline()
        if not line:
            raise EOFError(f"the worker ended with {await self.process.wait()}")
        return json.loads(line)


@asynccontextmanager
async def workers(count: int, **options: Any) -> AsyncGenerator[list[Worker]]:
    """Start processes, connected and ready; ``options`` are those of ``worker_process.py``."""
    started = await asyncio.gather(*(start(options) for _ in range(count)))
    try:
        yield started
    finally:
        await asyncio.gather(*(_end(worker) for worker in started))


async def start(options: dict[str, Any], program: str | Path = PROGRAM) -> Worker:
    """Start one process; connected and ready."""
    worker = Worker(await fork_worker(str(program), json.dumps(options)))
    assert await worker.ask("nothing") == "ready"
    return worker


async def obey(commands: object) -> None:
    """What such a process does: the methods that it is asked for, until nobody asks any more."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(commands, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def _end(worker: Worker) -> None:
    process = worker.process
    process.stdin.close()
    try:
        async with asyncio.timeout(240):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
