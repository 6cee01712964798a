"""Parts of the command line that no command shows whole: escapes, bars, evidence, periods that are over."""

# Internals: pure tables, a bar that a timer draws at a terminal that stands still, a clock of its own.

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

from drivers.command_line import Shell
from drivers.plans import plans_text
from meterkit import MeterKit
from meterkit.catalog import load
from meterkit.cli import output
from meterkit.cli.app import app
from meterkit.cli.demo.run import CUSTOMERS, PLANS, Refusal, Tally, evidence
from meterkit.cli.output import JsonLines, PlainLines, shown_steps
from meterkit.csv_text import csv_cell
from meterkit.customers.billed_usage import usage_of_all
from meterkit.customers.sorted_customers import customers_with_counts
from meterkit.decisions.keys import FORMAT
from meterkit.health import deliveries, store_servers, store_topology
from meterkit.health import worker_queues as queues
from meterkit.health.worker_queues import find_full_disk, find_growing_spools
from meterkit.safe_text import escape_invisible
from meterkit.store.spool_file import SpoolInfo
from meterkit.testing import Clock, StripeEmulator

TURNED: Final = "a\u202eda"
LINES: Final = "a\u2028b\u2029c\u200b\ufeff\u00ad\U000e0041"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Zoë 愛 🙂\n", "Zoë 愛 🙂\n"),
        ("a\u202eb", r"a\u202eb"),
        ("\x1b[31m\t", r"\u001b[31m\t"),
        ("\U000e0041", r"\udb40\udc41"),
        ("\udc80", r"\udc80"),
    ],
)
def test_what_cannot_be_seen_is_escaped_as_json_does(text: str, escaped: str) -> None:
    assert escape_invisible(text) == escaped


