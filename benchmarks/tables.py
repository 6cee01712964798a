"""What a report is made of."""

from __future__ import annotations

Row = tuple[str, ...]
Table = tuple[str, Row, list[Row]]
"""A title, the heads of its columns, its rows."""
