"""CSV files of links between customers and Stripe customers."""

from __future__ import annotations

import csv
import sys
from io import StringIO
from pathlib import Path
from typing import Final, NamedTuple

from meterkit.errors import MeterkitError

COLUMNS: Final = ["customer", "stripe_customer"]
_ALLOWED: Final = "allowed are two columns, customer,stripe_customer; no line of the file was linked"


class CsvLink(NamedTuple):
    """A line of a CSV file of links.

    Attributes:
        where: the file and the line number.
    """

    where: str
    customer: str
    stripe_customer: str


def read_links(path: str) -> list[CsvLink]:
    """Read all lines of a CSV file of links; ``-`` reads stdin.

    Raises:
        MeterkitError: the file cannot be read, or a line does not have two non-empty columns.
    """
    name = "stdin" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        where = "" if Path(path).is_absolute() else f"; looked for in {Path.cwd()}"
        raise MeterkitError(f"{name} cannot be read: {error.strerror or error}{where}") from error
    except UnicodeDecodeError as error:
        raise MeterkitError(f"{name} cannot be read: byte {error.start} is not UTF-8") from error
    reader = csv.reader(StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        read = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise MeterkitError(f"{name}:{reader.line_num}: the line is not CSV: {error}") from error
    rows = [(line, row) for line, row in read if any(row)]
    if rows and rows[0][1] == COLUMNS:
        del rows[0]
    for line, row in rows:
        if len(row) != len(COLUMNS):
            count = "1 column" if len(row) == 1 else f"{len(row)} columns"
            raise MeterkitError(f"{name}:{line}: found {count}; {_ALLOWED}")
        if not all(row):
            empty = COLUMNS[row.index("")]
            raise MeterkitError(f"{name}:{line}: the column {empty} is empty; {_ALLOWED}")
    return [CsvLink(f"{name}:{line}", *row) for line, row in rows]
