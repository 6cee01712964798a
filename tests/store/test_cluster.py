"""The store on a cluster: every shard on one node, slots that move, nodes that die."""

# Internals: which node has a shard shows nowhere else.

# pyright: reportPrivateUsage=false
# What the lane has of nodes is looked at where nothing else shows it.

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from drivers.changing_servers import CUSTOMERS, recorded, under_load
from drivers.delivery import CATALOG, desk
from faults.proxy import TcpProxy
from faults.refusals import eventually, loop_clock, open_sockets, stopped
from meterkit import MeterKit, SettingsError, StoreError
from meterkit.redis.discovery import Slots, redirection_of, slots_of
from meterkit.redis.server import CLUSTER_COMMANDS, OPTIONAL_COMMANDS, acl_rules
from meterkit.redis.url import Place
from servers.clusters import Cluster, spawn_cluster
from servers.store_users import NEEDED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.redis.cluster_lane import ClusterLane
    from servers.certificates import Authority
    from servers.stores import Server

pytestmark = [pytest.mark.anyio, pytest.mark.dear("nodes of its own")]

SHARDS = 16
# A store that is slow on a busy machine is not away. Tests of what waits for the timeout set a short one.
PATIENT_S = 60.0
LIVE_KEY = "sk_live_" + "51SECRETsecretSECRETsecret"
OF_A_CLUSTER = tuple(command for (command,) in CLUSTER_COMMANDS)


def kit_of(url: str, **settings: Any) -> MeterKit:
    settings = {"shards": SHARDS, "store_timeout": PATIENT_S} | settings
    return MeterKit(CATALOG, redis_url=url, flush=False, **settings)


def errors(cluster: Cluster, code: str) -> int:
    """How often nodes have answered with an error of this code."""
    stats: list[dict[str, Any]] = cluster.each("INFO", "errorstats")
    return sum(int(stat.get(f"errorstat_{code}", {}).get("count", 0)) for stat in stats)


def of_shards(kit: MeterKit, shards: set[int]) -> tuple[str, ...]:
    """The customers of some shards."""
    return tuple(customer for customer in CUSTOMERS if kit.store.keys.customer(customer).shard in shards)


def shards_of(kit: MeterKit, server: Server, cluster: Cluster) -> set[int]:
    names = {shard: kit.store.keys.shard(shard, "x") for shard in range(SHARDS)}
    return {shard for shard, name in names.items() if cluster.owner(name) is server}


def test_a_node_without_a_name_is_the_one_that_was_asked() -> None:
    asked = Place("10.0.0.1", 7000)
    told = [[0, 5, [b"", 7000, b"id"], [b"10.0.0.9", 1, b"replica"]], [6, 9, [b"10.0.0.2", 7001, b"id"]]]
    slots = slots_of(told, asked)
    assert slots == Slots(((0, 5, asked), (6, 9, Place("10.0.0.2", 7001))))
    assert (slots.of(5), slots.of(6), slots.of(10)) == (asked, Place("10.0.0.2", 7001), None)
    assert redirection_of("MOVED 12 :7001", asked) == Place("10.0.0.1", 7001)
    assert redirection_of("ASK 12 ::1:7001", asked) == Place("::1", 7001)


async def test_i1_nodes_share_customers_with_one_connection_each(cluster: Cluster) -> None:
    def open_at_each() -> list[set[str]]:
        # Ids: connections of the tests before may still be closing, so their number proves nothing.
        each = cluster.each("CLIENT", "LIST", "TYPE", "normal")
        return [set(re.findall(r"^id=(\d+)", listed, re.MULTILINE)) for listed in each]

    before = open_at_each()
    async with kit_of(cluster.url) as kit:
        for customer in CUSTOMERS:
            assert (await kit.consume(customer, "requests", 2)).allowed
        assert await recorded(kit) == dict.fromkeys(CUSTOMERS, 2)
        assert all(size > 2 for size in cluster.each("DBSIZE"))
        lane = cast("ClusterLane", kit.store.lanes[asyncio.get_running_loop()])
        connections = {id(lane.at(shard)) for shard in range(SHARDS)}
        assert len(connections) == 3
        own = [now - known for now, known in zip(open_at_each(), before, strict=True)]
        assert all(len(ids) >= 2 for ids in own)  # the kit's, and the one that asks
    await eventually(lambda: not any(now & ids for now, ids in zip(open_at_each(), own, strict=True)))


