"""The database of the audit log, its chain, and its roots on invoices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.periods import to_ms
from meterkit.delivery.audit_root import ROOT, ROWS, read_root
from meterkit.insights.audit.chain import Head, Root, link_hash
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import Drainer, drainer_of
from meterkit.insights.audit.entries import Row
from meterkit.insights.audit.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit import MeterKit

# What is not its own.
__all__ = ["ROOT", "ROWS", "Database", "Head", "Root", "Row", "link_hash", "read_root", "to_ms", "verify"]


def insert_rows(url: str, rows: Sequence[Row]) -> Sequence[Row]:
    """Insert rows; those that were new."""
    return Database(url).insert(rows)


async def drain(kit: MeterKit) -> int:
    """Drain once what has waited long enough, as the kit's settings say; the number of entries left."""
    return await drainer_of(kit.store, kit.settings).drain()


async def drain_all(kit: MeterKit, url: str) -> None:
    assert await Drainer(kit.store, Database(url), least_age_ms=0).drain() == 0
