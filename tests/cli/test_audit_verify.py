"""``meterkit audit verify --stripe``: the audit log against the roots in invoices."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.audit_database import Row, insert_rows
from drivers.audited_kit import rows_in
from drivers.command_line import InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.period_ends import JULY, JUNE, MAY, PLANS, paying

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from drivers.command_line import Done
    from drivers.period_ends import Ending

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Acme's audit log of two months, and the invoices at Stripe that have its roots."""

    shell: Shell
    at: Ending

    @property
    def file(self) -> Path:
        return self.shell.directory / "audit.db"

    async def verify(self, *arguments: str, file: Path | None = None) -> Done:
        """Run the command on a database; default: the true one."""
        url = f"sqlite:///{file or self.file}"
        shell = InProcessShell(self.shell.directory, **self.shell.environment | {"METERKIT_AUDIT_URL": url})
        return await asyncio.to_thread(shell.run, "audit", "verify", *arguments)

    def forged(self, change: Callable[[list[Row]], list[Row]]) -> Path:
        """A database of changed rows with right hashes, as of one who knows the format."""
        file = self.file.with_suffix(".forged")
        file.unlink(missing_ok=True)
        rows = [Row(*(one[name] for name in Row._fields)) for one in rows_in(f"sqlite:///{self.file}")]
        insert_rows(f"sqlite:///{file}", change(rows))
        return file

    def renewals(self) -> list[str]:
        """The ids of invoices, oldest first."""
        return [one["id"] for one in self.at.invoices()]


@asynccontextmanager
async def books(directory: Path, store_url: str) -> AsyncGenerator[Books]:
    (directory / "plans.yaml").write_text(PLANS)
    url = f"sqlite:///{directory}/audit.db"
    async with paying(store_url, audit_url=url) as at:
        for begun, ends, quantities in ((MAY, JUNE, (11, 20, 30)), (JUNE, JULY, (40, 50))):
            await at.reach(begun + DAY)
            for quantity in quantities:
                at.clock.advance(MINUTE)
                await at.kit.record("acme", "requests", quantity)
            await at.drain()
            await at.flush()
            await at.reach(ends + 2 * MINUTE)
            await at.close()
        settings = {
            "METERKIT_REDIS_URL": store_url,
            "METERKIT_SHARDS": "4",
            "METERKIT_STRIPE_API_BASE": at.found.url,
            "METERKIT_STRIPE_API_KEY": STRIPE_KEY,
        }
        yield Books(shell=InProcessShell(directory, **settings), at=at)


@pytest.mark.dear("two months at Stripe")
async def test_a_rewritten_chain_is_found_by_the_invoice(directory: Path, store_url: str) -> None:
    extra = Row("9/p/9", "requests", "recorded", "acme", 0, 9, 1, overage=1)
    changes: dict[str, tuple[Callable[[list[Row]], list[Row]], int, str]] = {
        "changed": (lambda rows: [rows[0], rows[1]._replace(quantity=2, overage=2), *rows[2:]], 3, "root"),
        "removed": (lambda rows: [rows[0], *rows[2:]], 3, "root"),
        "added": (lambda rows: [rows[0], extra, *rows[1:]], 3, "root"),
        "changed in the second period": (lambda rows: [*rows[:4], rows[4]._replace(overage=1)], 5, "root"),
        "cut": (lambda rows: rows[:4], 5, "missing"),
    }
    async with books(directory, store_url) as at:
        first, second = at.at.invoices()
        assert (await at.verify(file=at.forged(changes["cut"][0]))).code == 0
        said: dict[str, str] = {}
        for name, (change, place, problem) in changes.items():
            file = at.forged(change)
            done = await at.verify("--stripe", "--json", file=file)
            (one,) = done.json
            said[name] = one["words"]
            assert (done.code, one["place"], one["problem"]) == (1, place, problem)
            if place > 3:  # The invoice of the first period pins down its own rows alone.
                assert (await at.verify("--stripe", "--period", "2031-05-20", file=file)).code == 0
        (true, *_) = (one["hash"] for one in rows_in(f"sqlite:///{at.file}") if one["place"] == 3)
        assert true == first["metadata"]["meterkit_audit_root"]
        assert said["changed"].startswith(f"invoice {first['id']} has root {true}, and row 3 has 1:")
        assert said["changed"].endswith(": the rows up to here were written anew")
        assert said["cut"] == f"row 5 is missing, by invoice {second['id']}"


@pytest.mark.dear("two months at Stripe")
async def test_an_invoice_without_a_root_is_named(directory: Path, store_url: str) -> None:
    async with books(directory, store_url) as at:
        first, second = at.renewals()
        nothing: Any = {"metadata": {"meterkit_audit_root": "", "meterkit_audit_rows": ""}}
        await at.at.found.client.v1.invoices.update_async(first, nothing)
        done = await at.verify("--stripe")
        assert done.code == 0
        assert done.err.splitlines() == [
            "all 1 chains are unbroken (5 rows); 1 invoice root agrees",
            f"not compared, as they have no audit root: invoices {first}",
        ]
        found = await at.at.kit.health()  # Of the last week; July's has its root.
        assert found.looked_at["roots"] == "renewals in 7 days: 1"
        assert [one.problem for one in found.findings if one.check == "roots"] == []
        # A number that cannot be read is no root, too.
        await at.at.found.client.v1.invoices.update_async(
            second, {"metadata": {"meterkit_audit_rows": "many"}}
        )
        done = await at.verify("--stripe")
        assert (done.code, "no invoice has a root to compare" in done.err) == (0, True)
        assert f"invoices {second}, {first}\n" in done.err
        (finding,) = [one for one in (await at.at.kit.health()).findings if one.check == "roots"]
        assert finding.problem == f"these invoices went out without the root of the audit log: {second}"


async def test_without_stripes_answer_nothing_is_called_right(directory: Path, store_url: str) -> None:
    async with books(directory, store_url) as at:
        at.at.stripe.fail_next("error", status=401, path="/v1/invoices", times=None)
        done = await at.verify("--stripe")
        assert (done.code, "unbroken" in done.err) == (1, False)
        assert "Stripe" in done.err
