"""The statement of a period with an invoice item for late usage: no false difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.audit_database import drain_all
from drivers.audited_kit import sqlite_in
from drivers.priced_shop import renewed, sell
from drivers.shop import HALF, shop
from drivers.switched_shop import CATALOG, begin, switch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_i13_a_statement_explains_the_item_of_late_usage(store_url: str, tmp_path: Path) -> None:
    url = sqlite_in(tmp_path)
    async with shop(store_url, catalog=CATALOG, selling=sell, audit_url=url) as at:
        await begin(at)
        await at.kit.record("acme", "words", 26)
        await switch(at, "seven")
        await at.kit.subscriptions.sync("acme")
        await at.kit.record("acme", "words", 5)
        await at.kit.flush(everything=True)
        await renewed(at)
        await drain_all(at.kit, url)
        found = await at.kit.statement("acme", period=HALF)
        usage = [line for line in found.lines if line.kind == "usage" and line.quantity]
        (item,) = [line for line in usage if line.late_since is not None]
        (line,) = [line for line in usage if line.late_since is None]
        assert (item.quantity, item.amount_cents, item.counted) == (26, 104, 26)
        assert (line.quantity, line.amount_cents, line.counted) == (5, 35, 31)
        assert line.note == f"26 of its units are on {item.id}"
        assert item.note == "late usage of the period from 2031-06-01, at the price it was recorded at"
        assert "difference" not in {line.kind for line in found.lines}