def test_the_logs_of_commands_escape_ids() -> None:
    record = logging.makeLogRecord({"msg": "customer %s", "args": (TURNED,), "customer": LINES})
    assert PlainLines().format(record) == r"customer a\u202eda"
    line = JsonLines().format(record)
    assert (line.isascii(), json.loads(line)["customer"]) == (True, LINES)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        *[(f"{mark}x", f"'{mark}x") for mark in "=+-@\t\r\n"],
        (-1, -1),
        (None, ""),
        # Wherever a cell may begin.
        ("a;=1;", "a;'=1;"),
        ("a\t@b\n-1", "a\t'@b\n'-1"),
        ("\u200b=1", "'\u200b=1"),
        ("a=1, b;c -1", "a=1, b;c -1"),
    ],
)
def test_texts_are_no_formulas_and_numbers_stay_numbers(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def test_evidence_names_the_limit_and_what_was_served() -> None:
    catalog, served = load(PLANS), Counter(requests=40, tokens=5_001)
    ada, bell, _ = (Tally(customer=customer, served=served, failed=2) for customer in CUSTOMERS)
    both = Refusal(status=429, policies=("requests-period", "tokens-period"))
    assert (
        "the free plan allows 40 requests per month, and 40 were served; the free plan allows 5,000 tokens"
        " per month, and 5,001 were served; usage that is recorded after the work was done is never refused"
    ) == evidence(both, ada, catalog)
    rate = Refusal(status=429, policies=("requests-1d",))
    assert evidence(rate, bell, catalog) == "the pro plan allows 120 requests per day, and 42 were let in"
    assert "`anonymous: deny`" in evidence(Refusal(status=401), ada, catalog)


def test_a_bar_is_drawn_once_a_second_is_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-137: what takes longer than a second shows how far it is, to a person at a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(output, "AFTER_S", 3600.0)
    with shown_steps() as steps:
        steps.update("linking customers", 3, 1500)
        assert capsys.readouterr().err == ""
        steps.show()  # As its timer does.
        assert "3/1,500" in capsys.readouterr().err
        steps.of("looking")(7, 9)
    assert "7/9" in capsys.readouterr().err
    steps.show()
    assert capsys.readouterr().err == ""


def test_every_long_command_has_a_bar(
    directory: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[str]()

    def update(_: output.Steps, doing: str, done: int = 0, total: int | None = None) -> None:
        del done, total
        shown.append(doing)

    monkeypatch.setattr(output.Steps, "update", update)
    (directory / "links.csv").write_text("acme,cus_acme\n")
    emulator = StripeEmulator()
    emulator.add_meters(load(directory / "plans.yaml"))
    emulator.add_customer("cus_acme")
    with emulator.running() as url:
        settings = {"REDIS_URL": store_url, "STRIPE_API_KEY": "sk_test_1", "STRIPE_API_BASE": url}
        variables = {f"METERKIT_{name}": value for name, value in settings.items()}
        variables["METERKIT_PLANS"] = str(directory / "plans.yaml")
        for command, doing in {
            f"customers link --csv {directory / 'links.csv'}": "linking customers",
            "flush": "delivering",
            "reconcile": "comparing customers",
            "recover --yes": "comparing with Stripe",
            "import stripe": "reading customers",
        }.items():
            shown.clear()
            done = CliRunner(env=variables).invoke(app, command.split())
            assert done.exit_code == 0, done.output
            assert doing in shown


async def used(kit: MeterKit, at: datetime) -> dict[str, int]:
    at_ms = int(at.timestamp() * 1000)
    pages = [page async for page in usage_of_all(kit.store, at_ms=at_ms)]
    return {found["customer"]: found["meters"]["tokens"]["recorded"] for page in pages for found in page}


@pytest.mark.anyio
async def test_past_periods_are_shown_as_they_were_counted(any_store_url: str, directory: Path) -> None:
    clock = Clock(datetime(2099, 9, 10, tzinfo=UTC))
    september = clock.now()
    plans = directory / "plans.yaml"
    async with MeterKit(plans, redis_url=any_store_url, clock=clock, flush=False, key_prefix="other") as kit:
        await kit.record("ada", "tokens", 12)
        await kit.record("bob", "tokens", 3)
        clock.advance(timedelta(days=30))
        october = clock.now()
        await kit.record("ada", "tokens", 5)  # Closes her September; nothing has closed Bob's.
        assert {"ada": 5} == await used(kit, october)
        assert {"ada": 12, "bob": 3} == await used(kit, september)
        assert {} == await used(kit, september - timedelta(days=60))
        async with customers_with_counts(kit.store) as customers:
            assert [["ada"], ["bob"]] == [names async for names in customers.names(1)]
        (ada, bob) = await kit.store.usage_of_many(["ada", "bob"], at_ms=int(september.timestamp() * 1000))
        for found in (ada, bob):
            assert found["period"]["id"] == "2099-09-01T00:00:00Z"
            assert datetime(2099, 10, 1, tzinfo=UTC) == found["period"]["end"]
            tokens = found["meters"]["tokens"]
            assert tokens["recorded"] == tokens["unlinked"] == tokens["used"]
            assert (0, 0, 0) == (tokens["included"], tokens["remaining"], tokens["held"])
        assert 2 == ada["meters"]["tokens"]["overage"]


def test_old_servers_are_named() -> None:
    for server, found in (
        ({"redis_version": "6.2.14"}, "Redis 6.2.14"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "Valkey 7.2.9"),
    ):
        (finding,) = store_servers.find_old_server(server)
        assert finding.problem == f"the server is {found}, which is too old for meterkit"
    for fine in ({"redis_version": "7.0.0"}, {"redis_version": "7.2.4", "valkey_version": "8.0.0"}, {}):
        assert store_servers.find_old_server(fine) == []


def test_a_replica_that_does_not_follow_is_named() -> None:
    for state, follows in (("online,lag=1", True), ("online,lag=11", False), ("wait_bgsave,lag=0", False)):
        replica = f"ip=10.0.0.2,port=6379,offset=1,state={state}"
        found = store_servers.find_replication_faults(
            {"role": "master", "connected_slaves": "1", "slave0": replica}
        )
        assert [finding.check for finding in found] == ([] if follows else ["replication"])


@pytest.mark.parametrize(
    ("meta", "cure"),
    [
        ({}, None),
        ({"format": str(FORMAT), "shards": "128"}, None),
        ({"format": str(FORMAT + 1), "shards": "128"}, "upgrade this process"),
        ({"format": str(FORMAT - 1), "shards": "128"}, "deliver pending usage with that release first"),
        ({"format": str(FORMAT), "shards": "8"}, "set METERKIT_SHARDS=8"),
        ({"color": "red"}, "set METERKIT_KEY_PREFIX to a prefix that no other program uses"),
        ({"format": "x", "shards": "8"}, "set METERKIT_KEY_PREFIX to a prefix that no other program uses"),
    ],
)
def test_a_store_is_of_this_release_and_these_settings(meta: dict[str, str], cure: str | None) -> None:
    found = store_topology.find_shard_mismatch(meta, configured=128, key="mk:meta")
    assert [finding.cure for finding in found] == ([cure] if cure else [])


def test_an_unwritable_file_is_named_even_if_accepted() -> None:
    info = {"aof_enabled": "1", "aof_last_write_status": "err"}
    (found,) = store_servers.find_persistence_faults("WAITAOF", info, appendfsync="always", is_accepted=True)
    assert found.problem.startswith("the server could not write its append-only file")


def test_a_long_queue_and_a_short_interval_are_named() -> None:
    queue = partial(deliveries.find_throughput_limits, customers=0, interval_s=300, limit_per_s=20)
    assert queue(intents=12_000) == []
    (found,) = queue(intents=24_000)
    assert found.problem == "24,000 intents wait; sending them takes 20 min"
    (found,) = deliveries.find_throughput_limits(customers=100_001, intents=0, interval_s=60, limit_per_s=800)
    longer = "set METERKIT_FLUSH_INTERVAL to at least 126, or METERKIT_STRIPE_TRANSPORT to v2-stream"
    assert found.cure == longer


def test_syncs_that_no_worker_makes_are_named_after_a_while() -> None:
    assert queues.find_overdue_syncs(0, 0) == queues.find_overdue_syncs(3, queues.SYNC_OVERDUE_MS) == []
    for count, oldest_ms, said in (
        (1, queues.SYNC_OVERDUE_MS + 1, "1 sync with Stripe has waited for up to 5 min"),
        (1_200, 7_200_000, "1,200 syncs with Stripe have waited for up to 2 h"),
    ):
        (finding,) = queues.find_overdue_syncs(count, oldest_ms)
        assert finding.problem.startswith(f"{said}:")


def test_long_failing_syncs_are_named_with_a_reason() -> None:
    now_ms = 10 * queues.FAILING_MS
    young = queues.FailedSync("cus_young", "timeout", now_ms - queues.FAILING_MS)
    assert queues.find_failing_syncs([], now_ms) == queues.find_failing_syncs([young], now_ms) == []
    old = [queues.FailedSync(f"cus_{nth}", f"reason {nth}", nth) for nth in range(7)]
    (found,) = queues.find_failing_syncs([young, *old], now_ms)
    names = "cus_0, cus_1, cus_2, cus_3, cus_4 and 2 more"
    assert found.problem == f"syncs of {names} have failed for up to 10 h: reason 0"
    assert "within the hour" in found.cure


def test_doctor_prints_the_limits_that_no_route_asks_for(shell: Shell) -> None:
    """F-200."""
    limits = "meters: {output_tokens: {included: 5}, requests: {rate"
    limited = plans_text("doctor_findings").replace("meters: {requests: {rate", limits)
    unasked = limited.replace("usage: openai, ", "")
    for text, said in (
        (limited, ""),
        (unasked, "plans.yaml:20:62 plans.free.meters.output_tokens: no route asks"),
    ):
        (shell.directory / "plans.yaml").write_text(text)
        done = shell.run("doctor", "--redis", "memory://")
        assert (done.code, done.out.partition("\nlimits: ")[2].startswith(said)) == (0, True), done.out
        assert ("\nlimits: " in done.out) == bool(said)


def test_a_full_disk_and_a_spool_near_its_bound_are_found() -> None:
    (finding,) = find_full_disk(Path("/spools"), 3 << 20)
    assert finding.problem.startswith("the disk of /spools has 3 MiB left")
    assert find_full_disk(Path("/spools"), 1 << 30) == []
    seen = [
        SpoolInfo(path=Path(f"/spools/{name}.spool"), state="held", size=size << 20, begun_ms=0)
        for name, size in (("a", 900), ("b", 700))
    ]
    (finding,) = find_growing_spools(seen)
    assert finding.problem.startswith("a.spool: 900 MiB of 1,024 MiB; usage beyond that is lost")
    assert find_growing_spools(seen[1:]) == []
