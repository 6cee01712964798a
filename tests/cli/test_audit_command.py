"""``meterkit audit rebuild``: what the store has lost comes back from the audit log."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from drivers.audit_database import AuditRow, drain_all, insert_rows
from drivers.audited_kit import rows_in
from drivers.command_line import Done, InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.health_findings import findings, looked_at
from drivers.period_ends import JULY, JUNE, MAY, PLANS, Ending, paying

pytestmark = pytest.mark.anyio

REBUILD_ONE = ("audit", "rebuild", "--customer")


async def test_lost_counters_are_rebuilt(stored: Shell, directory: Path) -> None:
    url = f"sqlite:///{directory}/audit.db"
    missing = stored.run("audit", "rebuild")
    assert (missing.code, "set METERKIT_AUDIT_URL to its database" in missing.err) == (2, True)
    stored.environment["METERKIT_AUDIT_URL"] = url
    async with stored.kit(audit_url=url) as kit:
        await kit.record("acme", "requests", 25)
        await kit.record("umbrella", "requests", 5)
        same = stored.run("audit", "rebuild")
        assert (same.code, same.out) == (0, "")
        assert "the counters agree with the audit log" in same.err
        noted = ["unknown customer" in stored.run(*REBUILD_ONE, name).err for name in ("acne", "acme")]
        assert noted == [True, False]
        admin: Any = await kit.store.admin()
        await admin.client.flushall()
    would = stored.run("audit", "rebuild", "--dry-run", "--json")
    assert (would.code, [one["raised"] for one in would.json]) == (1, [25, 5])
    one = stored.run(*REBUILD_ONE, "umbrella")
    assert (one.code, one.out.splitlines()[-1].split()[0]) == (0, "umbrella")
    rest = stored.run("audit", "rebuild", "--json")
    assert (rest.code, [(row["customer"], row["raised"]) for row in rest.json]) == (0, [("acme", 25)])
    assert stored.run("usage", "acme", "--json").json["meters"]["requests"]["recorded"] == 25
    assert stored.run("audit", "rebuild").code == 0
    assert stored.run("audit", "rebuild", "--period", "soon").code == 2


async def test_a_rebuild_that_leaves_something_exits_with_1(stored: Shell, directory: Path) -> None:
    stored.environment["METERKIT_AUDIT_URL"] = url = f"sqlite:///{directory}/audit.db"
    async with stored.kit(audit_url=url) as kit:
        await kit.record("acme", "requests", 25)
        await drain_all(kit, url)
        key, admin = kit.store.keys.customer("acme").counters, await kit.store.admin()
        await admin.client.delete(key)
        await admin.client.set(key, "of another program", px=600_000)
    left = stored.run("audit", "rebuild", "--json")
    assert (left.code, [row["customer"] for row in left.json]) == (1, ["acme"])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("postgresql+psycopg://meter:SECRETpw@127.0.0.1:1/audit", "failed"),
    ],
)
def test_an_unusable_audit_database_is_found(stored: Shell, url: str, words: str) -> None:
    stored.environment["METERKIT_AUDIT_URL"] = url
    done = stored.run("doctor", "--json")
    (finding,) = [one for one in done.json["findings"] if one["check"] == "database"]
    assert words in finding["problem"]
    assert "METERKIT_AUDIT_URL" in finding["cure"]
    assert "SECRET" not in done.out + done.err


async def test_a_statement_as_text_json_and_csv(stored: Shell, directory: Path) -> None:
    missing = stored.run("statement", "acme")
    assert (missing.code, "METERKIT_AUDIT_URL" in missing.err) == (2, True)
    url = f"sqlite:///{directory}/audit.db"
    stored.environment["METERKIT_AUDIT_URL"] = url
    async with stored.kit(audit_url=url) as kit:
        await kit.record("acme", "requests", 25)
        await kit.record("acme", "requests", 5)
        await drain_all(kit, url)
    shown = stored.run("statement", "acme")
    assert (shown.code, "total $" in shown.out, "not final" in shown.err) == (0, True, True)
    told = stored.run("statement", "acme", "--json")
    (line,) = [one for one in told.json["lines"] if one["meter"] == "requests"]
    assert [event["quantity"] for event in line["events"]] == [25, 5]
    rows = list(csv.DictReader(io.StringIO(stored.run("statement", "acme", "--csv").out)))
    assert [row["event"] for row in rows if row["row"] == "event"] == [one["event"] for one in line["events"]]
    assert stored.run("statement", "acme", "--csv", "--json").code == 2
    day, named = told.json["period_start"][:10], told.json["period_id"]
    assert stored.run("statement", "acme", "--period", day, "--json").json["period_id"] == named


async def test_verify_names_the_first_bad_place(stored: Shell, directory: Path) -> None:
    missing = stored.run("audit", "verify")
    assert (missing.code, "set METERKIT_AUDIT_URL to its database" in missing.err) == (2, True)
    url = f"sqlite:///{directory}/audit.db"
    stored.environment["METERKIT_AUDIT_URL"] = url
    empty = stored.run("audit", "verify")
    assert (empty.code, "all 0 chains are unbroken (0 rows)" in empty.err) == (0, True)
    async with stored.kit(audit_url=url) as kit:
        for name in ("acme", "umbrella"):
            for nth in range(1, 4):
                await kit.record(name, "requests", nth)
        await drain_all(kit, url)
    right = stored.run("audit", "verify")
    assert (right.code, "all 2 chains are unbroken (6 rows)" in right.err) == (0, True)
    assert stored.run("audit", "verify", "--period", "2031-05").code == 2
    assert stored.run("audit", "verify", "--stripe").code == 2  # No Stripe key is set.
    with closing(connect(directory / "audit.db")) as database, database:
        database.execute("UPDATE meterkit_audit SET overage = 1 WHERE customer = 'acme' AND place = 2")
    broken = stored.run("audit", "verify", "--json")
    assert (broken.code, [(one["customer"], one["place"], one["problem"]) for one in broken.json]) == (
        1,
        [("acme", 2, "changed")],
    )
    said = stored.run("audit", "verify")
    assert (said.code, "1 of 2 chains are broken" in said.err) == (1, True)
    assert stored.run("audit", "verify", "umbrella").code == 0
    misspelled = stored.run("audit", "verify", "umbrela")
    assert "the audit log has no rows of customer umbrela\n" in misspelled.err
    assert "unbroken" not in misspelled.err


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

    def forged(self, change: Callable[[list[AuditRow]], list[AuditRow]]) -> Path:
        """A database of changed rows with right hashes, as of one who knows the format."""
        file = self.file.with_suffix(".forged")
        file.unlink(missing_ok=True)
        rows = [
            AuditRow(*(one[name] for name in AuditRow._fields)) for one in rows_in(f"sqlite:///{self.file}")
        ]
        insert_rows(f"sqlite:///{file}", change(rows))
        return file

    def renewals(self) -> list[str]:
        """The ids of invoices, oldest first."""
        return [one["id"] for one in self.at.invoices()]


@pytest.fixture
async def at(directory: Path, store_url: str) -> AsyncGenerator[Books]:
    (directory / "plans.yaml").write_text(PLANS)
    url = f"sqlite:///{directory}/audit.db"
    async with paying(store_url, audit_url=url) as ending:
        for begun, ends, quantities in ((MAY, JUNE, (11, 20, 30)), (JUNE, JULY, (40, 50))):
            await ending.reach(begun + DAY)
            for quantity in quantities:
                ending.clock.advance(MINUTE)
                await ending.kit.record("acme", "requests", quantity)
            await ending.drain()
            await ending.flush()
            await ending.reach(ends + 2 * MINUTE)
            await ending.close()
        settings = {
            "METERKIT_REDIS_URL": store_url,
            "METERKIT_SHARDS": "4",
            "METERKIT_STRIPE_API_BASE": ending.found.url,
            "METERKIT_STRIPE_API_KEY": STRIPE_KEY,
        }
        yield Books(shell=InProcessShell(directory, **settings), at=ending)


@pytest.mark.dear("two months at Stripe")
async def test_a_rewritten_chain_is_found_by_the_invoice(at: Books) -> None:
    extra = AuditRow("9/p/9", "requests", "recorded", "acme", 0, 9, 1, overage=1)
    changes: dict[str, tuple[Callable[[list[AuditRow]], list[AuditRow]], int, str]] = {
        "changed": (lambda rows: [rows[0], rows[1]._replace(quantity=2, overage=2), *rows[2:]], 3, "root"),
        "removed": (lambda rows: [rows[0], *rows[2:]], 3, "root"),
        "added": (lambda rows: [rows[0], extra, *rows[1:]], 3, "root"),
        "changed in the second period": (lambda rows: [*rows[:4], rows[4]._replace(overage=1)], 5, "root"),
        "cut": (lambda rows: rows[:4], 5, "missing"),
    }
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
async def test_a_customers_former_id_has_its_roots(at: Books) -> None:
    """A Stripe customer who got another id here seemed to have lost the rows behind its invoices."""
    customers = at.at.kit.customers
    linked = (await customers.get("acme")).stripe_customer
    assert linked is not None
    await customers.unlink("acme")
    await customers.link("ajax", linked)
    done = await at.verify("--stripe")
    assert (done.code, done.err) == (0, "all 2 chains are unbroken (5 rows); 2 invoice roots agree\n")
    forged = at.forged(lambda rows: [rows[0], rows[1]._replace(quantity=2, overage=2), *rows[2:]])
    done = await at.verify("--stripe", "--json", file=forged)
    assert (done.code, [(one["customer"], one["problem"]) for one in done.json]) == (1, [("ajax", "missing")])


@pytest.mark.dear("two months at Stripe")
async def test_an_invoice_without_a_root_is_named(at: Books) -> None:
    first, second = at.renewals()
    nothing: Any = {"metadata": {"meterkit_audit_root": "", "meterkit_audit_rows": ""}}
    await at.at.found.client.v1.invoices.update_async(first, nothing)
    done = await at.verify("--stripe")
    assert done.code == 0
    assert done.err.splitlines() == [
        "all 1 chains are unbroken (5 rows); 1 invoice root agrees",
        f"not compared, because they have no audit root: invoices {first}",
    ]
    # Of the last week; July's has its root.
    assert await looked_at(at.at.kit, "roots") == ("renewals in 7 days: 1", [])
    # A number that cannot be read is no root, too.
    await at.at.found.client.v1.invoices.update_async(second, {"metadata": {"meterkit_audit_rows": "many"}})
    done = await at.verify("--stripe")
    assert (done.code, "no invoice has a root to compare" in done.err) == (0, True)
    assert f"invoices {second}, {first}\n" in done.err
    (finding,) = await findings(at.at.kit, "roots")
    assert finding.problem == f"these invoices have no root of the audit log: {second}"
    # Stripe's clock alone was moved: for this log the renewal is to come.
    at.at.clock.advance(-3 * timedelta(days=1))
    assert await looked_at(at.at.kit, "roots") == ("renewals in 7 days: 0", [])


@pytest.mark.dear("three months at Stripe")
async def test_another_products_invoices_need_no_root(at: Books) -> None:
    """Each renewal was named, and found by the doctor, whose cure is for others."""
    at.at.stripe.add_price(7_700, price_id="price_garden")
    garden: Any = {"customer": "cus_acme", "items": [{"price": "price_garden"}]}
    await at.at.found.client.v1.subscriptions.create_async(garden)
    await at.at.reach(JULY + 31 * DAY + 2 * MINUTE)
    await at.at.close()
    await at.at.reach(JULY + 32 * DAY)
    assert len(at.renewals()) == 4
    done = await at.verify("--stripe")
    assert (done.code, done.err) == (0, "all 1 chains are unbroken (5 rows); 3 invoice roots agree\n")
    assert await findings(at.at.kit, "roots") == []


@pytest.mark.dear("two months at Stripe")
async def test_a_damaged_customer_is_named_and_others_verified(at: Books) -> None:
    keys, admin = at.at.kit.store.keys, await at.at.kit.store.admin()
    at.at.stripe.add_customer("cus_beta")
    await at.at.kit.customers.link("beta", "cus_beta")
    await at.at.kit.record("beta", "requests", 3)
    await at.at.drain()
    await admin.ask(admin.client.hset(keys.customer("beta").state, "data", "x"))
    await at.at.kit.customers.set_plan("ghost", "pro")  # In no row of the log.
    await admin.ask(admin.client.hset(keys.customer("ghost").state, "data", "x"))
    done = await at.verify("--stripe")
    first, second, third = done.err.splitlines()
    assert (done.code, first) == (1, "all 2 chains are unbroken (6 rows); 2 invoice roots agree")
    assert second.startswith("not compared: the invoices of customer 'beta': the record of customer 'beta'")
    assert third.startswith("not compared: the invoices of customer 'ghost': ")
    assert (await at.verify("acme", "--stripe")).code == 0


async def test_without_stripes_answer_nothing_is_called_right(at: Books) -> None:
    at.at.stripe.fail_next("error", status=401, path="/v1/invoices", times=None)
    done = await at.verify("--stripe")
    assert (done.code, "unbroken" in done.err) == (1, False)
    assert "Stripe" in done.err
