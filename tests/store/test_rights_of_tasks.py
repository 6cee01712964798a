"""Each background task and each command runs as a user with the rights that the documentation prints."""

# Internals: one turn of each background task.

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import typer.main
from typer.testing import CliRunner

from drivers.audited_kit import sqlite_in
from drivers.delivery import STRIPE_KEY
from drivers.emulated_account import reached
from drivers.kit_parts import finish, tasks_of
from drivers.messages import SECRET
from drivers.webhooks import NOW, hooked, hooked_kit
from meterkit import Contact, MeterKit, StorageOver
from meterkit.catalog import loads
from meterkit.cli.app import app
from meterkit.customers.states import sweep_scheduled_transitions
from meterkit.errors import MeterkitError
from meterkit.insights.audit.draining import read_shard_backlogs
from meterkit.storage.aws import ListingPage
from meterkit.store.task_lease import StorageUpkeep
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.webhooks.periodic_sync import EventSweeper
from meterkit.subscriptions.webhooks.sync_queue import SyncQueue
from meterkit.testing import Clock, StripeEmulator
from servers.stores import Server, spawn_server, url_of_user

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
  tokens:   {unit: token, stripe: {event_name: ai_tokens}}
  disk:     {unit: byte, kind: gauge}
storage: {gauge: disk, objects: {bucket: uploads, key: "{customer}/{path:path}"}}
notify:
  webhook: {url: "http://127.0.0.1:1/hook", events: [storage.over, period.summary, usage.spike]}
  email: {events: [storage.over], from: billing@example.com}
routes:
  - {match: "POST /webhooks/stripe", exempt: true}
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 1_000, overage: deny}
      disk: {included: 1000, overage: {percent: 10, grace: 7d}}
      tokens: {included: 0, overage: deny}
  pro:
    rank: 10
    price: {amount_cents: 1000, interval: month, stripe_price: price_pro}
    meters: {tokens: {included: 10, overage: bill}, disk: {included: 1000, overage: {percent: 10, grace: 7d}}}
    addons: [pack]
addons:
  pack: {price: {amount_cents: 500, interval: month}, meters: {tokens: {included: 10}}}
"""
NEEDS_NO_STORE: Final = {
    *("demo", "check", "schema", "routes", "stripe emulator", "stripe sync"),
    "worker",  # It runs the background tasks, until it is stopped.
}
# In this order.
COMMANDS: Final = """
customers: link acme cus_acme; set-plan bob pro; override acme tokens included=20; set-status bob active
customers: show acme; list; history acme
grants: add acme tokens=10 --id gift; list acme; ledger acme; void acme gift
usage: acme; --all
doctor:
flush: --all
correct: acme tokens=1 --reason typo --id fix --yes
outbox: list; show unknown; park unknown --reason test; redrive --all --reason test
outbox: drop unknown --reason test --yes
reconcile: ; --repair --all
recover: --yes
audit: rebuild; verify
statement: acme
revenue: ; spend 2026-10-01=5
simulate: --plans plans.yaml
storage: recalculate
webhooks: list; redrive
notify: list; redrive; preview storage.over
import: stripe --dry-run
plans: migrate pro free --dry-run
subscriptions: show acme; preview acme --plan pro; change acme pro; seats acme 2; addons acme pack=1
subscriptions: cancel acme; resume acme; invoices acme; sync acme; check; repair acme
customers: unlink bob; delete acme --cancel
"""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with an append-only file."""
    with spawn_server("--appendonly", "yes") as server:
        yield server


def refused(server: Server) -> set[str]:
    """Commands that the server has refused a user since the last call."""
    entries: list[dict[str, Any]] = server.command("ACL", "LOG")
    server.command("ACL", "LOG", "RESET")
    # redis-py names itself at each connection, and does without where it may not.
    return {entry["object"] for entry in entries} - {"client|setinfo"}


class NoObjects:
    """An object store whose buckets are empty."""

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        """One page with nothing on it."""
        del bucket, prefix
        yield ListingPage([], None)


def turns_of(
    kit: MeterKit, clock: Clock, tasks: Mapping[str, Any]
) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """One turn of each background task, by the task's name."""
    store = kit.store
    works: dict[str, Any] = {name: getattr(task, "__self__", None) for name, task in tasks.items()}

    async def courier(name: str) -> None:
        await works[name].collect()
        await works[name].deliver()

    async def summaries() -> None:
        await works["notify summaries"].check()
        clock.advance(timedelta(days=35))
        await kit.record("acme", "requests", 1)
        await works["notify summaries"].check()

    async def bound() -> None:
        await works["audit bound"].fold(await read_shard_backlogs(store), 0)

    async def own_prices() -> None:
        cheaper = {"tokens": {"overage": {"bill": {"per": 10, "amount_cents": 1}}}}
        clock.advance(timedelta(minutes=10))  # Stripe has counted by then what it has accepted.
        await kit.customers.override("acme", cheaper, until=clock.now() + timedelta(hours=1))
        clock.advance(timedelta(hours=1))
        await works["own prices"].settle_due()

    async def sweep() -> None:
        api = StripeApi(kit.settings)
        await EventSweeper(store, lambda: api, SyncQueue(store)).run_once()
        await api.close()

    async def degraded() -> None:
        store.degraded.note()
        await store.degraded.send()

    async def queue() -> None:
        await StorageUpkeep(store).record_queue_read("https://sqs.example/queue")
        put: dict[str, Any] = {"eventVersion": "2.1", "eventName": "ObjectCreated:Put"}
        put["eventTime"] = NOW.isoformat().replace("+00:00", "Z")
        stored = {"key": "acme/a", "size": 2000, "sequencer": "01"}
        put |= {"s3": {"bucket": {"name": "uploads"}, "object": stored}}
        await kit.storage.count(json.dumps({"Records": [put]}))

    return {
        "storage queue": queue,
        "notify storage": works["notify storage"].check,
        "notify spikes": works["notify spikes"].check,
        "notify webhook": lambda: courier("notify webhook"),
        "notify email": lambda: courier("notify email"),
        "events": partial(finish, kit),
        "storage": lambda: kit.storage.recalculate(lister=NoObjects()),
        "audit bound": bound,
        "audit": works["audit"].drain_under_lease,
        "revenue": works["revenue"].snapshot,
        "overview": works["overview"].snapshot,
        "flush": lambda: kit.flush(everything=True),
        "webhooks": kit.webhooks.work_off,
        "sweep": sweep,
        "changes": kit.subscriptions.retry_accepted,
        "own prices": own_prices,
        "scheduled transitions": lambda: sweep_scheduled_transitions(store),
        "degraded": degraded,
        "notify summaries": summaries,
        "closes": works["closes"].run_once,
    }


