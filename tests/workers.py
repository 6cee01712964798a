"""Kits in processes of their own, told over a pipe what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PROGRAM: Final = Path(__file__).with_name("worker_process.py")


class Worker:
    """A process with a kit; see ``worker_process.py`` for what it can do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it do something; its answer. EOFError where it has died of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    worker = Worker(process)
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
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
