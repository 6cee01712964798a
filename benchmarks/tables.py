"""What a report is made of."""

from __future__ import annotations

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]
"""A title, the heads of its columns, its rows."""


def aligned(head: Row, rows: list[Row]) -> list[str]:
    """The lines of a table for a terminal: the first column to the left, figures to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    top = [head[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(head[1:], widths[1:], strict=True))]
    return ["  ".join(line) for line in [top, *lines]]


def format_markdown(head: Row, rows: list[Row]) -> list[str]:
    """The lines of a table for a page."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    top, *others = [f"| {' | '.join(row)} |" for row in cells]
    return [top, f"|---|{'---:|' * (len(head) - 1)}", *others]


def show(table: Table) -> None:
    """Print a table."""
    title, head, rows = table
    print(title, *aligned(head, rows), sep="\n")
