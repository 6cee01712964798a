"""``meterkit audit rebuild``: what the store has lost comes back from the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meterkit import MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_lost_counters_are_rebuilt(stored: Shell, directory: Path, store_url: str) -> None:
    url = f"sqlite:///{directory}/audit.db"
    missing = stored.run("audit", "rebuild")
    assert (missing.code, "METERKIT_AUDIT_URL names its database" in missing.err) == (2, True)
    stored.environment["METERKIT_AUDIT_URL"] = url
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False, audit_url=url) as kit:
        await kit.record("acme", "requests", 25)
        await kit.record("umbrella", "requests", 5)
        same = stored.run("audit", "rebuild")
        assert (same.code, same.out) == (0, "")
        assert "the counters have all that the audit log has" in same.err
        admin: Any = await kit.store.admin()
        await admin.client.flushall()
    would = stored.run("audit", "rebuild", "--dry-run", "--json")
    assert (would.code, [one["raised"] for one in would.json]) == (1, [25, 5])
    one = stored.run("audit", "rebuild", "--customer", "umbrella")
    assert (one.code, one.out.splitlines()[-1].split()[0]) == (0, "umbrella")
    rest = stored.run("audit", "rebuild", "--json")
    assert (rest.code, [(row["customer"], row["raised"]) for row in rest.json]) == (0, [("acme", 25)])
    assert stored.run("usage", "acme", "--json").json["meters"]["requests"]["recorded"] == 25
    assert stored.run("audit", "rebuild").code == 0
    assert stored.run("audit", "rebuild", "--period", "soon").code == 2


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
