"""The store where sentinels name the master: found by what most of them say, and anew after a failover."""

# Internals: a pure table of what sentinels say.

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import timedelta
from time import time
from typing import Any

import pytest

from drivers.changing_servers import CUSTOMERS, recorded, under_load
from drivers.delivery import CATALOG, desk
from faults.refusals import FakeRedis, eventually, stopped
from meterkit import MeterKit, StoreError
from meterkit.catalog import loads
from meterkit.redis.discovery import master_of
from meterkit.redis.url import parse_redis_url
from servers.clusters import SERVICE, Watched, spawn_watched
from servers.stores import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.dear("a master, a replica and sentinels of its own")]

LIVE_KEY = "sk_live_" + "51SECRETsecretSECRETsecret"
# What a sentinel says: where the master is, or nothing.
OLD, NEW, AWAY, SILENT, STRANGE, REFUSED = 7001, 7002, "away", "silent", "strange", "refused"
INCLUDED = 40
# A store that is slow on a busy machine is not away. Tests of what waits for the timeout set a short one.
PATIENT_S = 60.0
LIMITED = f"""
schema: 1
currency: usd
default_plan: free
meters: {{requests: {{unit: request}}}}
routes: [{{match: "*", consume: {{requests: 1}}}}]
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{requests: {{included: {INCLUDED}, overage: deny}}}}
"""


def kit_of(url: str, **settings: Any) -> MeterKit:
    settings = {"shards": 4, "store_timeout": PATIENT_S} | settings
    return MeterKit(CATALOG, redis_url=url, flush=False, **settings)


def replaced(watched: Watched, old: int) -> bool:
    return watched.master.port != old and watched.master.command("ROLE")[0] == "master"


async def test_i11_a_failover_under_load_says_how_much_it_lost() -> None:
    with spawn_watched(down_after_ms=300) as watched:
        async with kit_of(watched.url, store_timeout=2.0) as kit:
            async with under_load(kit) as load:
                await load.of_each()
                dead = watched.master
                dead.signal(signal.SIGKILL)
                dead.process.wait()
                await load.of_each()
            assert watched.master is not dead
            found, lost = await recorded(kit), kit.store.lanes[asyncio.get_running_loop()].lost
            assert sum(found.values()) + lost == load.allowed.total()
            assert all(found[customer] <= load.allowed[customer] for customer in CUSTOMERS)
            # I9: nobody waits for longer than the store may take to answer, and to be found again.
            assert load.slowest_s < 4 * kit.settings.store_timeout


async def test_i3_a_planned_failover_keeps_the_limit() -> None:
    with spawn_watched() as watched:
        settings: dict[str, Any] = {"shards": 4, "store_timeout": PATIENT_S}
        async with MeterKit(loads(LIMITED), redis_url=watched.url, flush=False, **settings) as kit:
            allowed, over = dict.fromkeys(CUSTOMERS, 0), set[str]()

            async def use(customer: str) -> None:
                while customer not in over:
                    try:
                        if (await kit.consume(customer, "requests")).allowed:
                            allowed[customer] += 1
                        else:
                            over.add(customer)
                    except StoreError:
                        pass  # Not allowed by the store's word: nobody is served for it here.
                    await asyncio.sleep(0.005)

            using = [asyncio.create_task(use(customer)) for customer in CUSTOMERS]
            old = watched.master.port
            await eventually(lambda: sum(allowed.values()) > len(CUSTOMERS))
            watched.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE)
            await eventually(lambda: replaced(watched, old))
            await asyncio.gather(*using)
            lost = kit.store.lanes[asyncio.get_running_loop()].lost
            assert sum(allowed.values()) <= INCLUDED * len(CUSTOMERS) + lost
            assert sum(allowed.values()) >= (INCLUDED - 2) * len(CUSTOMERS)


