"""A statement as CSV, part by part, as the page sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.pages.statement_csv import csv_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meterkit import MeterKit


def statement_parts(kit: MeterKit, customer: str) -> AsyncIterator[str]:
    """The parts of the open period's statement."""
    return csv_of(kit.statement, customer)
