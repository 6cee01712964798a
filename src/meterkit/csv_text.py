"""CSV (RFC 4180) without formulas, for spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["csv_cell", "csv_text"]

_FORMULA: Final = re.compile(
    r"(?:^|(?<=[;\t\r\n]))(?=[\s\u200b\u2060\ufeff]*[=+\-@＝＋－＠]|[\t\r\n])"  # noqa: RUF001 - as the others
)
"""Starts of a text, and of its cells in a spreadsheet: semicolons part them where commas are for decimals."""


def csv_cell(value: object) -> object:
    """Escape a value for CSV: text that a spreadsheet could read as a formula gets an apostrophe.

    OWASP: https://owasp.org/www-community/attacks/CSV_Injection. Numbers stay numbers, negative ones too.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    return _FORMULA.sub("'", value)


def csv_text(
    columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, head: bool, line_end: str = "\r\n"
) -> str:
    """Rows as CSV (RFC 4180), without formulas.

    Args:
        columns: which values, in which order.
        rows: what to write.
        head: whether the first line names the columns.
        line_end: between rows; a terminal wants a line feed.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator=line_end)
    if head:
        writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_cell(row[name]) for name in columns])
    return written.getvalue()
