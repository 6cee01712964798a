"""The store on a cluster, and on a master that sentinels name: slots that move, servers that die."""

# Internals: which node has a shard shows nowhere else.

# pyright: reportPrivateUsage=false
# What the lane has of nodes is looked at where nothing else shows it.

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Generator, Iterable
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any, cast

import pytest
from starlette.types import Receive, Scope, Send

from asgi.test_llm_outliving import HELD, response, saying
from drivers.changing_servers import CUSTOMERS, Load, recorded, under_load
from drivers.delivery import CATALOG, Desk, desk
from drivers.llm_apps import ask, metered
from faults.proxy import TcpProxy
from faults.refusals import FakeRedis, eventually, lane_of, loop_clock, open_sockets, settled, stopped
from meterkit import MeterKit, SettingsError, StoreError
from meterkit.customers.billed_usage import usage_of_all
from meterkit.redis import settlement_queue
from meterkit.redis.cluster_lane import ClusterLane
from meterkit.redis.discovery import Slots, is_cut_off, master_of, redirection_of, slots_of
from meterkit.redis.server import CLUSTER_COMMANDS, OPTIONAL_COMMANDS, acl_rules
from meterkit.redis.url import HostPort, parse_redis_url
from servers.certificates import Authority
from servers.clusters import SERVICE, Cluster, Watched, spawn_cluster, spawn_watched
from servers.stores import NEEDED, Server, free_port

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


async def balanced(kit: MeterKit, load: Load) -> dict[str, int]:
    """What is recorded: all that was allowed, but for what is said to be lost."""
    found = await recorded(kit)
    assert sum(found.values()) + lane_of(kit).lost == load.allowed.total()
    assert all(found[customer] <= load.allowed[customer] for customer in CUSTOMERS)
    return found


async def all_are_served(at: Desk) -> None:
    """Each customer is, and each one's usage is delivered."""
    await at.link(*CUSTOMERS)
    for customer in CUSTOMERS:
        assert (await at.kit.consume(customer, "requests")).allowed
    assert (await at.flush(everything=True)).delivered == len(CUSTOMERS)


def test_a_node_without_a_name_is_the_one_that_was_asked() -> None:
    asked = HostPort("10.0.0.1", 7000)
    told = [[0, 5, [b"", 7000, b"id"], [b"10.0.0.9", 1, b"replica"]], [6, 9, [b"10.0.0.2", 7001, b"id"]]]
    slots = slots_of(told, asked)
    assert slots == Slots(((0, 5, asked), (6, 9, HostPort("10.0.0.2", 7001))))
    assert (slots.of(5), slots.of(6), slots.of(10)) == (asked, HostPort("10.0.0.2", 7001), None)
    assert redirection_of("MOVED 12 :7001", asked) == HostPort("10.0.0.1", 7001)
    assert redirection_of("ASK 12 ::1:7001", asked) == HostPort("::1", 7001)


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
        pages = [page async for page in usage_of_all(kit.store)]
        assert [found["customer"] for page in pages for found in page] == sorted(CUSTOMERS)
        assert all(size > 2 for size in cluster.each("DBSIZE"))
        lane = cast("ClusterLane", lane_of(kit))
        connections = {id(lane.at(shard)) for shard in range(SHARDS)}
        assert len(connections) == 3
        own = [now - known for now, known in zip(open_at_each(), before, strict=True)]
        assert all(len(ids) >= 2 for ids in own)  # the kit's, and the one that asks
    await eventually(lambda: not any(now & ids for now, ids in zip(open_at_each(), own, strict=True)))
    with pytest.raises(SettingsError, match=r"has 16 shards and METERKIT_SHARDS is 8"):
        await kit_of(cluster.url, shards=8).start()


async def test_scripts_that_are_flushed_are_loaded_again(cluster: Cluster) -> None:
    # Found by any of its nodes: the first that the URL names is away.
    async with kit_of(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.masters[1].port}") as kit:
        for _ in range(2):
            cluster.each("SCRIPT", "FLUSH")
            for customer in CUSTOMERS:
                assert (await kit.consume(customer, "requests")).allowed
        assert await recorded(kit) == dict.fromkeys(CUSTOMERS, 2)


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
                lane = cast("ClusterLane", lane_of(kit))
                assert await lane.fence_at(kit.store.keys.customer("acme").shard, producer) == -1
                assert errors(cluster, "ASK") > before
            assert to.command("EXISTS", producer) == 1