async def test_i5_i6_what_was_sent_before_a_failover_is_not_sent_again() -> None:
    with spawn_watched("--appendonly", "yes", down_after_ms=300) as watched:
        async with desk(watched.url, shards=4) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            assert (await at.flush(everything=True)).delivered == 1
            await at.kit.record("acme", "requests", 8)
            dead = watched.master
            dead.signal(signal.SIGKILL)
            dead.process.wait()
            await eventually(lambda: replaced(watched, dead.port))
            await at.kit.record("acme", "requests", 3)
            # Another server: what waits is sent once Stripe has said that it has nothing of it.
            assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
            at.clock.advance(timedelta(minutes=2))
            report = await at.flush(everything=True)
            counts = (await at.kit.usage("acme"))["meters"]["requests"]
            assert (report.left, at.accepted("acme")) == (0, counts["recorded"])
            lost = at.kit.store.lanes[asyncio.get_running_loop()].lost
            assert (counts["recorded"], lost) == (17, 0)


async def test_i6_nothing_is_sent_that_the_replica_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The old master's disk alone has it: what is promoted meanwhile would bill it again.
    with spawn_watched("--appendonly", "yes") as watched:
        replica = next(server for server in watched.servers if server is not watched.master)
        async with desk(watched.url, shards=4, stripe_api_key=LIVE_KEY) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            with stopped(replica), monkeypatch.context() as hurried:
                hurried.setattr("meterkit.redis.durability._WAIT_MS", 300)
                with pytest.raises(StoreError, match=r"did not make a lease durable within 0\.3 s"):
                    await at.flush(everything=True, timeout_s=0)
                watched.master.command("CLIENT", "KILL", "TYPE", "replica")
                with pytest.raises(StoreError, match="has no replica that follows it now"):
                    await at.flush(everything=True, timeout_s=0)
                assert at.emulator.requests == ()


@pytest.mark.parametrize(
    "words",
    [
        # One that was cut off knows of no failover; one that is away, or new, says nothing.
        (OLD, NEW, NEW),
        (AWAY, NEW, NEW),
        (STRANGE, NEW, NEW),
        (REFUSED, NEW, NEW),
        (AWAY, AWAY, NEW),
        # Those that stay silent are waited for, and then the others count.
        (OLD, SILENT, NEW, SILENT, NEW),
    ],
)
async def test_what_most_of_those_say_that_answer_is_believed(words: tuple[int | str, ...]) -> None:
    def sentinel(word: int | str) -> FakeRedis:
        named = b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n%a\r\n" % word
        reply = {SILENT: b"", STRANGE: b"*-1\r\n", REFUSED: b"-NOPERM no\r\n"}.get(str(word), named)
        return FakeRedis(lambda asked: reply if asked[0] == b"SENTINEL" else b"+OK\r\n")

    async with AsyncExitStack() as stack:
        ports = list[int]()
        for word in words:
            found = free_port() if word == AWAY else (await stack.enter_async_context(sentinel(word))).port
            ports.append(found)
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        address = parse_redis_url(f"redis+sentinel://{hosts}/{SERVICE}")
        async with asyncio.timeout(240):
            master = await master_of(address, timeout_s=1.0 if SILENT in words else PATIENT_S, clock=time)
        assert master.port == NEW


async def test_i10_sentinels_may_have_a_password_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    with spawn_watched(sentinels=1, password="S3CRET") as watched:
        async with kit_of(f"{watched.url}?sentinel_password=S3CRET") as kit:
            assert (await kit.consume("acme", "requests")).allowed
            assert (await kit.usage("acme"))["meters"]["requests"]["recorded"] == 1
        wrong = f"{watched.url}?sentinel_password=S3CRETwrong"
        async with kit_of(wrong, start_timeout=0.2, store_timeout=2.0) as kit:
            with pytest.raises(StoreError, match="WRONGPASS") as caught:
                await kit.consume("acme", "requests")
        assert "S3CRET" not in f"{caught.value!r}{kit.store.address!r}{caplog.text}"