async def test_scripts_that_are_flushed_are_loaded_again(cluster: Cluster) -> None:
    async with kit_of(cluster.url) as kit:
        for _ in range(2):
            cluster.each("SCRIPT", "FLUSH")
            for customer in CUSTOMERS:
                assert (await kit.consume(customer, "requests")).allowed
        assert await recorded(kit) == dict.fromkeys(CUSTOMERS, 2)


async def test_other_shards_than_the_cluster_has_are_refused(cluster: Cluster) -> None:
    async with kit_of(cluster.url):
        pass
    with pytest.raises(SettingsError, match=r"has 16 shards and METERKIT_SHARDS is 8"):
        async with kit_of(cluster.url, shards=8):
            pass


async def test_i3_i5_a_slot_that_moves_under_load_counts_each_once() -> None:
    with spawn_cluster() as cluster:
        async with kit_of(cluster.url) as kit:
            shard = kit.store.keys.customer(CUSTOMERS[0]).shard
            key = kit.store.keys.shard(shard, "x")
            source = cluster.owner(key)
            to = next(node for node in cluster.masters if node is not source)
            # One whose keys are all there is decided where the others wait for the end of the move.
            await kit.customers.set_plan(CUSTOMERS[0], "pro")
            async with under_load(kit) as load:
                await load.of_each()
                with cluster.moving(key, to) as move:
                    await load.more(100)
                    while move():
                        await load.more(20)
                    await load.more(100)
                await load.of_each()
            assert not load.unknown
            assert await recorded(kit) == dict(load.allowed)
            assert cluster.owner(key) is to
            assert min(errors(cluster, code) for code in ("MOVED", "ASK")) > 0
            # All that there is was found by what the kit now knows, and by a kit that comes new.
            moved = of_shards(kit, {shard})
            before = errors(cluster, "MOVED")
            for customer in moved:
                assert (await kit.consume(customer, "requests")).allowed
            assert errors(cluster, "MOVED") == before
            async with kit_of(cluster.url) as other:
                for customer in moved:
                    counts = (await other.usage(customer))["meters"]["requests"]
                    assert (counts["recorded"], counts["held"]) == (load.allowed[customer] + 1, 0)


async def test_a_key_that_has_moved_ahead_of_its_slot_is_asked_for() -> None:
    with spawn_cluster() as cluster:
        async with kit_of(cluster.url) as kit:
            await kit.customers.link("acme", "cus_acme")
            key = kit.store.keys.customer("acme").state
            to = next(node for node in cluster.masters if node is not cluster.owner(key))
            with cluster.moving(key, to) as move:
                assert move() > 0
                before = errors(cluster, "ASK")
                # One key each: nothing keeps them from being executed where they are.
                assert (await kit.customers.get("acme")).stripe_customer == "cus_acme"
                producer = kit.store.keys.producer(kit.store.keys.customer("acme").shard, "nobody")
                lane = cast("ClusterLane", kit.store.lanes[asyncio.get_running_loop()])
                assert await lane.fence_at(kit.store.keys.customer("acme").shard, producer) == -1
                assert errors(cluster, "ASK") > before
            assert to.command("EXISTS", producer) == 1


async def test_i9_other_shards_are_served_while_a_node_is_down() -> None:
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, store_timeout=2.0) as kit:
            dead, *others = cluster.masters
            elsewhere = set[int]().union(*(shards_of(kit, node, cluster) for node in others))
            living, gone = of_shards(kit, elsewhere), of_shards(kit, set(range(SHARDS)) - elsewhere)
            assert living
            assert gone
            for customer in CUSTOMERS:
                assert (await kit.consume(customer, "requests")).allowed
            loop = asyncio.get_running_loop()
            with stopped(dead):
                # On its way to a node that does not answer; what it came to is found out there, and once.
                await kit.record(gone[0], "requests", 5)
                async with loop_clock() as passed_s:
                    with pytest.raises(StoreError):
                        await kit.consume(gone[0], "requests")
                    assert passed_s() < 2 * kit.settings.store_timeout
                for customer in living:
                    assert (await kit.consume(customer, "requests")).allowed
                await eventually(lambda: not _reaches(kit, gone[0]))
                async with loop_clock() as passed_s:
                    for _ in range(20):
                        with pytest.raises(StoreError):
                            await kit.consume(gone[0], "requests")
                    assert passed_s() < kit.settings.store_timeout
            await eventually(lambda: _reaches(kit, gone[0]))
            await eventually(lambda: kit.store.lanes[loop].unsettled == 0)
            found = await recorded(kit)
            assert found[gone[0]] == 6
            assert {customer: found[customer] for customer in living} == dict.fromkeys(living, 2)