@pytest.mark.whole
async def test_all_customers_are_listed_while_slots_move_to_a_new_node() -> None:
    # Those at a node that had joined were in no report, and no error said so.
    with spawn_cluster(masters=1) as cluster:
        async with kit_of(cluster.url, shards=2) as kit:
            await asyncio.gather(*(kit.consume(customer, "requests") for customer in CUSTOMERS))

            async def listed() -> int:
                pages = [page async for page in usage_of_all(kit.store)]
                return len({found["customer"] for page in pages for found in page})

            assert await listed() == len(CUSTOMERS)
            first, names = cluster.masters[0], [kit.store.keys.shard(shard, "x") for shard in range(2)]
            with cluster.joined() as new:
                for name in names:
                    cluster.move(name, new)
                assert await listed() == len(CUSTOMERS)
                cluster.move(names[0], first)
                # One whose keys leave for a node that has been walked over is found there.
                admin = await kit.store.admin()
                walked, *_ = await admin.servers()
                gone = names[1] if walked.address.port == first.port else names[0]
                pages = admin.scan("mk:{*}:c:*", 1000)
                found = {*await anext(pages)}
                cluster.move(gone, cluster.owner(next(name for name in names if name != gone)))
                async for page in pages:
                    found.update(page)
                assert len(found) == len(CUSTOMERS)
                for name in names:
                    if cluster.owner(name) is new:
                        cluster.move(name, first)


async def is_served(kit: MeterKit, customer: str) -> bool:
    try:
        return (await kit.consume(customer, "requests")).allowed
    except StoreError:
        return False


async def has_recorded(kit: MeterKit, customer: str, quantity: int) -> bool:
    try:
        return (await kit.usage(customer))["meters"]["requests"]["recorded"] == quantity
    except StoreError:
        return False


@pytest.mark.whole
async def test_i9_a_node_cut_off_from_the_others_is_not_believed() -> None:
    # It answered as before, and its customers were refused for as long as it did.
    replicas = ("--cluster-require-full-coverage", "no")
    with spawn_cluster(*replicas, replicas=True, node_timeout_ms=1_000) as cluster:
        async with kit_of(cluster.url) as kit:
            alone, heir = cluster.masters[0], cluster.replicas[0]  # The URL names it first.
            keys = kit.store.keys
            shard = next(one for one in range(SHARDS) if cluster.owner(keys.shard(one, "x")) is alone)
            customer = of_shards(kit, {shard})[0]
            assert (await kit.consume(customer, "requests")).allowed
            assert (await kit.usage(customer))["meters"]["requests"]["recorded"] == 1
            alone.command("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2)
            await eventually(lambda: heir.command("ROLE")[0] == "master")
            await eventually(lambda: "cluster_state:fail" in alone.command("CLUSTER", "INFO"))
            await eventually(lambda: is_served(kit, customer))
            await settled(kit)
            await eventually(lambda: has_recorded(kit, customer, 2))
        async with kit_of(cluster.url) as other:
            assert (await other.consume(customer, "requests")).allowed


async def test_a_slot_that_moves_is_no_restart(caplog: pytest.LogCaptureFixture) -> None:
    # F-319: its shard's usage waited two minutes, to be compared with Stripe.
    with spawn_cluster(masters=2) as cluster:
        async with desk(cluster.url, shards=SHARDS) as at:
            await all_are_served(at)
            customer = CUSTOMERS[0]
            key = at.kit.store.keys.shard(at.kit.store.keys.customer(customer).shard, "life")
            cluster.move(key, next(node for node in cluster.masters if node is not cluster.owner(key)))
            await at.kit.record(customer, "requests", 1)
            assert (await at.flush(everything=True)).delivered == 1
    assert "has started since the last delivery" not in caplog.text


@pytest.mark.whole
async def test_a_node_that_is_named_as_one_server_delivers_and_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # It counted, and delivered nothing; doctor had no word of it.
    with spawn_cluster(masters=1) as cluster:
        async with desk(cluster.masters[0].url, shards=SHARDS) as at:
            await all_are_served(at)
            cures = [found.cure for found in (await at.kit.health()).findings if found.check == "server"]
            assert cures == ["let the URL begin with redis+cluster://"]
        assert "it is a node of a cluster, and the URL names it as one server" in caplog.text
    with spawn_cluster() as cluster:
        meta = cluster.owner("mk:meta")
        other = next(node for node in cluster.masters if node is not meta)
        async with kit_of(other.url, start_timeout=0.1, store_timeout=0.5) as kit:
            with pytest.raises(StoreError, match=r"MOVED .* begin with redis\+cluster://"):
                await kit.consume("acme", "requests")


def test_a_node_is_cut_off_that_does_not_reach_most() -> None:
    def told(*flags: str) -> str:
        own = "id 127.0.0.1:1@2 myself,master,nofailover - 0 0 1 connected 0-9"
        rest = [
            f"id{n} 127.0.0.1:{n}@2 {flag} - 0 0 1 connected {n}0-{n}9" for n, flag in enumerate(flags, 1)
        ]
        spare = "id9 127.0.0.1:9@2 slave,fail id 0 0 1 connected"
        return "\n".join([own, *rest, spare, spare.replace("slave", "master")])

    assert not is_cut_off(told())
    assert not is_cut_off("")
    assert not is_cut_off(told("master,fail", "master,nofailover"))
    assert is_cut_off(told("master,fail?", "master,fail"))
    assert is_cut_off(told("master,fail?"))


async def test_i9_other_shards_are_served_while_a_node_is_down() -> None:
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, store_timeout=2.0) as kit:
            dead = cluster.masters[0]
            gone = of_shards(kit, shards_of(kit, dead, cluster))
            living = sorted({*CUSTOMERS} - {*gone})
            assert min(len(living), len(gone)) > 0
            for customer in CUSTOMERS:
                assert (await kit.consume(customer, "requests")).allowed
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
            await settled(kit)
            found = await recorded(kit)
            assert found[gone[0]] == 6
            assert {customer: found[customer] for customer in living} == dict.fromkeys(living, 2)


