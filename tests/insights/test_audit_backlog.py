"""An operator is told that entries wait for the database of the audit log: how many, and since when."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.audited_kit import audited, sqlite_in
from drivers.process_metrics import told
from meterkit import Finding, MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.audited_kit import Audited

pytestmark = pytest.mark.anyio

NAMES: Final = ("audit_waiting", "audit_age_seconds", "audit_full_shards")


async def metrics(at: Audited) -> tuple[float, ...]:
    found = await told(at.kit)
    return tuple(found[name] for name in NAMES)


async def findings(kit: MeterKit) -> list[Finding]:
    found = await kit.health()
    return [one for one in found.findings if one.check == "audit"]


async def test_the_age_of_what_cannot_be_read_is_that_of_its_name(store_url: str, tmp_path: Path) -> None:
    async with audited(store_url, sqlite_in(tmp_path)) as at:
        admin: Any = await at.kit.store.admin()
        now_ms = at.kit.store.now_ms()
        for shard, (age_ms, fields) in enumerate(
            ((9_000, {"k": "of another release", "d": "", "at": 1}), (7_000, {"e": b"\xfd\x01"}))
        ):
            await admin.client.xadd(at.kit.store.keys.audit(shard), fields, id=f"{now_ms - age_ms}-0")
        assert (await metrics(at))[:2] == (2, 9.0)
        at.desk.clock.advance(timedelta(minutes=-1))
        assert (await metrics(at))[:2] == (2, 0.0)


@pytest.mark.usefixtures("valkey")
async def test_the_doctor_finds_entries_that_nobody_drains(store_url: str, tmp_path: Path) -> None:
    away = tmp_path / "later"
    async with audited(store_url, sqlite_in(away)) as at:
        await at.kit.record("acme", "rows", 1)
        at.desk.clock.advance(timedelta(minutes=15))
        assert await findings(at.kit) == []
        at.desk.clock.advance(timedelta(minutes=32))
        (finding,) = await findings(at.kit)
        assert finding.problem.startswith(
            "1 entry of the audit log has waited for up to 47 min for the database"
        )
        assert finding.cure.startswith(
            "see that an app that delivers or `meterkit worker` runs with METERKIT_AUDIT"
        )
        for _ in range(3):
            await at.kit.record("acme", "rows", 1)
        await at.fold(2)
        first, second = await findings(at.kit)
        assert first.problem.startswith("2 entries of the audit log have waited")
        assert second.problem.startswith("1 shard has so many entries of the audit log waiting")
        settings: dict[str, Any] = {
            "redis_url": store_url,
            "shards": 4,
            "flush": False,
            "clock": at.desk.clock,
        }
        other = MeterKit(at.kit.store.catalog, **settings)
        first, second = await findings(other)
        assert first.cure.startswith("METERKIT_AUDIT_URL is not set here; ")
        await other.store.stop()
        away.mkdir()
        await at.drainer.once()
        assert await findings(at.kit) == []
        assert (await at.kit.health()).looked_at["audit"] == "0 entries wait"
