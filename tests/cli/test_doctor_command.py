"""What the doctor finds in stores and accounts that lack something, each made to lack it by real means."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest

from drivers.command_line import InProcessShell, Shell
from drivers.subscribed_customer import fetched, subscription
from faults.inner_steps import failing
from meterkit import Finding, Health, MeterKit, StoreError
from meterkit.testing import StripeEmulator
from servers.stores import DOCUMENTED, NEEDED, Server, spawn_server, url_of_user

pytestmark = pytest.mark.anyio

CHECKS = (
    *("server", "rights", "persistence", "durability", "eviction", "replication", "clock", "shards"),
    *("scripts", "keys", "breaker", "degraded"),
    *("pending", "intents", "items", "unlinked", "undelivered", "throughput", "links", "plans"),
    *("closes", "webhooks", "subscriptions", "messages", "audit", "spool"),
)


@pytest.fixture(scope="module")
def kept() -> Iterator[Server]:
    """A server that lacks nothing."""
    with spawn_server("--appendonly", "yes") as server:
        yield server


@pytest.fixture
def sound(kept: Server) -> Server:
    kept.command("FLUSHALL")
    return kept


@pytest.fixture
def stripe_url(emulator: StripeEmulator) -> Iterator[str]:
    with emulator.running() as url:
        yield url


@asynccontextmanager
async def kit_of(directory: Path, url: str, **settings: Any) -> AsyncGenerator[MeterKit]:
    """A kit that is not started: what it would refuse to start with is looked at."""
    kit = MeterKit(directory / "plans.yaml", redis_url=url, flush=False, **settings)
    try:
        yield kit
    finally:
        await kit.store.stop()


async def examined(directory: Path, url: str, **settings: Any) -> Health:
    async with kit_of(directory, url, **settings) as kit:
        return await kit.health()


async def the_finding(directory: Path, url: str, **settings: Any) -> Finding:
    """The only one."""
    (finding,) = (await examined(directory, url, **settings)).findings
    return finding


async def of_check(check: str, directory: Path, url: str, **settings: Any) -> Finding:
    """The only one of a check, where others are to be expected."""
    found = (await examined(directory, url, **settings)).findings
    (finding,) = [finding for finding in found if finding.check == check]
    return finding


def test_where_nothing_is_wrong_nothing_is_found(shell: Shell, sound: Server, stripe_url: str) -> None:
    shell.environment |= {
        "METERKIT_REDIS_URL": sound.url,
        "METERKIT_STRIPE_API_KEY": "sk_test_1",
        "METERKIT_STRIPE_API_BASE": stripe_url,
    }
    done = shell.run("doctor")
    assert (0, "no findings in 27 checks\n", "") == (done.code, done.out, done.err)
    told = shell.run("doctor", "--json").json
    assert ([], {}) == (told["findings"], told["not_looked_at"])
    assert tuple(told["looked_at"]) == (*CHECKS, "stripe")


def test_findings_come_with_cures_and_skipped_checks(shell: Shell) -> None:
    with spawn_server("--maxmemory-policy", "allkeys-lru") as server:
        done = shell.run("doctor", "--redis", server.url)
    assert (1, "") == (done.code, done.err)
    persistence, first_cure, eviction, second_cure, unseen = done.out.splitlines()
    assert persistence.startswith("persistence: the server has neither an append-only file nor a replica")
    assert first_cure.startswith("  cure: set appendonly yes, or,")
    assert eviction.startswith("eviction: the server's maxmemory-policy is allkeys-lru")
    assert second_cure == "  cure: set maxmemory-policy noeviction"
    assert unseen == "not checked: stripe: no Stripe key is set (METERKIT_STRIPE_API_KEY)"


def test_a_store_that_is_down_is_the_only_store_finding(shell: Shell) -> None:
    done = shell.run("doctor", "--redis", "redis://127.0.0.1:1", "--json")
    assert (1, ["server"]) == (done.code, [finding["check"] for finding in done.json["findings"]])
    assert tuple(done.json["not_looked_at"]) == (*CHECKS[1:-1], "stripe")
    assert "0 files in" in done.json["looked_at"]["spool"]


@pytest.mark.parametrize("policy", ["no", "everysec"])
async def test_a_file_that_is_never_known_to_be_on_disk(directory: Path, policy: str) -> None:
    with spawn_server("--appendonly", "yes", "--appendfsync", policy) as server:
        found = (await examined(directory, server.url)).findings
    assert [finding.check for finding in found] == (["persistence"] if policy == "no" else [])
    assert [finding.cure for finding in found] == (["set appendfsync everysec"] if policy == "no" else [])


async def test_a_store_that_forgets_may_be_accepted(directory: Path, store_url: str) -> None:
    assert (await the_finding(directory, store_url)).check == "persistence"
    assert (await examined(directory, store_url, deliver_without_persistence=True)).findings == []


async def test_a_right_that_lacks(directory: Path, sound: Server) -> None:
    url = url_of_user(sound, [command for command in DOCUMENTED if command != "ZADD"])
    finding = await the_finding(directory, url)
    assert finding.check == "rights"
    assert finding.cure == "add it: ACL SETUSER app ~mk:* +zadd"
    assert "no right to ZADD" in finding.problem
    finding = await of_check("rights", directory, url_of_user(sound, ["PING"]))
    assert finding.cure == "add it: ACL SETUSER app +eval"


async def test_what_a_user_may_not_ask_is_not_looked_at(directory: Path, sound: Server) -> None:
    found = await examined(directory, url_of_user(sound, NEEDED))
    (finding,) = found.findings
    assert (finding.check, finding.cure) == ("rights", "add it: ACL SETUSER app +scan")
    assert "`meterkit reconcile`" in finding.problem
    unseen = {"server", "persistence", "eviction", "replication", "keys", "links", "stripe"}
    assert set(found.not_looked_at) == unseen
    assert found.not_looked_at["eviction"] == "the server's user may not ask for INFO"
    assert "scan" in found.not_looked_at["keys"].lower()
    found = await examined(directory, url_of_user(sound, DOCUMENTED))
    assert (found.findings, set(found.not_looked_at)) == ([], {"stripe"})


async def test_a_replica(directory: Path, sound: Server) -> None:
    with spawn_server("--replicaof", f"127.0.0.1 {sound.port}") as replica:
        finding = await of_check("replication", directory, replica.url)
    assert finding.cure == f"name its master, 127.0.0.1:{sound.port}"


async def test_clocks_that_differ(directory: Path, sound: Server) -> None:
    finding = await the_finding(directory, sound.url, clock=lambda: time() + 100)
    assert finding.check == "clock"
    assert finding.problem.endswith(" behind this host's; limits, periods and usage go by the server's")
    finding = await the_finding(directory, sound.url, clock=lambda: time() - 20)
    assert " ahead of this host's; " in finding.problem


async def test_another_number_of_shards(directory: Path, sound: Server) -> None:
    async with kit_of(directory, sound.url, shards=8) as kit:
        await kit.start()
        await kit.stop()
    found = await examined(directory, sound.url)
    (finding,) = found.findings
    assert (finding.check, finding.cure) == ("shards", "set METERKIT_SHARDS=8")
    assert set(found.not_looked_at) == {*CHECKS[-15:-1], "stripe"}
    assert (await examined(directory, sound.url, shards=8)).findings == []


async def test_a_server_without_a_script_cache(directory: Path) -> None:
    with spawn_server("--appendonly", "yes", "--rename-command", "SCRIPT", "") as server:
        found = await examined(directory, server.url)
    assert "scripts" in {finding.check for finding in found.findings}
    (finding,) = [finding for finding in found.findings if finding.check == "scripts"]
    assert "script cache cannot be used" in finding.problem


async def test_keys_that_never_go_away(directory: Path, sound: Server) -> None:
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.consume("acme", "requests")
    assert (await examined(directory, sound.url)).findings == []
    sound.command("SET", "other:odd", "1")
    for place in range(7):
        sound.command("SET", f"mk:{{{place}}}:odd", "1")
    finding = await the_finding(directory, sound.url)
    assert finding.problem.startswith("7 keys have no TTL and should have one: mk:{0}:odd, mk:{1}:odd,")
    assert finding.problem.endswith("mk:{4}:odd and 2 more")


async def record(directory: Path, url: str, *customers: str, linked: bool = True, quantity: int = 25) -> None:
    async with kit_of(directory, url, flush_interval=0.05) as kit, kit:
        for customer in customers:
            if linked:
                await kit.customers.link(customer, f"cus_{customer}")
            await kit.record(customer, "tokens", quantity)


async def test_usage_that_nobody_seals(directory: Path, sound: Server) -> None:
    await record(directory, sound.url, "1", "2")
    assert (await examined(directory, sound.url)).findings == []
    finding = await of_check("pending", directory, sound.url, clock=lambda: time() + 4.1 * 3600)
    assert finding.problem == "usage of 2 customers has been due for up to 4 h and is not being delivered"
    assert "meterkit worker" in finding.cure


async def test_usage_that_is_due_faster_than_events_are_sent(directory: Path, sound: Server) -> None:
    await record(directory, sound.url, "1", "2")
    finding = await of_check("throughput", directory, sound.url, flush_interval=0.05)
    assert "2 customers every 0.05 s makes at least 40 meter events a second" in finding.problem
    # Lines of invoices are no meter events.
    plans = directory / "plans.yaml"
    plans.write_text(plans.read_text().replace(", report: usage", "") + "billing: {usage: lines}\n")
    found = (await examined(directory, sound.url, flush_interval=0.05)).findings
    assert "throughput" not in {one.check for one in found}


async def test_usage_that_stripe_does_not_take(
    directory: Path, sound: Server, emulator: StripeEmulator, stripe_url: str
) -> None:
    settings = {"stripe_api_key": "sk_test_1", "stripe_api_base": stripe_url, "flush_interval": 0.05}
    await record(directory, sound.url, "1")
    emulator.fail_next("error", status=500, times=None)
    async with kit_of(directory, sound.url, **settings) as kit, kit:
        assert (await kit.flush(everything=True, timeout_s=0.1)).left == 1
    emulator.clear_faults()
    assert (await examined(directory, sound.url, **settings)).findings == []
    finding = await of_check("intents", directory, sound.url, **settings, clock=lambda: time() + 4.1 * 3600)
    assert finding.problem.startswith("an intent of customer 1 is 4 h old")
    await record(directory, sound.url, "unknown", quantity=1_000)
    async with kit_of(directory, sound.url, **settings) as kit, kit:
        assert (await kit.flush(everything=True, timeout_s=120)).dead == 1
    finding = await of_check("dead", directory, sound.url, **settings)
    assert finding.problem.startswith("1,000 of tokens in 1 intent, of unknown: ")


async def test_a_damaged_record_is_a_finding_that_names_it(
    directory: Path, sound: Server, stripe_url: str
) -> None:
    async with MeterKit(directory / "plans.yaml", redis_url=sound.url, flush=False) as kit:
        await kit.customers.set_plan("acme", "pro")
        await kit.customers.link("bob", "cus_typo", force=True)
        admin, keys = await kit.store.admin(), kit.store.keys.customer("acme")
        await admin.ask(admin.client.hset(keys.state, "data", "x"))
    settings = {"stripe_api_key": "sk_test_1", "stripe_api_base": stripe_url}
    found = await of_check("plans", directory, sound.url, **settings)
    assert "the record of customer 'acme' cannot be read" in found.problem
    # What else is wrong is found beside it.
    found = await of_check("links", directory, sound.url, **settings)
    assert "linked to Stripe customers that do not exist: bob (cus_typo)" in found.problem


async def test_a_plan_that_the_plans_file_has_lost(directory: Path, sound: Server) -> None:
    """Only one log line said it."""
    async with kit_of(directory, sound.url) as kit, kit:
        for customer in ("acme", "globex"):
            await kit.customers.set_plan(customer, "pro")
    plans = directory / "plans.yaml"
    plans.write_text(plans.read_text().replace("  pro:", "  team:"))
    finding = await the_finding(directory, sound.url)
    assert finding.problem.startswith("plan 'pro' is not in ")
    assert "; its customers keep its terms: acme, globex" in finding.problem
    assert "beside the one that replaces it, and run `meterkit plans migrate FROM TO` before" in finding.cure
    async with kit_of(directory, sound.url) as kit, kit:
        for customer in ("acme", "globex"):
            await kit.customers.set_plan(customer, "team")
    assert (await examined(directory, sound.url)).findings == []


async def test_f_305_a_currency_that_the_plans_file_has_lost(directory: Path, sound: Server) -> None:
    async with kit_of(directory, sound.url) as kit, kit:
        await fetched(kit, subscription(currency="eur"), customer="acme")
    finding = await the_finding(directory, sound.url)
    assert "has no prices in EUR, in which these customers are billed: acme; they keep" in finding.problem
    assert finding.cure == "add eur to `currency`, with its amounts"


async def test_an_override_that_the_plans_file_has_lost(
    directory: Path, sound: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The customer had the plan's quantities instead, which nothing said, and no one could take it back."""
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.override("acme", {"tokens": {"included": 500}}, features=["reports"])
    plans = directory / "plans.yaml"
    text = plans.read_text()
    plans.write_text(text.replace("tokens:", "words:").replace("features: [reports]", "features: [other]"))
    of_meter, of_feature = (await examined(directory, sound.url)).findings
    assert {of_meter.check, of_feature.check} == {"plans"}
    problem = "an override of customers acme has no effect: tokens: there is no meter 'tokens'"
    assert problem in of_meter.problem
    assert of_feature.problem.endswith("no effect: reports: there is no such feature")
    shell = InProcessShell(directory, METERKIT_REDIS_URL=sound.url)
    assert "acme: an override has no effect: tokens: " in shell.run("customers", "show", "acme").err
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.consume("acme", "requests", 1)
    said = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert len(said) == 1, said
    assert "an override of customer 'acme' has no effect, as " in said[0]
    assert shell.run("customers", "override", "acme", "pages", "--clear").code == 1  # It never had one.
    assert shell.run("customers", "override", "acme", "tokens", "--clear").code == 0
    assert shell.run("customers", "override", "acme", "--clear").code == 0
    assert (await examined(directory, sound.url)).findings == []


