"""Output of commands: tables for people, JSON for programs; notes, logs and progress bars on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from textwrap import indent
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from meterkit.catalog.value_parsers import date_and_time
from meterkit.decisions.periods import iso
from meterkit.safe_text import escape_invisible

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence

    from rich.console import RenderableType
    from rich.progress import TaskID

_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, then the record's own fields by name.

    Where there is an exception, ``exception`` is its traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {
            name: value
            for name, value in vars(record).items()
            if name not in _OF_EVERY_RECORD and name not in fields
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return escape_invisible(json.dumps(fields, ensure_ascii=False, default=str))


class PlainLines(logging.Formatter):
    """The message alone, with its invisible characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return escape_invisible(super().format(record))


def log_as_json() -> None:
    """Write the log of this process and the command's notes to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def is_log_json() -> bool:
    """Whether :func:`log_as_json` was called."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


_GAP: Final = 2
_WORD_MAX: Final = 18
"""Longer ids are cut, so that the table fits; quantities and dates never are."""
_SENTENCE: Final = re.compile(r"(?=.{41})(\S+ ){4}.*")  # Otherwise a path or a few names.
_SENTENCE_LEAST: Final = 28
_QUANTITY: Final = re.compile(r"-?[0-9,]+(\.[0-9]+)?|unlimited|")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> list[RenderableType]:
    """Format rows as a table, wrapped between words, or as a list if it would be too wide."""
    cells = [[name, *(row[nth] for row in rows)] for nth, name in enumerate(columns)]
    least = [_min_column_width(column) for column in cells]
    if sum(least) + _GAP * (len(least) - 1) > width:
        return _format_as_list(columns, rows)
    found = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
    for (name, *texts), min_width in zip(cells, least, strict=True):
        numeric = all(map(_QUANTITY.fullmatch, texts))
        found.add_column(name, justify="right" if numeric else "left", min_width=min_width, overflow="fold")
    for row in rows:
        found.add_row(*row)
    return [found]


def _min_column_width(column: Sequence[str]) -> int:
    """Return the least width of a column: its longest word, or some words of a sentence."""
    words = (word for cell in column for word in cell.split(" "))
    longest = max(
        cell_len(word) if _QUANTITY.fullmatch(word) else min(cell_len(word), _WORD_MAX) for word in words
    )
    return max(longest, _SENTENCE_LEAST) if any(map(_SENTENCE.match, column)) else longest


def _format_as_list(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[RenderableType]:
    found: list[RenderableType] = []
    for nth, row in enumerate(rows):
        if nth:
            found.append("")
        entry = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
        entry.add_column(width=max(map(cell_len, columns)))
        entry.add_column(overflow="fold")
        for name, text in zip(columns, row, strict=True):
            entry.add_row(name, text)
        found.append(entry)
    return found


_logger = logging.getLogger("meterkit.cli")
_FILE_WIDTH: Final = 140
"""Width of prose in a file or pipe, which has no window width."""
_ROW_MAX: Final = 100_000
"""Width of tables there: a row is one line, for grep, awk and cut."""


def stdout_console() -> Console:
    """A console that prints texts as they are, whatever brackets they hold."""
    console = Console(markup=False, emoji=False, highlight=False)
    if _is_width_free():
        console.width = _FILE_WIDTH
    return console


def _is_width_free() -> bool:
    """Whether stdout is a file or pipe, and COLUMNS sets no width."""
    # Rich takes FORCE_COLOR, which CI sets, for a terminal of 80 columns.
    return not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print a table; columns of quantities stand to the right.

    Args:
        columns: their headings.
        rows: a cell for each column.
        empty: the text to print if there are no rows.
    """
    console = stdout_console()
    filled = [list(map(cell_text, row)) for row in rows]
    if not filled:
        print_note(empty)
        return
    if sys.stdout.isatty():
        for part in table(columns, filled, width=console.width):
            console.print(part)
        return
    if _is_width_free():
        console.width = _ROW_MAX
    with console.capture() as printed:
        for part in table(columns, filled, width=console.width):
            console.print(part)
    # Rich fills the last column with blanks.
    typer.echo("\n".join(line.rstrip() for line in printed.get().split("\n")), nl=False)


def cell_text(value: object) -> str:
    """Format a cell: instants in UTC, quantities with commas, nothing for None."""
    if isinstance(value, datetime):
        return date_and_time(value)
    return f"{value:,}" if isinstance(value, int) else "" if value is None else escape_invisible(str(value))


def print_records(
    records: Sequence[Mapping[str, object]], *, rare: Collection[str] = (), empty: str = ""
) -> None:
    """Print records of the same keys as a table; columns that are ``rare`` only where they say something."""
    columns = [
        name
        for name in (records[0] if records else ())
        if name not in rare or any(record[name] for record in records)
    ]
    print_table(columns, [[record[name] for name in columns] for record in records], empty=empty)


def pick(record: object, *names: str) -> dict[str, object]:
    """Make cells of attributes of a record, by their names."""
    return {name: getattr(record, name) for name in names}


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a text with its invisible characters escaped. All commands print by this, or by tables."""
    typer.echo(escape_invisible(text), nl=nl, err=err)


def print_json(value: object) -> None:
    """Print a value as indented JSON; instants as ISO 8601 in UTC with Z."""
    echo(to_json(value))


class JsonArray:
    """Prints an indented JSON array item by item: there may be more items than fit into memory."""

    def __init__(self) -> None:
        self._is_empty = True

    def add(self, value: object) -> None:
        """Print the next item."""
        echo(("[\n" if self._is_empty else ",\n") + indent(to_json(value), "  "), nl=False)
        self._is_empty = False

    def end(self) -> None:
        """Print the end."""
        echo("[]" if self._is_empty else "\n]")


def to_json(value: object) -> str:
    """A value as indented JSON; instants as ISO 8601 in UTC with Z."""
    # Escaped here: `indent` takes U+2028 for the end of a line.
    return escape_invisible(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_note(text: str, *, level: int = logging.INFO) -> None:
    """Tell a person something that is not the result; in the log, where that is written as JSON."""
    if is_log_json():
        _logger.log(level, "%s", text)
    else:
        echo(text, err=True)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


AFTER_S = 1.0
"""A command that takes less time shows no progress."""


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
        """Update the progress of a step; ``total`` is None if unknown."""
        if doing not in self._tasks:
            self._tasks[doing] = self._bars.add_task(doing, total=None, count="")
        count = f"{done:,}" if total is None else f"{done:,}/{total:,}"
        self._bars.update(self._tasks[doing], completed=done, total=total, count=count if done else "")

    def of(self, doing: str) -> Callable[[int, int], None]:
        """Begin a step and return the function that updates its progress."""
        self.update(doing)
        return lambda done, total: self.update(doing, done, total)

    def show(self) -> None:
        """Start drawing the bars."""
        with self._lock:
            if not self._is_over:
                self._bars.start()

    def end(self) -> None:
        """Remove the bars."""
        with self._lock:
            self._is_over = True
            self._bars.stop()


@contextmanager
def shown_steps() -> Generator[Steps]:
    """Show the progress of a command if stderr is a terminal and the log is not JSON."""
    console = Console(file=sys.stderr, markup=False, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    # Redirect stdout only if it is a terminal, not a file or pipe.
    bars = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    steps = Steps(bars)
    timer = None
    # Rich believes FORCE_COLOR that this is a terminal: bars would fill a build's log.
    if sys.stderr.isatty() and console.is_terminal and not (console.is_dumb_terminal or is_log_json()):
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
