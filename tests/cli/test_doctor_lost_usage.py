"""What the doctor says of usage that a promoted replica lacks, and the audit log has."""
# Internals: the audit log is drained when the test says so; a customer is linked without Stripe.

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Executable, Table

from drivers.audited_kit import drain_all_of, sqlite_in
from drivers.command_line import Shell
from drivers.health_findings import looked_at
from meterkit import MeterKit
from meterkit.customers.links import StripeLinker
from meterkit.health.lost_usage import find_interruption_ms
from meterkit.insights.audit.database import TABLE, Database
from meterkit.insights.audit.lost_usage import CounterComparison, compare_counters
from servers.clusters import spawn_watched
from servers.stores import NEEDED, Server, spawn_server, url_of_user

pytestmark = pytest.mark.anyio

DAY_MS = 86_400_000


def promote(server: Server) -> None:
    """Make a server a replica of nothing, then a master: it cannot know what it lacks."""
    server.command("REPLICAOF", "127.0.0.1", "1")
    server.command("REPLICAOF", "NO", "ONE")


@contextmanager
def with_replica() -> Generator[tuple[Server, Server]]:
    with spawn_server() as primary, spawn_server("--replicaof", f"127.0.0.1 {primary.port}") as replica:
        catch_up(primary, replica)
        yield primary, replica


def catch_up(primary: Server, replica: Server) -> None:
    """Wait until a replica has all that its primary has."""
    while True:
        found = replica.command("INFO", "replication")
        offset = primary.command("INFO", "replication")["master_repl_offset"]
        if found["master_link_status"] == "up" and found["slave_repl_offset"] == offset:
            return
        sleep(0.005)


def kit_at(server: Server, directory: Path) -> MeterKit:
    return MeterKit(
        directory / "plans.yaml", redis_url=server.url, flush=False, audit_url=sqlite_in(directory)
    )


@pytest.mark.dear("two servers are started")
async def test_i11_usage_lost_by_a_failover_is_named_with_its_cure(shell: Shell, directory: Path) -> None:
    with with_replica() as (primary, replica):
        async with kit_at(primary, directory) as kit:
            await StripeLinker(kit.store).make("acme", "cus_acme")
            await kit.record("acme", "tokens", 20)
            await kit.record("zeta", "requests", 2)
            catch_up(primary, replica)
            replica.command("REPLICAOF", "127.0.0.1", "1")  # Cut off: what follows is lost.
            await kit.record("acme", "tokens", 9)
            await kit.record("acme", "requests", 3)
            await kit.record("zeta", "requests", 1)
            await drain_all_of(kit)
        primary.stop()
        replica.command("REPLICAOF", "NO", "ONE")
        shell.environment |= {
            "METERKIT_REDIS_URL": replica.url,
            "METERKIT_AUDIT_URL": sqlite_in(directory),
            "METERKIT_DELIVER_WITHOUT_PERSISTENCE": "on",
        }
        done = await asyncio.to_thread(shell.run, "doctor")
        assert done.code == 1
        lines = done.out.splitlines()
        place = next(place for place, line in enumerate(lines) if line.startswith("lost: "))
        assert lines[place] == (
            "lost: a restart or failover of the store has lost usage that the audit log has: 4 requests,"
            " 9 tokens, of acme, zeta; limits admit it again, and it is not billed"
        )
        assert "`meterkit audit rebuild --dry-run`" in lines[place + 1]
        told = await asyncio.to_thread(shell.run, "audit", "rebuild", "--dry-run", "--json")
        raised = {(one["customer"], one["meter"]): one["raised"] for one in told.json}
        assert raised == {("acme", "tokens"): 9, ("acme", "requests"): 3, ("zeta", "requests"): 1}
        await asyncio.to_thread(shell.run, "audit", "rebuild")
        async with kit_at(replica, directory) as kit:
            looked, findings = await looked_at(kit, "lost")
        assert (looked, findings) == ("2 customers compared with the audit log", [])