async def test_a_link_that_was_not_made_to_its_end(directory: Path, sound: Server) -> None:
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.link("acme", "cus_1")
        assert (await kit.health()).findings == []
        # So it is after a process that linked was killed between its claim and the customer's state.
        sound.command("SET", kit.store.keys.link("cus_9"), "globex\n0123456789abcdef")
    finding = await the_finding(directory, sound.url)
    assert finding.problem.startswith("cus_9 is claimed for customer globex, who is not linked to it")
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.link("globex", "cus_9")
    assert (await examined(directory, sound.url)).findings == []


async def test_an_interrupted_unlink_is_repeated(directory: Path, sound: Server) -> None:
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.link("acme corp", "cus_1")
        key = kit.store.keys.link("cus_1")
        claim = sound.command("GET", key)
        await kit.customers.unlink("acme corp")
        sound.command("SET", key, claim)  # As where its process was killed before it withdrew the claim.
    assert (await the_finding(directory, sound.url)).cure.endswith("`meterkit customers unlink 'acme corp'`")
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.unlink("acme corp")
    assert (await examined(directory, sound.url)).findings == []


async def test_an_interrupted_deletion_is_repeated(directory: Path, sound: Server) -> None:
    """The cure was to link the customer again."""
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.link("acme corp", "cus_1")
        with failing("a deletion goes on behind its script"), pytest.raises(StoreError):
            await kit.customers.delete("acme corp")
    finding = await the_finding(directory, sound.url)
    assert finding.problem.endswith("deleting the customer was interrupted")
    assert finding.cure == "repeat `meterkit customers delete 'acme corp'`"
    async with kit_of(directory, sound.url) as kit, kit:
        await kit.customers.delete("acme corp")
    assert (await examined(directory, sound.url)).findings == []


