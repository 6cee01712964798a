"""Progress bars on stderr, for a person at a terminal, of what takes longer than a second."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from meterkit.cli.output import logs_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.progress import TaskID

AFTER_S = 1.0
"""How long a command runs before it shows anything."""


class Steps:
    """The steps of a command, each with a bar: how many of how many are done.

    Args:
        bars: rich's; not started yet.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._lock = Lock()
        self._is_over = False

    def update(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Say how far a step is; ``total`` is None where that is not known."""
        if doing not in self._tasks:
            self._tasks[doing] = self._bars.add_task(doing, total=None, count="")
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        self._bars.update(self._tasks[doing], completed=done, total=total, count=count if done else "")

    def of(self, doing: str) -> Callable[[int, int], None]:
        """Begin a step, and give what is called with how far it is."""
        self.update(doing)
        return lambda done, total: self.update(doing, done, total)

    def show(self) -> None:
        """Draw the bars from now on."""
        with self._lock:
            if not self._is_over:
                self._bars.start()

    def end(self) -> None:
        """Take the bars away."""
        with self._lock:
            self._is_over = True
            self._bars.stop()


@contextmanager
def shown_steps() -> Generator[Steps]:
    """Show the steps of a command; nothing where stderr is no terminal, or the log is JSON."""
    console = Console(file=sys.stderr, markup=False, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    # A redirected stdout would go to this console: not where that is a file or a pipe.
    bars = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    steps = Steps(bars)
    timer = None
    # Rich takes what FORCE_COLOR says for a terminal: bars would fill the log of a build.
    if sys.stderr.isatty() and console.is_terminal and not (console.is_dumb_terminal or logs_as_json()):
        timer = Timer(AFTER_S, steps.show)
        timer.daemon = True
        timer.start()
    try:
        yield steps
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
            steps.end()
