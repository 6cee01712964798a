"""Tables as wide as the terminal at most. What does not fit beside each other stands below each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

__all__ = ["fit", "table"]

_GAP: Final = 2
_WORD_MAX: Final = 18
"""Longer ids are cut rather than put a whole table below each other; quantities and dates never are."""
_SENTENCE: Final = re.compile(r"(?=.{41})(\S+ ){4}.*")  # Else it is a path, or a few names.
_SENTENCE_LEAST: Final = 28
_QUANTITY: Final = re.compile(r"-?[0-9,]+(\.[0-9]+)?|unlimited|")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> list[RenderableType]:
    """Rows of texts as a table; wrapped between words, or else as a list, where it would be too wide."""
    cells = [[name, *(row[nth] for row in rows)] for nth, name in enumerate(columns)]
    natural = [max(map(cell_len, column)) for column in cells]
    least = [_least(column) for column in cells]
    widths = fit(natural, least, width)
    if widths is None:
        return _below_each_other(columns, rows)
    found = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _GAP - 1, 0, 0))
    for (name, *texts), column_width in zip(cells, widths, strict=True):
        numeric = all(map(_QUANTITY.fullmatch, texts))
        found.add_column(name, justify="right" if numeric else "left", width=column_width, overflow="fold")
    for row in rows:
        found.add_row(*row)
    return [found]


def _least(column: Sequence[str]) -> int:
    """How wide a column is at least: its longest word, and of what is told in sentences some words a line."""
    words = (word for cell in column for word in cell.split(" "))
    longest = max(
        cell_len(word) if _QUANTITY.fullmatch(word) else min(cell_len(word), _WORD_MAX) for word in words
    )
    return max(longest, _SENTENCE_LEAST) if any(map(_SENTENCE.match, column)) else longest


def fit(natural: Sequence[int], least: Sequence[int], width: int) -> list[int] | None:
    """The widths of columns in a table that is no wider than ``width``, or None where there are none.

    Args:
        natural: what each column needs if nothing in it is wrapped.
        least: what each column needs at least.
        width: for all columns and the gaps between them.
    """
    left = width - _GAP * (len(least) - 1) - sum(least)
    if left < 0:
        return None
    widths = list(least)
    # First those that need little more, so that as few as can be are wrapped.
    for nth in sorted(range(len(least)), key=lambda nth: natural[nth] - least[nth]):
        more = min(natural[nth] - least[nth], left)
        widths[nth] += more
        left -= more
    return widths


def _below_each_other(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[RenderableType]:
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