def _reaches(kit: MeterKit, customer: str) -> bool:
    lane = cast("ClusterLane", kit.store.lanes[asyncio.get_running_loop()])
    return lane.at(kit.store.keys.customer(customer).shard) is not None


async def test_i11_a_replica_takes_over_where_a_node_is_killed() -> None:
    options = ("--cluster-require-full-coverage", "no")  # The others go on, and do not say that one is gone.
    with spawn_cluster(*options, replicas=True, node_timeout_ms=1_000) as cluster:
        async with kit_of(cluster.url) as kit:
            dead = cluster.masters[0]
            gone = of_shards(kit, shards_of(kit, dead, cluster))
            await kit.usage(gone[0])  # So that administration knows the node, too.
            async with under_load(kit) as load:
                await load.of_each()
                dead.signal(signal.SIGKILL)
                dead.process.wait()
                await load.of_each()
            found = await recorded(kit)
            lost = kit.store.lanes[asyncio.get_running_loop()].lost
            assert sum(found.values()) + lost == load.allowed.total()
            assert all(found[customer] <= load.allowed[customer] for customer in CUSTOMERS)
            heir = cluster.replicas[0]
            assert cluster.owner(kit.store.keys.customer(gone[0]).counters) is heir


@pytest.mark.whole
async def test_i3_i5_i11_a_node_joins_and_leaves_under_load() -> None:
    # Six nodes. All that was served is recorded, but for what the killed master had not replicated.
    options = ("--cluster-require-full-coverage", "no")
    with spawn_cluster(*options, replicas=True) as cluster:
        async with kit_of(cluster.url) as kit:
            first, second, dead = cluster.masters
            heir = cluster.replicas[2]
            names = {shard: kit.store.keys.shard(shard, "x") for shard in range(SHARDS)}
            taken = {*sorted(shards_of(kit, first, cluster))[:2], min(shards_of(kit, second, cluster))}
            async with under_load(kit) as load:
                await load.of_each()
                with cluster.joined(*options) as new:
                    for shard in taken:
                        with cluster.moving(names[shard], new) as move:
                            while move():
                                await load.more(10)
                        await load.more(50)
                    assert shards_of(kit, new, cluster) == taken
                    await load.of_each()
                    assert (load.unknown.total(), load.refused.total()) == (0, 0)
                    dead.signal(signal.SIGKILL)
                    dead.process.wait()
                    # By hand, at once: a short time limit would hit healthy nodes, too.
                    heir.command("CLUSTER", "FAILOVER", "TAKEOVER")
                    await load.of_each()
                    for shard in taken:
                        with cluster.moving(names[shard], second) as move:
                            while move():
                                await load.more(10)
                    await load.of_each()
                await load.of_each()
            found = await recorded(kit)
            lost = kit.store.lanes[asyncio.get_running_loop()].lost
            assert sum(found.values()) + lost == load.allowed.total()
            assert all(found[customer] <= load.allowed[customer] for customer in CUSTOMERS)
            moved = of_shards(kit, taken)
            assert moved
            assert {customer: found[customer] for customer in moved} == {
                customer: load.allowed[customer] for customer in moved
            }
            assert taken <= shards_of(kit, second, cluster)


