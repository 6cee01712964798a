"""The root of the audit log in the metadata of invoices, whatever fails around it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from drivers.audit_chain import ROOT, ROWS, Database, root_in
from drivers.audited_kit import rows_in, sqlite_in
from drivers.period_ends import HOUR, JUNE, MINUTE, ending, look_at_closes

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.period_ends import Ending

pytestmark = pytest.mark.anyio


def writes(at: Ending) -> int:
    """How often the root was written."""
    return sum(
        asked.method == "POST" and asked.path.startswith("/v1/invoices/in_") for asked in at.stripe.requests
    )


async def test_the_invoice_has_the_root_before_it_is_final(any_store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with ending(any_store_url, audit_url=url) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        assert (await at.look()).confirmed == 1
        (invoice,) = at.invoices()
        (row,) = rows_in(url)
        assert invoice["status"] == "draft"
        assert (invoice["metadata"][ROOT], invoice["metadata"][ROWS]) == (row["hash"], "1")
        # Webhooks, also repeated ones, and later looks leave it as it is.
        await at.kit.record("acme", "requests", 5)
        await at.found.settle()
        await at.found.bring(*at.stripe.webhook_events)
        await at.hourly(JUNE + 15 * MINUTE, 3)
        (later,) = at.invoices()
        assert (later["status"], root_in(later)) == ("paid", root_in(invoice))
        assert writes(at) == 1


async def test_a_database_that_is_away_holds_up_no_invoice(
    any_store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ending(any_store_url, audit_url=f"sqlite:///{tmp_path}/none/audit.db") as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        with caplog.at_level(logging.WARNING, "meterkit.audit"):
            at.go(JUNE + 11 * MINUTE)
            assert (await at.look()).confirmed == 1
        at.go(JUNE + 3 * HOUR)
        (invoice,) = at.invoices()
        assert (invoice["status"], root_in(invoice), at.billed()) == ("paid", None, [1000])
        told = [one.getMessage() for one in caplog.records if one.name == "meterkit.audit"]
        assert len(told) == 1
        assert told[0].startswith("invoices go out without the root of the audit log: the database")


async def test_a_root_that_cannot_be_read_is_logged_once_a_look(
    any_store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ending(any_store_url, audit_url=sqlite_in(tmp_path)) as at:
        await at.kit.record("acme", "requests", 1_010)
        await at.flush()
        at.go(JUNE + 11 * MINUTE)
        asked: list[str] = []

        async def root_of(customer: str) -> tuple[int, str] | None:
            asked.append(customer)
            raise TimeoutError

        assert (await look_at_closes(at.kit, root_of)).confirmed == 1
        assert asked == ["acme"]
        assert "the audit log was not drained in time" in caplog.text
    assert Database(sqlite_in(tmp_path)).root("acme") is None
