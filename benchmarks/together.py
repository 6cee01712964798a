"""Processes that begin at one moment: each waits for a line, and answers with one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self


def say(answer: object) -> None:
    """In such a process: that it is ready, or its answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def begin() -> asyncio.Future[str]:
    """In such a process: done once all may begin."""
    return asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


class Together:
    """One script in several processes, one for each list of arguments.

    Raises:
        RuntimeError: one has ended before it was ready.
    """

    def __init__(self, script: str, arguments: Sequence[Sequence[str]]) -> None:
        self._commands = [[sys.executable, script, *each] for each in arguments]
        self._stack = ExitStack()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._processes = [
                stack.enter_context(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                )
                for command in self._commands
            ]
            for process in self._processes:
                if process.stdout.readline() != '"ready"\n':
                    raise RuntimeError(f"a process of the race ended with {process.wait()} before it began")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self) -> None:
        """Let all begin."""
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()

    def answers(self) -> list[Any]:
        """Wait until all have answered and ended."""
        answers = [json.loads(process.stdout.readline()) for process in self._processes]
        for process in self._processes:
            process.stdin.close()
            process.wait()
        return answers