async def reach(customer: str) -> Contact:
    return Contact(f"{customer}@example.com")


@pytest.mark.dear("a turn of each background task")
@pytest.mark.anyio
async def test_documented_rights_suffice_for_each_background_task(server: Server, tmp_path: Path) -> None:
    """F-20j: storage notices, period summaries, snapshots and recalculations failed for want of SCAN."""
    over: list[StorageOver] = []
    refused(server)
    given: dict[str, Any] = {
        "catalog": loads(PLANS),
        "contact": reach,
        "audit_url": sqlite_in(tmp_path),
        "notify_secret": SECRET,
        "smtp_url": "smtp://127.0.0.1:1",
    }
    url = url_of_user(server)
    async with hooked(url, **given) as at:
        at.emulator.add_meter("ai_tokens")
        at.customer()
        await at.subscribe()
        await at.settle()
        for _ in range(2):
            await at.kit.record("acme", "tokens", 15, event_id="event-1")
        await at.kit.record("acme", "tokens", 15)
        assert (await at.kit.consume("acme", "requests")).allowed
        async with at.kit.reserve("acme", {"requests": 2}) as reservation:
            await reservation.capture({"requests": 1})
        # Not started: the test runs each task.
        kit = hooked_kit(url, at.url, at.clock, **given, flush=True)

        kit.on("storage.over")(over.append)
        tasks: dict[str, Any] = {**tasks_of(kit), "degraded": None}  # Each kit has that.
        tasks |= kit.storage.worker_tasks("https://sqs.example/queue")
        turns = turns_of(kit, at.clock, tasks)
        assert set(turns) == set(tasks), "a background task is not run here"
        for name, turn in turns.items():
            await turn()
            assert (name, refused(server)) == (name, set())
        await finish(kit)
        assert [event.customer for event in over] == ["acme"]
        await kit.stop()
    assert refused(server) == set()


async def subscribe_and_record(redis_url: str, stripe_url: str, directory: Path) -> None:
    """Have a subscription at Stripe, and usage that the audit log has, too."""
    settings: dict[str, Any] = {"audit_url": sqlite_in(directory), "flush": False, "shards": 4}
    async with (
        reached(stripe_url, key=STRIPE_KEY, timeout_s=300.0) as client,
        MeterKit(loads(PLANS), redis_url=redis_url, **settings) as kit,
    ):
        made: Any = {"customer": "cus_acme", "metadata": {"meterkit_customer": "acme"}}
        await client.v1.subscriptions.create_async(made | {"items": [{"price": "price_pro"}]})
        await kit.record("acme", "requests", 30)
        await kit.gauges.set("acme", "disk", 5)


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """All commands of the command line, with the words that lead to each."""
    parts: dict[str, Any] = getattr(command, "commands", {})
    if not parts:
        yield " ".join(words)
    for name, part in parts.items():
        yield from leaves(part, (*words, name))


@pytest.mark.dear("runs each command once")
@pytest.mark.whole
def test_the_documented_rights_are_enough_for_each_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [line.split(":", 1) for line in COMMANDS.split("\n")[1:-1]]
    lines = [f"{group} {words.strip()}" for group, given in groups for words in given.split(";")]
    known = set(leaves(typer.main.get_command(app)))
    run = {name for name in known if any(f"{line} ".startswith(f"{name} ") for line in lines)}
    assert run == known - NEEDS_NO_STORE, "a command is not run here"
    refused(server)
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_price(1000, price_id="price_pro", product=emulator.add_product("Pro"))
    emulator.add_price(500, lookup_key="meterkit:addon:pack")
    emulator.add_payment_method(emulator.add_customer("cus_acme"), "pm_card_visa")
    (tmp_path / "plans.yaml").write_text(PLANS)
    monkeypatch.chdir(tmp_path)
    with emulator.running() as url:
        redis_url = url_of_user(server)
        environment = f"""
            METERKIT_REDIS_URL={redis_url} METERKIT_SHARDS=4 METERKIT_AUDIT_URL={sqlite_in(tmp_path)}
            METERKIT_STRIPE_API_KEY={STRIPE_KEY} METERKIT_STRIPE_API_BASE={url}
            METERKIT_NOTIFY_SECRET={SECRET} METERKIT_STORAGE_ENDPOINT=http://127.0.0.1:1
            AWS_EC2_METADATA_DISABLED=true
        """
        for setting in environment.split():
            monkeypatch.setenv(*setting.split("=", 1))
        asyncio.run(subscribe_and_record(redis_url, url, tmp_path))
        for line in lines:
            outcome = CliRunner().invoke(app, shlex.split(line))
            failed = outcome.exception
            assert failed is None or isinstance(failed, (SystemExit, MeterkitError)), line
            assert (line, refused(server)) == (line, set())
