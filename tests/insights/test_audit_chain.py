"""The hash chain and the journal of deliveries, in SQLite and PostgreSQL."""
# Internals: the format of the chain, and steps at which a process may be killed.

from __future__ import annotations

from asyncio import to_thread
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy import create_engine, event, text

from drivers.audit_database import Row, insert_rows
from drivers.audited_kit import row_of, rows_in, sqlite_in
from meterkit.insights.audit import chaining, verifying
from meterkit.insights.audit.calls import AuditDatabase
from meterkit.insights.audit.chain import Root
from meterkit.insights.audit.database import DELIVERIES, Database
from meterkit.insights.audit.verifying import verify
from meterkit.outbox.journal import JournalRow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from meterkit.insights.audit.verifying import Verified

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Given:
    """The same roots for each customer."""

    roots: Sequence[Root]

    async def of(self, customer: str) -> Sequence[Root]:
        return self.roots if customer else ()

    async def linked(self) -> AsyncGenerator[str]:
        for customer in ("acme", "erased") if self.roots else ():
            yield customer


async def verified(url: str, customer: str | None = None, *roots: Root) -> list[Verified]:
    return [one async for one in verify(Database(url), customer, Given(roots))]


async def faults(url: str) -> list[tuple[str, int, str | None]]:
    return [(one.customer, one.place, one.problem) for one in await verified(url)]


async def test_rows_are_chained_by_customer(audit_url: str) -> None:
    database = Database(audit_url)
    database.insert([row_of(1), row_of(2, "zeta"), row_of(3), row_of(3), row_of(1)])
    database.insert([row_of(3), row_of(4, details='{"reason": "é"}')])
    found = {one["event"]: one for one in rows_in(audit_url)}
    assert [found[f"0/p/{nth}"]["place"] for nth in (1, 2, 3, 4)] == [1, 1, 2, 3]
    assert database.root("acme") == (3, found["0/p/4"]["hash"])
    assert await faults(audit_url) == [("acme", 0, None), ("zeta", 0, None)]
    (one,) = await verified(audit_url, "acme", Root("in_1", 2, found["0/p/3"]["hash"]))
    assert (one.rows, one.roots, one.is_right) == (3, 1, True)
    (one,) = await verified(audit_url, "acme", Root("in_1", 2, "1:other"))
    assert (one.place, one.problem) == (2, "root")
    assert (await verified(audit_url, "nobody"))[0].is_right
    found_by_invoices = [
        (one.customer, one.words) for one in await verified(audit_url, None, Root("in_1", 4, "1:x"))
    ]
    assert found_by_invoices[-1] == ("erased", "rows 1 to 4 are missing, by invoice in_1")


def run(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


TAMPERED: Final = {
    "changed": ("UPDATE meterkit_audit SET quantity = 9 WHERE place = 3", 3, "changed"),
    "deleted": ("DELETE FROM meterkit_audit WHERE place = 2", 2, "missing"),
    "tail deleted": ("DELETE FROM meterkit_audit WHERE place > 5", 6, "missing"),
    "head deleted": ("DELETE FROM meterkit_audit_heads", 9, "head"),
    "head set back": ("UPDATE meterkit_audit_heads SET place = 8", 9, "inserted"),
    "inserted without a place": (
        "INSERT INTO meterkit_audit SELECT COPIED FROM meterkit_audit WHERE place = 1",
        0,
        "unchained",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_tampering_is_found(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaining, "_PAGE", 3)
    url = sqlite_in(tmp_path)
    insert_rows(url, [row_of(nth, details="why") for nth in range(9)])
    statement, place, problem = TAMPERED[how]
    columns = ", ".join(Row._fields[:13])
    statement = statement.replace("meterkit_audit SELECT", f"meterkit_audit ({columns}) SELECT")
    run(url, statement.replace("COPIED", columns.replace("event", "'made'", 1)))
    assert (await faults(url))[0] == ("acme", place, problem)


async def test_rows_that_come_while_it_verifies_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite_in(tmp_path)
    insert_rows(url, [row_of(nth) for nth in range(5)])
    heads = chaining.head_of
    asked: list[str] = []

    def head_of(*args: Any) -> Any:
        found = heads(*args)
        if not asked:
            asked.append("once")
            insert_rows(url, [row_of(7)])
        return found

    monkeypatch.setattr(chaining, "head_of", head_of)
    monkeypatch.setattr(verifying, "head_of", heads)
    (one,) = await verified(url, "acme")
    assert (one.rows, one.is_right) == (5, True)


@pytest.mark.parametrize("step", ["_known", "_put_heads"])
async def test_a_kill_between_two_steps_leaves_nothing_behind(
    audit_url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_rows(audit_url, [row_of(1)])

    class Killed(BaseException):
        """Ends the transaction as the end of the connection does."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(chaining, step, killed)
        with pytest.raises(Killed):
            insert_rows(audit_url, [row_of(2)])
    insert_rows(audit_url, [row_of(2), row_of(3)])
    (one,) = await verified(audit_url)
    assert (one.rows, one.is_right) == (3, True)


ROW: Final = JournalRow(
    identifier="intent-1",
    customer="acme",
    event_name="api_requests",
    stripe_customer="cus_acme",
    minute_s=1_939_000_020,
    value=10**15 - 1,
    delivered_at_ms=1_939_000_030_000,
)


async def test_a_row_is_kept_once_and_found_by_its_key(audit_url: str) -> None:
    journal = AuditDatabase(audit_url)
    assert await journal.begun_ms() is None
    back = ROW._replace(identifier="intent-2", value=-5, delivered_at_ms=ROW.delivered_at_ms + 1)
    await journal.write([ROW])
    await journal.write([back, ROW._replace(value=1)])
    assert await journal.read("acme", "api_requests", ROW.delivered_at_ms) == [ROW, back]
    assert await journal.read("acme", "api_requests", back.delivered_at_ms) == [back]
    assert await journal.read("acme", "ai_tokens", 0) == []
    assert await journal.begun_ms() == ROW.delivered_at_ms


async def test_rows_of_two_who_make_the_journal_at_once_are_kept(audit_url: str) -> None:
    journal, other = AuditDatabase(audit_url), Database(audit_url)
    others = ROW._replace(identifier="intent-2")

    def made_by_another(*_: object, **__: object) -> None:
        """Between the look whether the table is there and its making."""
        other.insert_deliveries([others])

    event.listen(DELIVERIES, "before_create", made_by_another, once=True)
    await journal.write([ROW])
    rows = await journal.read("acme", "api_requests", 0)
    assert {row.identifier for row in rows} == {"intent-1", "intent-2"}


async def test_rows_from_before_a_customer_was_deleted_are_not_its_own(audit_url: str) -> None:
    journal, database = AuditDatabase(audit_url), Database(audit_url)
    await journal.write([ROW])
    deleted = Row("0/1", "", "deleted", "acme", None, ROW.delivered_at_ms + 1)
    await to_thread(database.insert, [deleted])
    assert await journal.read("acme", "api_requests", 0) == []
