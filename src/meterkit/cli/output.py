"""What commands print: tables for people, JSON for programs; notes go to stderr."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console

from meterkit.cli.json_lines import logs_as_json
from meterkit.cli.table import table
from meterkit.decisions.periods import iso

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = [
    "date_and_time",
    "print_json",
    "print_note",
    "print_records",
    "print_table",
    "span",
    "stdout_console",
    "to_json",
]

_logger = logging.getLogger("meterkit.cli")
_FILE_WIDTH: Final = 140


def stdout_console() -> Console:
    """A console that prints texts as they are, whatever brackets they hold."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = _FILE_WIDTH  # Nobody has to look at it through a window.
    return console


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print a table; columns of quantities stand to the right.

    Args:
        columns: their headings.
        rows: a cell for each column.
        empty: what is told where there are no rows.
    """
    console = stdout_console()
    filled = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    if not filled:
        print_note(empty)
        return
    for part in table(columns, filled, width=console.width):
        console.print(part)


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


def units(quantities: Iterable[int]) -> str:
    """What quantities of intents add up to: what is below 0 takes units back, and is told apart."""
    all_of_them = list(quantities)
    given = sum(quantity for quantity in all_of_them if quantity > 0)
    back = -sum(quantity for quantity in all_of_them if quantity < 0)
    parts = [f"{given:,}"] * (given > 0) + [f"{back:,} that take units back"] * (back > 0)
    return " and ".join(parts)


def print_json(value: object) -> None:
    """Print a value as indented JSON; instants as ISO 8601 in UTC with Z."""
    typer.echo(to_json(value))


def to_json(value: object) -> str:
    """A value as indented JSON; instants as ISO 8601 in UTC with Z."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def print_note(text: str, *, level: int = logging.INFO) -> None:
    """Tell a person something that is not the result; in the log, where that is written as JSON."""
    if logs_as_json():
        _logger.log(level, "%s", text)
    else:
        typer.echo(text, err=True)


def date_and_time(moment: datetime) -> str:
    """An instant in a table: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(span_ms: int) -> str:
    """A span of time in its largest unit of which it has two."""
    seconds = span_ms // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    raise TypeError(f"{type(value).__name__} has no JSON")
