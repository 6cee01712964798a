"""What is a finding and what is not, where a real server would have to be old, full or far away."""
# Internals: pure tables of findings.

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from drivers.plans import plans_text
from meterkit.decisions.keys import FORMAT
from meterkit.health import findings, webhooks
from meterkit.health.spools import growing, no_room
from meterkit.spool.directory import SpoolSeen

if TYPE_CHECKING:
    from drivers.command_line import Shell


ALLOTTED: Final = plans_text("doctor_findings")


def test_old_servers_are_named() -> None:
    for server, found in (
        ({"redis_version": "6.2.14"}, "Redis 6.2.14"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "Valkey 7.2.9"),
    ):
        (finding,) = findings.version(server)
        assert finding.problem == f"the server is {found}, which has not all that meterkit needs"
    for fine in ({"redis_version": "7.0.0"}, {"redis_version": "7.2.4", "valkey_version": "8.0.0"}, {}):
        assert findings.version(fine) == []


def test_a_replica_that_does_not_follow_is_named() -> None:
    for state, follows in (("online,lag=1", True), ("online,lag=11", False), ("wait_bgsave,lag=0", False)):
        replica = f"ip=10.0.0.2,port=6379,offset=1,state={state}"
        found = findings.replication({"role": "master", "connected_slaves": "1", "slave0": replica})
        assert [finding.check for finding in found] == ([] if follows else ["replication"])


@pytest.mark.parametrize(
    ("meta", "cure"),
    [
        ({}, None),
        ({"format": str(FORMAT), "shards": "128"}, None),
        ({"format": str(FORMAT + 1), "shards": "128"}, "upgrade this one"),
        ({"format": str(FORMAT - 1), "shards": "128"}, "deliver what is pending with that release first"),
        ({"format": str(FORMAT), "shards": "8"}, "set METERKIT_SHARDS=8"),
        ({"color": "red"}, "set METERKIT_KEY_PREFIX to one that nothing else uses"),
        ({"format": "x", "shards": "8"}, "set METERKIT_KEY_PREFIX to one that nothing else uses"),
    ],
)
def test_a_store_is_of_this_release_and_these_settings(meta: dict[str, str], cure: str | None) -> None:
    found = findings.shards(meta, configured=128, key="mk:meta")
    assert [finding.cure for finding in found] == ([cure] if cure else [])


def test_an_unwritable_file_is_named_even_if_accepted() -> None:
    info = {"aof_enabled": "1", "aof_last_write_status": "err"}
    (found,) = findings.persistence("WAITAOF", info, appendfsync="always", is_accepted=True)
    assert found.problem.startswith("the server could not write its append-only file")


def test_a_queue_that_takes_longer_than_ten_minutes_is_named() -> None:
    def found(intents: int) -> list[str]:
        told = findings.throughput(customers=0, intents=intents, interval_s=300, limit_per_s=20)
        return [finding.problem for finding in told]

    assert found(12_000) == []
    assert found(24_000) == ["24,000 intents wait, which takes 20 min"]


def test_too_short_an_interval_is_told_with_a_longer_one() -> None:
    (found,) = findings.throughput(customers=100_001, intents=0, interval_s=60, limit_per_s=800)
    assert (
        found.cure == "set METERKIT_FLUSH_INTERVAL to 126 at least, or METERKIT_STRIPE_TRANSPORT to v2-stream"
    )


def test_looks_that_nobody_makes_are_named_after_a_while() -> None:
    assert webhooks.overdue(0, 0) == webhooks.overdue(3, webhooks.OVERDUE_MS) == []
    for count, oldest_ms, said in (
        (1, webhooks.OVERDUE_MS + 1, "1 Stripe customer has waited for a sync for up to 5 min"),
        (1_200, 7_200_000, "1,200 Stripe customers have waited for a sync for up to 2 h"),
    ):
        (finding,) = webhooks.overdue(count, oldest_ms)
        assert finding.problem.startswith(f"{said}:")


def test_long_failing_looks_are_named_with_a_reason() -> None:
    now_ms = 10 * webhooks.FAILING_MS
    young = webhooks.Failing("cus_young", "timeout", now_ms - webhooks.FAILING_MS)
    assert webhooks.failing([], now_ms) == webhooks.failing([young], now_ms) == []
    old = [webhooks.Failing(f"cus_{nth}", f"reason {nth}", nth) for nth in range(7)]
    (found,) = webhooks.failing([young, *old], now_ms)
    assert found.problem == (
        "looks at cus_0, cus_1, cus_2, cus_3, cus_4 and 2 more have failed for up to 10 h: reason 0"
    )
    assert "within the hour" in found.cure


def test_doctor_prints_the_limits_that_no_route_asks_for(shell: Shell) -> None:
    """F-200."""
    limited = ALLOTTED.replace(
        "meters: {requests: {rate", "meters: {output_tokens: {included: 5}, requests: {rate"
    )
    for text, said in (
        (limited, ""),
        (
            limited.replace("usage: openai, ", ""),
            "plans.yaml:20:62 plans.free.meters.output_tokens: no route asks",
        ),
    ):
        (shell.directory / "plans.yaml").write_text(text)
        done = shell.run("doctor", "--redis", "memory://")
        assert (done.code, done.out.partition("\nlimits: ")[2].startswith(said)) == (0, True), done.out
        assert ("\nlimits: " in done.out) == bool(said)


def test_a_disk_without_room_is_found() -> None:
    (finding,) = no_room(Path("/spools"), 3 << 20)
    assert finding.problem.startswith("the disk of /spools has 3 MiB left")
    assert no_room(Path("/spools"), 1 << 30) == []


def test_a_spool_that_is_near_its_bound_is_found() -> None:
    seen = [
        SpoolSeen(path=Path("/spools/a.spool"), state="held", size=900 << 20, begun_ms=0),
        SpoolSeen(path=Path("/spools/b.spool"), state="held", size=700 << 20, begun_ms=0),
    ]
    (finding,) = growing(seen)
    assert finding.problem.startswith("a.spool: 900 MiB of 1,024 MiB; what comes beyond is lost")
    assert growing(seen[1:]) == []
