"""The drawing of what a customer costs, by how many there are; read off the tables of docs/scaling.md."""

from __future__ import annotations

import re
from pathlib import Path

from svg import Drawing

PAGE = Path(__file__).parents[1] / "scaling.md"
# The rows that are drawn: their titles there, their titles here, and how a figure becomes one of a customer.
ROWS = {
    "store: bytes a customer": ("in the store, bytes", None),
    "kit.consume of a customer not known yet, us": ("first request, \N{MICRO SIGN}s", None),
    "audit drain, us an entry": ("audit log, \N{MICRO SIGN}s", None),
    "kit.customers.list(), s": ("list of all, \N{MICRO SIGN}s", 1e6),
    "usage --all, s": ("usage of all, \N{MICRO SIGN}s", 1e6),
    "the nightly look at all shards, s": ("nightly look, \N{MICRO SIGN}s", 1e6),
}


def figures() -> tuple[list[int], dict[str, list[float]]]:
    """The numbers of customers, and what each costs, by title; of the store that is one server."""
    text = PAGE.read_text("utf-8")
    head = re.search(r"^\| on one server \| (.*) \|$", text, re.MULTILINE)
    if head is None:
        raise ValueError(f"{PAGE}: found no table headed 'on one server'; make bench writes it")
    sizes = [int(size.replace(",", "")) for size in head[1].split(" | ")]
    table = text[head.start() :].partition("\n\n")[0]
    cells = dict(re.findall(r"^\| ([^|]+?) \| (.*) \|$", table, re.MULTILINE))
    found = {}
    for row, (title, factor) in ROWS.items():
        values = [float(cell.replace(",", "")) for cell in cells[row].split(" | ")]
        found[title] = [
            value if factor is None else factor * value / size
            for value, size in zip(values, sizes, strict=True)
        ]
    return sizes, found


def growth() -> Drawing:
    """What a customer costs, for each number of customers."""
    sizes, found = figures()
    told = "; ".join(
        f"{title}: {', '.join(f'{value:,.0f}' for value in values)}" for title, values in found.items()
    )
    counts = ", ".join(f"{size:,}" for size in sizes)
    drawing = Drawing(
        "growth",
        920,
        356,
        title="What a customer costs, by the number of customers on one server",
        told=f"For {counts} customers. {told}.",
    )
    drawing.text(20, 24, "What each customer costs, on one server with so many of them", bold=True, size=15)
    for nth, (title, values) in enumerate(found.items()):
        left, top = 20 + nth % 3 * 304, 62 + nth // 3 * 152
        drawing.text(left, top, title, size=13.5, bold=True)
        most = max(values)
        for line, (size, value) in enumerate(zip(sizes, values, strict=True)):
            y = top + 12 + line * 28
            drawing.text(left + 74, y + 16, f"{size:,}", size=12, anchor="end", colour="quiet")
            width = max(2.0, 136 * value / most)
            drawing.bar(left + 82, y + 2, width, 20, colour="strong")
            drawing.text(left + 82 + width + 7, y + 17, f"{value:,.0f}", size=12.5)
    return drawing
