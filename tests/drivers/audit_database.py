"""The database of the audit log, its chain, and its roots on invoices."""

from __future__ import annotations

from collections.abc import Sequence

from meterkit import MeterKit
from meterkit.decisions.periods import to_ms
from meterkit.delivery.audit_root import ROOT, ROWS, read_root
from meterkit.insights.audit.chain_verifier import verify
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.draining import AuditDrainer, open_drainer
from meterkit.insights.audit.entries import AuditRow, RecordedRoot
from meterkit.insights.audit.hash_chain import ChainHead, link_hash

# What is not its own.
__all__ = [
    "ROOT",
    "ROWS",
    "AuditRow",
    "ChainHead",
    "Database",
    "RecordedRoot",
    "link_hash",
    "read_root",
    "to_ms",
    "verify",
]


def insert_rows(url: str, rows: Sequence[AuditRow]) -> Sequence[AuditRow]:
    return Database(url).insert(rows)


async def drain(kit: MeterKit) -> int:
    """Drain once what has waited long enough, as the kit's settings say; the number of entries left."""
    return await open_drainer(kit.store, kit.settings).drain()


async def drain_all(kit: MeterKit, url: str) -> None:
    assert await AuditDrainer(kit.store, Database(url), least_age_ms=0).drain() == 0