async def test_i6_of_a_node_whose_replica_is_away_nothing_is_delivered() -> None:
    # While the masters do not agree that it has failed, it may take over, with what it knew.
    with spawn_cluster("--appendonly", "yes", replicas=True) as cluster:
        async with desk(cluster.url, shards=SHARDS, stripe_api_key=LIVE_KEY) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            master = cluster.owner(at.kit.store.keys.customer("acme").counters)
            with stopped(cluster.replicas[cluster.masters.index(master)]):
                master.command("CLIENT", "KILL", "TYPE", "replica")
                with pytest.raises(StoreError, match="has no replica that follows it now"):
                    await at.flush(everything=True, timeout_s=0)
                assert at.emulator.requests == ()


async def test_with_the_rights_that_are_documented_all_works(cluster: Cluster) -> None:
    rules = acl_rules("mk", (*NEEDED, *OPTIONAL_COMMANDS, *OF_A_CLUSTER)).split()
    try:
        cluster.each("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
        url = cluster.url.replace("://", "://app:secret@")
        async with desk(url, shards=SHARDS) as at:
            await at.link(*CUSTOMERS)
            for customer in CUSTOMERS:
                assert (await at.kit.consume(customer, "requests")).allowed
            assert (await at.flush(everything=True)).delivered == len(CUSTOMERS)
    finally:
        cluster.each("ACL", "DELUSER", "app")


@pytest.mark.parametrize("missing", OF_A_CLUSTER)
async def test_a_right_that_a_cluster_needs_is_named_at_a_start(cluster: Cluster, missing: str) -> None:
    # A process without it started, and served without the store for as long as it ran.
    commands = {*NEEDED, *OPTIONAL_COMMANDS, *OF_A_CLUSTER} - {missing}
    try:
        cluster.each("ACL", "SETUSER", "app", "reset", "on", ">secret", *acl_rules("mk", commands).split())
        with pytest.raises(SettingsError) as caught:
            await kit_of(cluster.url.replace("://", "://app:secret@")).start()
        assert f"+{missing.lower()}" in str(caught.value)
    finally:
        cluster.each("ACL", "DELUSER", "app")


async def test_i10_a_wrong_password_is_not_shown(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    url = cluster.url.replace("://", "://nobody:S3CRET@")
    async with kit_of(url, start_timeout=0.1, store_timeout=2.0) as kit:
        with pytest.raises(StoreError, match=r"WRONGPASS") as caught:
            await kit.consume("acme", "requests")
        with pytest.raises(StoreError) as again:
            await kit.usage("acme")
    assert "S3CRET" not in f"{caught.value!r}{again.value!r}{kit.store.address!r}{caplog.text}"


@asynccontextmanager
async def encrypted(cluster: Cluster, authority: Authority) -> AsyncGenerator[str]:
    """A cluster whose nodes are reached through TLS proxies, which they announce; the URL."""
    async with AsyncExitStack() as stack:
        ports: list[int] = []
        for node in cluster.masters:
            proxy = await stack.enter_async_context(TcpProxy(node.port, tls=authority.serving()))
            await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-announce-port", proxy.port)
            ports.append(proxy.port)

        def all_are_announced() -> bool:
            said = cluster.each("CLUSTER", "SLOTS")
            return all({line[2][1] for line in lines} == set(ports) for lines in said)

        await eventually(all_are_announced)
        yield f"redis+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={authority.file}"


async def test_tls_is_spoken_with_every_node(authority: Authority) -> None:
    with spawn_cluster() as cluster:
        async with encrypted(cluster, authority) as url, desk(url, shards=4) as at:
            await at.link(*CUSTOMERS)
            for customer in CUSTOMERS:
                assert (await at.kit.consume(customer, "requests")).allowed
            assert (await at.flush(everything=True)).delivered == len(CUSTOMERS)
            assert await recorded(at.kit) == dict.fromkeys(CUSTOMERS, 1)
        async with encrypted(cluster, authority) as url:
            plain = url.partition("?")[0]
            async with kit_of(plain, start_timeout=0.1, store_timeout=0.5) as kit:
                with pytest.raises(StoreError):
                    await kit.consume("acme", "requests")


async def test_i7_no_socket_outlives_the_kit(cluster: Cluster) -> None:
    before = open_sockets()
    async with desk(cluster.url, shards=SHARDS) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        await at.flush(everything=True)
    await eventually(lambda: open_sockets() <= before)