async def test_f318_usage_on_its_way_into_the_log_is_not_called_lost(directory: Path) -> None:
    with spawn_server() as server:
        promote(server)
        async with kit_at(server, directory) as kit:
            for customer in ("acme", "zeta", "gone"):
                await kit.record(customer, "requests", 5)
            await drain_all_of(kit)
            await kit.record("acme", "requests", 1)  # More than the log has.
            await kit.correct("zeta", {"requests": 2}, reason="a test", correction_id="1")
            await kit.customers.delete("gone")
            looked, findings = await looked_at(kit, "lost")
            assert findings == []
            assert looked == (
                "1 customer compared with the audit log; 2 not, as a correction or deletion is on its way"
                " into the database"
            )
            await drain_all_of(kit)
            assert await looked_at(kit, "lost") == ("3 customers compared with the audit log", [])


async def test_f318_a_database_that_is_down_compares_nothing(directory: Path) -> None:
    with spawn_server() as server:
        promote(server)
        async with MeterKit(
            directory / "plans.yaml",
            redis_url=server.url,
            flush=False,
            audit_url=f"sqlite:///{directory}/no/audit.db",
        ) as kit:
            why = (await kit.health()).not_looked_at["lost"]
    assert "run `meterkit audit rebuild --dry-run`" in why


async def test_f318_without_the_right_to_info_nothing_is_compared(directory: Path) -> None:
    with spawn_server() as server:
        url = url_of_user(server, NEEDED)
        kit = MeterKit(directory / "plans.yaml", redis_url=url, flush=False, audit_url=sqlite_in(directory))
        found, of_pages = await kit.health(), await kit.health(scan_keys=False)
        await kit.store.stop()
    assert "lost" not in of_pages.not_looked_at  # The operator pages do not wait for it.
    assert found.not_looked_at["lost"] == "the server's user may not ask for INFO"


def test_f318_only_a_recent_restart_or_a_promotion_is_compared() -> None:
    now_ms = 100 * DAY_MS
    old, new = {"uptime_in_seconds": 36 * 86_400}, {"uptime_in_seconds": 3_600}
    promoted = {**old, "second_repl_offset": 12}
    master = {**old, "second_repl_offset": -1}
    assert find_interruption_ms([old, master], None, now_ms) is None
    assert find_interruption_ms([old, new], None, now_ms) == now_ms - 3_600_000 + 5_000
    assert find_interruption_ms([promoted], None, now_ms) == now_ms
    assert find_interruption_ms([promoted], now_ms - DAY_MS, now_ms) == now_ms - DAY_MS + 5_000
    assert find_interruption_ms([promoted], now_ms - 36 * DAY_MS, now_ms) is None


class DrainingDatabase(Database):
    """A database that gets the waiting entries just after it has been read for the second time."""

    def __init__(self, kit: MeterKit, directory: Path) -> None:
        super().__init__(sqlite_in(directory))
        self._kit, self._loop, self._reads = kit, asyncio.get_running_loop(), 0

    def read(self, asked: Executable, table: Table = TABLE) -> Sequence[Any]:
        found = super().read(asked, table)
        self._reads += 1
        if self._reads == 2:
            asyncio.run_coroutine_threadsafe(drain_all_of(self._kit), self._loop).result()
        return found


async def test_f318_a_correction_drained_meanwhile_is_not_called_lost(directory: Path) -> None:
    with spawn_server() as server:
        async with kit_at(server, directory) as kit:
            await kit.record("acme", "requests", 5)
            await drain_all_of(kit)
            await kit.correct("acme", {"requests": 2}, reason="a test", correction_id="1")
            found = await compare_counters(kit.store, DrainingDatabase(kit, directory), kit.store.now_ms())
    assert found == CounterComparison(compared=0, unsettled=1, is_sample=False, lost=[])


@pytest.mark.dear("two servers and three sentinels are started")
async def test_f318_a_master_that_writes_without_a_replica_is_named(directory: Path) -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        kit = MeterKit(directory / "plans.yaml", redis_url=watched.url, flush=False)
        _, (finding,) = await looked_at(kit, "replication")
        assert "min-replicas-to-write 0" in finding.problem
        assert finding.cure.startswith("set min-replicas-to-write 1 and min-replicas-max-lag 10")
        watched.master.command("CONFIG", "SET", "min-replicas-to-write", 1)
        assert await looked_at(kit, "replication") == ("1 replicas", [])
        await kit.store.stop()
