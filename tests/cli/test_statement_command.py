"""``meterkit statement`` and ``meterkit audit verify``."""

from __future__ import annotations

import csv
import io
from contextlib import closing
from sqlite3 import connect
from typing import TYPE_CHECKING

import pytest

from drivers.audit_database import drain_all
from meterkit import MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_a_statement_as_text_json_and_csv(stored: Shell, directory: Path, store_url: str) -> None:
    missing = stored.run("statement", "acme")
    assert (missing.code, "METERKIT_AUDIT_URL" in missing.err) == (2, True)
    url = f"sqlite:///{directory}/audit.db"
    stored.environment["METERKIT_AUDIT_URL"] = url
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False, audit_url=url) as kit:
        await kit.record("acme", "requests", 25)
        await kit.record("acme", "requests", 5)
        await drain_all(kit, url)
    shown = stored.run("statement", "acme")
    assert (shown.code, "total USD" in shown.out, "it is not final" in shown.err) == (0, True, True)
    told = stored.run("statement", "acme", "--json")
    (line,) = [one for one in told.json["lines"] if one["meter"] == "requests"]
    assert [event["quantity"] for event in line["events"]] == [25, 5]
    rows = list(csv.DictReader(io.StringIO(stored.run("statement", "acme", "--csv").out)))
    assert [row["event"] for row in rows if row["row"] == "event"] == [one["event"] for one in line["events"]]
    assert stored.run("statement", "acme", "--csv", "--json").code == 2
    day, named = told.json["period_start"][:10], told.json["period_id"]
    assert stored.run("statement", "acme", "--period", day, "--json").json["period_id"] == named


async def test_verify_names_the_first_bad_place(stored: Shell, directory: Path, store_url: str) -> None:
    missing = stored.run("audit", "verify")
    assert (missing.code, "METERKIT_AUDIT_URL names its database" in missing.err) == (2, True)
    url = f"sqlite:///{directory}/audit.db"
    stored.environment["METERKIT_AUDIT_URL"] = url
    empty = stored.run("audit", "verify")
    assert (empty.code, "all 0 chains are unbroken (0 rows)" in empty.err) == (0, True)
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False, audit_url=url) as kit:
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