@pytest.mark.whole
async def test_i9_a_job_that_begins_as_its_node_goes_down_is_no_error() -> None:
    """The customer's request is answered and counted; only the job's own hold is missing."""
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster, ExitStack() as outage:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            outage.enter_context(stopped(cluster.owner(at.kit.store.keys.customer("acme").counters)))
            await eventually(is_down)
            await saying(response("queued"))(scope, receive, send)

        async def is_down() -> bool:
            with suppress(StoreError):
                await at.kit.consume("acme", "requests", 0)
            return lane_of(at.kit).is_down

        async with metered(app, cluster.url, plans=HELD, settings={"store_timeout": 0.5}) as at:
            await ask(at, "/held")
            outage.close()
            lane = lane_of(at.kit)
            await eventually(lambda: not lane.is_down and lane.unsettled == 0)
            meters = (await at.kit.usage("acme"))["meters"]
            assert (meters["requests"]["recorded"], meters["output_tokens"]["held"]) == (1, 0)
            assert (lane.live, at.kit.store.job_holds.holds) == (set(), {})


async def test_i9_a_slot_without_a_node_ends_no_connection(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each request in it ended the connection that the node's other shards share.
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 0.1)
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, spool_dir=tmp_path) as kit:
            node = cluster.masters[0]
            without, *others = sorted(shards_of(kit, node, cluster))
            gone, other = (of_shards(kit, {shard})[0] for shard in (without, others[0]))
            assert [await is_served(kit, customer) for customer in (gone, other)] == [True, True]
            await settled(kit)
            slot = node.command("CLUSTER", "KEYSLOT", kit.store.keys.shard(without, "x"))
            for master in cluster.masters:
                master.command("CLUSTER", "DELSLOTS", slot)
            assert [await is_served(kit, customer) for customer in (gone, other)] == [False, True]
            await kit.record(gone, "requests", 5)
            assert "connection ended" not in caplog.text
            node.command("CLUSTER", "ADDSLOTS", slot)
            await settled(kit)
            assert (await kit.usage(gone))["meters"]["requests"]["recorded"] == 6


