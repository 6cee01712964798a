"""A process that the demonstration starts, and takes along when it ends."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Child", "run_child"]

_START_S: Final = 60.0
_STOP_S: Final = 8.0
_LOG_LINES: Final = 8


class Child:
    """A running module.

    Attributes:
        name: what a person calls it.
    """

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def first_line(self) -> str:
        """What it says when it is ready.

        Raises:
            MeterkitError: it ended, or said nothing for a minute.
        """
        stdout = self._process.stdout
        line = b""
        if stdout is not None:
            with suppress(TimeoutError):
                line = await asyncio.wait_for(stdout.readline(), _START_S)
        if not line:
            raise self.failure("did not start")
        return line.decode().strip()

    async def stop(self) -> None:
        """Let it finish and end; kill it where it does not. Repeatable."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def failure(self, what: str) -> MeterkitError:
        """An error with the last lines of what the process said."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        return MeterkitError(f"{self.name} {what}; it said:{said}")


@asynccontextmanager
async def run_child(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    descriptors: Sequence[int] = (),
) -> AsyncGenerator[Child]:
    """Run ``python -m`` with these arguments until the block is left, or this process ends.

    It is in a session of its own, so that Ctrl-C reaches this process alone, which stops things in order.
    """
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meterkit.cli.demo.leash", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            pass_fds=descriptors,
            start_new_session=True,
        )
    child = Child(name, process, log)
    try:
        yield child
    finally:
        await asyncio.shield(child.stop())
