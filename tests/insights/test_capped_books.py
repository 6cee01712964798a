"""Units over a cap in the audit log, statements, rebuilds and simulations: counted, never billed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.audited_kit import audited, lose_all, rebuild, sqlite_in
from drivers.plans import plans_text
from drivers.statement_parts import statement_parts
from meterkit.catalog import loads

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("capped_books")
CATALOG: Final = loads(PLANS)


async def counted(at: Audited) -> tuple[int, int, int]:
    """Recorded units, of these the overage, and those over the cap."""
    found = (await at.kit.usage("acme"))["meters"]["tokens"]
    return found["recorded"], found["overage"], found["over_cap"]


async def test_a_statement_shows_what_was_over_the_cap_at_no_price(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=CATALOG) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 120)
        at.desk.clock.advance(timedelta(seconds=1))
        await at.kit.record("acme", "tokens", 280)
        at.desk.clock.advance(timedelta(seconds=1))
        await at.kit.correct("acme", {"tokens": 240}, reason="a loop", correction_id="c-1", by="ada")
        rows = [row for row in await at.rows() if row["meter"] == "tokens"]
        assert [(row["quantity"], row["overage"], row["over_cap"]) for row in rows] == [
            (120, 20, 0),
            (280, 30, 250),
            (-240, 0, -240),
        ]
        assert [row["priced"] for row in rows] == [20, 30, 0]
        statement = await at.kit.statement("acme")
        (line,) = (one for one in statement.lines if one.meter == "tokens")
        assert (line.amount_cents, line.counted, line.overage, line.over_cap) == (100, 50, 50, 10)
        assert [event.why for event in line.events] == [
            "100 included, 20 overage",
            "30 overage, 250 over the cap",
            "correction, -240 over the cap: a loop",
        ]
        shown = "".join([part async for part in statement_parts(at.kit, "acme")])
        head, *_, middle, _ = (row.split(",") for row in shown.splitlines())
        assert (middle[head.index("over_cap")], middle[head.index("billed")]) == ("250", "30")


async def test_a_rebuild_bills_nothing_beyond_the_cap(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path), catalog=CATALOG) as at:
        await at.desk.link("acme")
        await at.kit.record("acme", "tokens", 400)
        assert (await at.desk.flush(everything=True)).is_complete
        await at.drainer.drain()
        await lose_all(at)
        await at.kit.customers.link("acme", "cus_acme")
        await at.kit.record("acme", "tokens", 1)
        (done,) = await rebuild(at)
        assert (done.raised, done.audited, done.delivered, done.parked) == (400, 401, 50, 0)
        assert await counted(at) == (401, 50, 250)
        assert await rebuild(at) == []