@pytest.mark.whole
async def test_i9_spools_are_not_waited_for_while_a_node_is_down() -> None:
    # `meterkit flush --all` hung, and delivered nothing of all others either.
    with spawn_cluster("--cluster-require-full-coverage", "no") as cluster:
        async with kit_of(cluster.url, store_timeout=0.5) as kit:
            dead = cluster.masters[0]
            gone = of_shards(kit, shards_of(kit, dead, cluster))[0]
            with stopped(dead):
                await kit.record(gone, "requests", 5)
                assert lane_of(kit).spool is not None
                sent, (refused,) = await kit.store.send_spools(within_s=0.1)
                assert sent == 0
                assert "no usage could be sent for 0.1 s; it stays here until the next attempt" in refused
            await settled(kit)
            assert (await kit.usage(gone))["meters"]["requests"]["recorded"] == 5
            assert await kit.store.send_spools() == (0, ())


def _reaches(kit: MeterKit, customer: str) -> bool:
    lane = cast("ClusterLane", lane_of(kit))
    return lane.at(kit.store.keys.customer(customer).shard) is not None


@pytest.mark.whole
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
            await balanced(kit, load)
            assert cluster.owner(kit.store.keys.customer(gone[0]).counters) is cluster.replicas[0]
            # The dead node has no shards any more: metrics count no outage because of it.
            await eventually(lambda: not lane_of(kit).is_down)


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
            found = await balanced(kit, load)
            moved = of_shards(kit, taken)
            assert moved
            assert all(found[customer] == load.allowed[customer] for customer in moved)
            assert taken <= shards_of(kit, second, cluster)


async def test_i6_of_a_node_whose_replica_is_away_nothing_is_delivered() -> None:
    # While the masters do not agree that it has failed, it may take over, with what it knew.
    with spawn_cluster("--appendonly", "yes", masters=1, replicas=True) as cluster:
        (master,), (replica,) = cluster.masters, cluster.replicas
        async with desk(cluster.url, shards=SHARDS, stripe_api_key=LIVE_KEY) as at:
            await at.link("acme")
            await at.kit.record("acme", "requests", 6)
            with stopped(replica):
                master.command("CLIENT", "KILL", "TYPE", "replica")
                with pytest.raises(StoreError, match="has no replica that follows it now"):
                    await at.flush(everything=True, timeout_s=0)
                assert at.emulator.requests == ()
                # The only master agrees with itself.
                master.command("CONFIG", "SET", "cluster-node-timeout", 100)
                await eventually(lambda: "slave,fail " in master.command("CLUSTER", "NODES"))
                await at.flush(everything=True)
                assert at.accepted("acme") == 6


@contextmanager
def user_of(cluster: Cluster, commands: Iterable[str]) -> Generator[str]:
    """A user who may run these commands; the URL."""
    cluster.each("ACL", "SETUSER", "app", "reset", "on", ">secret", *acl_rules("mk", commands).split())
    try:
        yield cluster.url.replace("://", "://app:secret@")
    finally:
        cluster.each("ACL", "DELUSER", "app")


async def test_with_the_rights_that_are_documented_all_works(cluster: Cluster) -> None:
    with user_of(cluster, (*NEEDED, *OPTIONAL_COMMANDS, *OF_A_CLUSTER)) as url:
        async with desk(url, shards=SHARDS) as at:
            await all_are_served(at)


@pytest.mark.parametrize("missing", OF_A_CLUSTER)
async def test_a_right_that_a_cluster_needs_is_named_at_a_start(cluster: Cluster, missing: str) -> None:
    # A process without it started, and served without the store for as long as it ran.
    with user_of(cluster, {*NEEDED, *OPTIONAL_COMMANDS, *OF_A_CLUSTER} - {missing}) as url:
        with pytest.raises(SettingsError) as caught:
            await kit_of(url).start()
        assert f"+{missing.lower()}" in str(caught.value)


