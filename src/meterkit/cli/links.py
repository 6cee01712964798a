"""Files of links: a customer and its Stripe customer on each line."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Final

from meterkit.errors import MeterkitError

__all__ = ["read_links"]

COLUMNS: Final = ["customer", "stripe_customer"]


def read_links(path: str) -> list[tuple[str, str]]:
    """The pairs of a CSV file, all read before the first is used; ``-`` reads stdin.

    Raises:
        MeterkitError: the file cannot be read, or a line does not have two columns.
    """
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
        reader = csv.reader(text.splitlines(), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MeterkitError(f"{path} cannot be read: {error}") from error
    if rows and rows[0][1] == COLUMNS:
        del rows[0]
    for line, row in rows:
        if len(row) != len(COLUMNS) or not all(row):
            raise MeterkitError(
                f"{path}:{line}: found {len(row)} columns; allowed are two, customer,stripe_customer"
            )
    return [(row[0], row[1]) for _, row in rows]
