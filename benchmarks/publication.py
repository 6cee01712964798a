"""Writes all pages with figures from one run, so that they state one date and one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import growth
import nodes
import operator_pages
import report
import simulate
from tables import format_markdown

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """The part of a page from one heading to another, or to the end."""

    page: str
    heading: str
    tables: Callable[[dict], list[Table]]
    end: str = ""

    def replace_in(self, text: str, result: dict) -> str:
        """The page's text with new figures."""
        before, found, rest = text.partition(f"{self.heading}\n")
        if not found or self.end not in rest:
            raise SystemExit(f"{self.page}: found no {self.heading!r} before {self.end or 'the end'!r}")
        when = result["machine"]["when"]
        lines = [self.heading, "", f"By `make bench`, of [this run](benchmarks.md#the-run): {when}."]
        for title, head, rows in self.tables(result):
            lines += ["", *([f"{title}:", ""] if title else []), *format_markdown(head, rows)]
        after = ["", rest[rest.index(self.end) :]] if self.end else [""]
        return before + "\n".join(lines + after)


SECTIONS = (
    Section("scaling.md", "## Growth", growth.tables, end="### What grows"),
    Section("scaling.md", "## Figures", lambda result: [nodes.table(result), nodes.many(result)]),
    Section("simulate.md", "## How long it takes", lambda result: [simulate.table(result)]),
    Section("operator.md", "## How fast it is", lambda result: [operator_pages.table(result)]),
)


def write_pages(result: dict, docs: Path) -> None:
    """Write the page of the benchmarks, and the sections of the other pages."""
    (docs / "benchmarks.md").write_text(report.as_markdown(result))
    for section in SECTIONS:
        page = docs / section.page
        page.write_text(section.replace_in(page.read_text(), result))