async def test_i10_a_wrong_password_is_not_shown(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    url = cluster.url.replace("://", "://nobody:S3CRET@")
    async with kit_of(url, start_timeout=0.1, store_timeout=2.0) as kit:
        with pytest.raises(StoreError, match=r"WRONGPASS") as caught:
            await kit.consume("acme", "requests")
        with pytest.raises(StoreError) as again:
            await kit.usage("acme")
    assert "S3CRET" not in f"{caught.value!r}{again.value!r}{kit.store.address!r}{caplog.text}"


async def test_i7_no_socket_outlives_the_kit(cluster: Cluster) -> None:
    before = open_sockets()
    async with desk(cluster.url, shards=SHARDS) as at:
        await at.link("acme")
        await at.kit.record("acme", "requests", 6)
        await at.flush(everything=True)
    await eventually(lambda: open_sockets() <= before)


@pytest.mark.whole
async def test_tls_is_spoken_with_every_node(authority: Authority) -> None:
    # Its nodes are reached through proxies, which they announce.
    with spawn_cluster() as cluster:
        async with AsyncExitStack() as stack:
            ports: set[int] = set()
            for node in cluster.masters:
                proxy = await stack.enter_async_context(TcpProxy(node.port, tls=authority.serving()))
                await asyncio.to_thread(node.command, "CONFIG", "SET", "cluster-announce-port", proxy.port)
                ports.add(proxy.port)

            def all_are_announced() -> bool:
                said = cluster.each("CLUSTER", "SLOTS")
                return all({line[2][1] for line in lines} == ports for lines in said)

            await eventually(all_are_announced)
            url = f"redis+cluster://127.0.0.1:{min(ports)}"
            async with desk(f"{url}?ssl_ca_certs={authority.file}", shards=4) as at:
                await all_are_served(at)
                assert await recorded(at.kit) == dict.fromkeys(CUSTOMERS, 1)
            async with kit_of(url, start_timeout=0.1, store_timeout=0.5) as kit:
                with pytest.raises(StoreError):
                    await kit.consume("acme", "requests")


# Where sentinels name the master: found by what most of them say, and anew after a failover.


INCLUDED = 40


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
            await balanced(kit, load)
            # I9: nobody waits for longer than the store may take to answer, and to be found again.
            assert load.slowest_s < 4 * kit.settings.store_timeout


async def test_i3_a_planned_failover_keeps_the_limit() -> None:
    with spawn_watched() as watched:
        async with kit_of(watched.url, shards=4) as kit:
            allowed, over = dict.fromkeys(CUSTOMERS, 0), set[str]()
            for customer in CUSTOMERS:
                limit = {"included": INCLUDED, "overage": "deny"}
                await kit.customers.override(customer, {"requests": limit})

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
            lost = lane_of(kit).lost
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
            lost = lane_of(at.kit).lost
            assert (counts["recorded"], lost) == (17, 0)


async def test_i6_nothing_is_sent_that_the_replica_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
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
        *("old new new", "away new new", "strange new new", "refused new new", "away away new"),
        # Those that stay silent are waited for, and then the others count.
        "old silent new silent new",
    ],
)
async def test_what_most_of_those_say_that_answer_is_believed(words: str) -> None:
    replies = {"silent": b"", "strange": b"*-1\r\n", "refused": b"-NOPERM no\r\n"}
    for word, port in (("old", 7001), ("new", 7002)):
        replies[word] = b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n%d\r\n" % port

    def sentinel(word: str) -> FakeRedis:
        return FakeRedis(lambda asked: replies[word] if asked[0] == b"SENTINEL" else b"+OK\r\n")

    async with AsyncExitStack() as stack:
        ports = [
            free_port() if word == "away" else (await stack.enter_async_context(sentinel(word))).port
            for word in words.split()
        ]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        address = parse_redis_url(f"redis+sentinel://{hosts}/{SERVICE}")
        async with asyncio.timeout(240):
            timeout_s = 1.0 if "silent" in words else PATIENT_S
            master = await master_of(address, timeout_s=timeout_s, clock=time)
        assert master.port == 7002


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


@pytest.mark.whole
async def test_tls_is_spoken_with_sentinels_and_with_the_master(authority: Authority) -> None:
    with spawn_watched() as watched:
        asked, tls = watched.sentinels[0], authority.serving()
        async with (
            TcpProxy(watched.master.port, tls=tls) as master,
            TcpProxy(asked.port, tls=tls) as sentinel,
        ):
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/behind?ssl_ca_certs={authority.file}"
            asked.command("SENTINEL", "MONITOR", "behind", "127.0.0.1", master.port, 1)
            async with kit_of(url) as kit:
                assert (await kit.consume("acme", "requests")).allowed
                assert (await kit.usage("acme"))["meters"]["requests"]["recorded"] == 1
            assert master.accepted > 1