async def test_a_meter_that_does_not_add_up(directory: Path, sound: Server) -> None:
    other = StripeEmulator()
    other.add_meter("ai_tokens", formula="last", time_window="day")
    with other.running() as url:
        finding = await the_finding(directory, sound.url, stripe_api_key="sk_test_1", stripe_api_base=url)
    assert "at Stripe aggregates by last per day, and meterkit's events must be summed" in finding.problem
    assert finding.cure.startswith("make a meter with formula sum")


async def test_a_key_that_stripe_refuses(
    directory: Path, sound: Server, emulator: StripeEmulator, stripe_url: str
) -> None:
    settings = {"stripe_api_key": "sk_test_1", "stripe_api_base": stripe_url}
    emulator.fail_next("error", status=401, path="*")
    finding = await the_finding(directory, sound.url, **settings)
    assert finding.cure.startswith("set METERKIT_STRIPE_API_KEY")
    emulator.fail_next("error", status=403, path="*")
    found = await examined(directory, sound.url, **settings)
    assert (found.findings, list(found.not_looked_at)) == ([], ["stripe"])
    assert "the Stripe key may not list meters" in found.not_looked_at["stripe"]
    settings["stripe_api_base"] = "http://127.0.0.1:1"
    finding = await the_finding(directory, sound.url, **settings)
    assert finding.problem == (
        "the meters at Stripe cannot be read: no connection: http://127.0.0.1:1 (ClientConnectorError)"
        "; check that this host reaches that address (METERKIT_STRIPE_API_BASE)"
    )
