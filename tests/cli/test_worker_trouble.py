"""A worker goes on where its store dies, ends where Stripe hangs, and does what an app would."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import pytest

from drivers.audited_kit import sqlite_in
from drivers.command_line import TIMEOUT_S, Shell, first_line
from drivers.forked_command import RunningCommand
from drivers.messages import PLANS, SECRET, mailbox, receiving_server
from drivers.plans import completed
from drivers.sampled import whole
from drivers.subscribed_customer import fetched, subscription
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.testing import StripeEmulator
from servers.stores import Server, free_port, spawn_server

pytestmark = pytest.mark.anyio

PEOPLE: Final = """
from meterkit import Contact


async def contact(customer):
    return Contact(f"{customer}@example.org", "Ada")
"""


def delivering(directory: Path, store_url: str, stripe_url: str) -> Shell:
    return Shell(
        directory,
        METERKIT_REDIS_URL=store_url,
        METERKIT_STRIPE_API_KEY="sk_test_1",
        METERKIT_STRIPE_API_BASE=stripe_url,
        METERKIT_FLUSH_INTERVAL="0.1",
    )


async def record(shell: Shell, quantity: int) -> None:
    async with shell.kit(flush_interval=0.1, store_timeout=10.0) as kit:
        await kit.customers.link("acme", "cus_1", force=True)
        await kit.record("acme", "tokens", quantity)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what the worker and the emulator come to, elsewhere."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pass_two_minutes(server: Server) -> None:
    """Have the worker take the server for one that it noticed long ago."""
    for key in server.ask("KEYS", "mk:*:life"):
        server.ask("HSET", key, "noticed_ms", 1)


def hear(worker: RunningCommand, words: str) -> None:
    """Read what a worker says up to a line with some words."""
    assert any(words in line for line in worker.stderr), f"the worker ended without {words!r}"


@pytest.mark.dear("a worker and two servers are started")
async def test_i9_a_worker_delivers_once_its_killed_store_is_back(
    directory: Path, emulator: StripeEmulator
) -> None:
    # F-87: the worker could end at the store's first error.
    port, kept = free_port(), ("--appendonly", "yes", "--appendfsync", "always")
    data = directory / "store"
    data.mkdir()
    with emulator.running() as stripe_url, spawn_server(*kept, port=port, directory=data) as server:
        shell = delivering(directory, server.url, stripe_url)
        await record(shell, 25)
        with shell.running("worker") as worker:
            # Its pass is over, and its leases are given back: else they would have to run out.
            assert "delivered 1" in first_line(worker)
            server.signal(signal.SIGKILL)
            server.process.wait()
            hear(worker, "this flush failed; the next one continues")
            with spawn_server(*kept, port=port, directory=data) as revived:
                await record(shell, 8)
                hear(worker, "has started since the last delivery")

                def has_delivered() -> bool:
                    pass_two_minutes(revived)  # Each time: it says so once, and notices shard after shard.
                    return emulator.accepted("cus_1", "ai_tokens") == 33

                wait_for(has_delivered)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
    assert [int(event.value) for event in emulator.events] == [25, 8]


def events_sent(emulator: StripeEmulator) -> list[Any]:
    """The requests that carried meter events."""
    return [request for request in emulator.requests if "meter_event" in request.path]


@pytest.mark.parametrize("when", [whole("before"), "after"])
async def test_i6_a_worker_with_a_hanging_stripe_ends_and_bills_once(
    directory: Path, emulator: StripeEmulator, when: Literal["before", "after"]
) -> None:
    with emulator.running() as stripe_url, spawn_server("--appendonly", "yes") as server:
        shell = delivering(directory, server.url, stripe_url)
        await record(shell, 25)
        emulator.fail_next("hang", when=when)
        with shell.running("worker") as worker:
            wait_for(lambda: not emulator.faults)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(TIMEOUT_S) == 0
        assert len(events_sent(emulator)) == 1
        done = shell.run("flush", "--all", "--json")
        assert (done.code, done.json["delivered"], done.json["left"]) == (0, 1, 0)
        sent = events_sent(emulator)
        assert len(sent) == 2
        assert len({request.identifier for request in sent}) == 1
    assert emulator.accepted("cus_1", "ai_tokens") == 25


async def test_a_worker_with_a_closed_output_ends(
    directory: Path, store_url: str, emulator: StripeEmulator
) -> None:
    # F-87's sibling: what told the first report ended the flusher, and the process stood.
    with emulator.running() as stripe_url:
        shell = delivering(directory, store_url, stripe_url)
        await record(shell, 25)
        with shell.running("worker", "--json") as worker:
            worker.stdout.close()
            hear(worker, "the worker ended with an error: BrokenPipeError")
            assert worker.wait(TIMEOUT_S) == 1
        # Its only pass may have come before the usage could be sealed.
        assert shell.run("flush", "--all").code == 0
    assert emulator.accepted("cus_1", "ai_tokens") == 25


async def test_every_line_of_a_workers_log_is_an_object(
    directory: Path, store_url: str, emulator: StripeEmulator
) -> None:
    with emulator.running() as stripe_url:
        shell = delivering(directory, store_url, stripe_url)
        await record(shell, 7)
        with shell.running("worker", "--log-format", "json") as worker:
            lines: list[str] = []
            while not lines or '"delivered": 1' not in lines[-1]:
                lines.append(worker.stderr.readline())
                assert lines[-1]
            worker.send_signal(signal.SIGTERM)
            rest = worker.stderr.read().splitlines()
            assert (0, "") == (worker.wait(TIMEOUT_S), worker.stdout.read())
    said = [json.loads(line) for line in lines + rest]
    assert all(["time", "level", "logger", "message"] == list(line)[:4] for line in said)
    passed = next(line for line in said if line.get("delivered"))
    names = ("level", "logger", "sealed", "left")
    assert [passed[name] for name in names] == ["INFO", "meterkit.worker", 1, 0]
    assert said[-1]["message"] == "stopped"


@pytest.mark.dear("a worker is started")
async def test_a_worker_makes_figures_where_processes_deliver_nothing(
    directory: Path, store_url: str
) -> None:
    """A process has a database of its own here, which shows that it makes none."""
    (directory / "plans.yaml").write_text(completed("meters: {pages: {unit: page}}"))
    url = sqlite_in(directory)
    shell = Shell(directory, METERKIT_REDIS_URL=store_url, METERKIT_AUDIT_URL=url, METERKIT_FLUSH="off")
    reader = shell.kit(audit_url=url)
    async with shell.kit(audit_url=f"sqlite:///{directory}/process.db") as process:

        async def has_snapshot(kit: MeterKit = reader) -> bool:
            last, _ = await kit.revenue.look()
            return last is not None

        with shell.running("worker") as worker:
            await eventually(has_snapshot)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(TIMEOUT_S) == 0
        assert not await has_snapshot(process)


@pytest.mark.dear("a worker is started")
async def test_the_worker_sends_messages_by_both_channels(
    tmp_path: Path, store_url: str, emulator: StripeEmulator
) -> None:
    (tmp_path / "people.py").write_text(PEOPLE)
    async with receiving_server() as hook, mailbox() as box:
        (tmp_path / "plans.yaml").write_text(PLANS.format(url=hook.url))
        with emulator.running() as stripe_url:
            shell = delivering(tmp_path, store_url, stripe_url)
            async with shell.kit() as kit:
                await kit.record("acme", "requests", 5)
            shell.environment |= {"METERKIT_NOTIFY_SECRET": SECRET, "METERKIT_SMTP_URL": box.url}
            with shell.running("worker", "--contact", "people:contact") as worker:
                await eventually(lambda: bool(hook.posts and box.mails))
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
        assert ["acme@example.org"] == [mail["To"].addresses[0].addr_spec for mail in box.mails]


async def test_the_worker_enters_what_the_clock_has_changed(
    directory: Path, store_url: str, emulator: StripeEmulator
) -> None:
    async with delivering(directory, store_url, "").kit() as kit:
        now = datetime.now(UTC)
        bounds = {name: now - timedelta(days=1) for name in ("start_ms", "anchor_ms", "created_ms")}
        ends = {"end_ms": now + timedelta(days=29), "cancel_at_ms": now + timedelta(seconds=0.2)}
        await fetched(kit, subscription(**bounds, **ends))
        entered = len(await kit.customers.history("acme"))

        async def is_found() -> bool:
            return len(await kit.customers.history("acme")) > entered

        with emulator.running() as stripe_url:
            shell = delivering(directory, store_url, stripe_url)
            with shell.running("worker") as worker:
                await eventually(is_found)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
        found = (await kit.customers.history("acme"))[entered:]
        assert {entry.cause for entry in found} == {"clock"}
        assert ("status", "active", "canceled") in [(one.kind, one.before, one.after) for one in found]
