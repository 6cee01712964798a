"""What the demonstration shows while it runs: a bar and colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from meterkit.cli.output import stdout_console

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Screen"]


class Screen:
    """Tells a person what is happening."""

    def __init__(self) -> None:
        self._console = stdout_console()

    def say(self, text: str) -> None:
        """A line about what happens next."""
        self._console.print(text)

    def headline(self, text: str) -> None:
        """A line that a part begins with."""
        self._console.print(f"\n{text}", style="bold")

    def verdict(self, text: str, *, good: bool) -> None:
        """The line that it all comes to."""
        self._console.print(f"\n{text}", style="bold green" if good else "bold red")

    @contextmanager
    def progress(self, what: str, total: int) -> Generator[Callable[[], None]]:
        """Yield what is to be called after each of ``total`` steps."""
        if not self._console.is_terminal:
            done = 0

            def tell() -> None:
                nonlocal done
                done += 1
                if done * 4 // total != (done - 1) * 4 // total:
                    self._console.print(f"{what}: {done} of {total}")

            yield tell
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
