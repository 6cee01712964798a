"""The chain of the audit log, and its root on invoices: what docs/audit.md lets a stranger verify."""

from __future__ import annotations

from meterkit.delivery.audit_root import ROOT, ROWS, root_in
from meterkit.insights.audit.chain import Head, Root, link_hash
from meterkit.insights.audit.database import Database
from meterkit.insights.audit.verifying import verify

__all__ = ["ROOT", "ROWS", "Database", "Head", "Root", "link_hash", "root_in", "verify"]
