"""``meterkit revenue``: figures of days as a table, CSV and JSON, and what was spent."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import InProcessShell
from drivers.webhooks import DAY, PLANS, hooked

if TYPE_CHECKING:
    from pathlib import Path

    from servers.stores import Server

pytestmark = pytest.mark.anyio


async def test_days_are_shown_as_text_csv_and_json(valkey: Server, tmp_path: Path) -> None:
    audit_url = f"sqlite:///{tmp_path / 'audit.db'}"
    (tmp_path / "plans.yaml").write_text(PLANS)
    shell = InProcessShell(
        tmp_path, METERKIT_REDIS_URL=valkey.url, METERKIT_AUDIT_URL=audit_url, METERKIT_SHARDS="4"
    )
    async with hooked(valkey.url, audit_url=audit_url) as at:
        refused = shell.run("revenue")
        assert (refused.code, "no snapshot of any day" in refused.err) == (1, True)
        at.customer("acme")
        await at.subscribe("acme")
        await at.settle()
        at.clock.advance(DAY)
        await at.kit.revenue.snapshot()
        at.customer("globex")
        await at.subscribe("globex", "price_max")
        await at.settle()
        at.clock.advance(DAY)
        await at.kit.revenue.snapshot()
    assert shell.run("revenue", "spend", "2031-06-10=1_500", "2031-06-11=500").code == 0
    span = ("revenue", "--from", "2031-06-01", "--to", "2031-06-11")
    lines = shell.run(*span).out.splitlines()
    assert [line.split()[:5] for line in lines[-2:]] == [
        ["2031-06-10", "1", "USD", "10.00", "USD"],
        ["2031-06-11", "2", "USD", "30.00", "USD"],
    ]
    rows = list(csv.DictReader(shell.run(*span, "--csv").out.splitlines()))
    assert [(row["day"], row["mrr"], row["new"], row["nrr"], row["cac_cents"]) for row in rows] == [
        ("2031-06-10", "1000000000", "1000000000", "", "1500"),
        ("2031-06-11", "3000000000", "2000000000", "", "1000"),
    ]
    (shown,) = shell.run("revenue", "--to", "2031-06-11", "--json").json
    assert (shown["currency"], shown["customers"], shown["arpa"]) == ("usd", 2, 1_500_000_000)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    shell = InProcessShell(tmp_path, METERKIT_REDIS_URL="memory://", METERKIT_AUDIT_URL="sqlite://")
    (tmp_path / "plans.yaml").write_text(PLANS)
    for wrong in ("2031-06-10", "2031-06-10=-1", "2031-06-31=1", "today=1", "2031-06-10=1e3"):
        done = shell.run("revenue", "spend", wrong)
        assert (done.code, "allowed is" in done.err) == (2, True), wrong
    both = shell.run("revenue", "--csv", "--json")
    assert (both.code, "not both" in both.err) == (2, True)
