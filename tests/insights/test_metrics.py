"""Metrics of a process: requests, outages, the store; Prometheus and OpenTelemetry, no customer in either."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from drivers.kit_parts import note_upkeep
from drivers.operator_pages import write_revenue
from drivers.plans import plans_text
from drivers.process_metrics import said_by, told
from drivers.redrives import kill_webhook
from drivers.spools import spool_with
from faults.proxy import TcpProxy
from faults.refusals import eventually, kit_at, settled
from meterkit import MeterKit, MeterMiddleware, identify, metrics_app
from meterkit.catalog import loads
from meterkit.testing import Clock
from servers.clusters import Cluster, spawn_watched
from servers.stores import Server, spawn_server

pytestmark = pytest.mark.anyio

BOARD = Path(__file__).parents[2] / "docs" / "assets" / "grafana.json"
PLANS = plans_text("metrics")
AWAY = "redis://127.0.0.1:1"
Sample = tuple[str, tuple[tuple[str, str], ...]]


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello", status_code=int(request.query_params.get("status", "200")))


def app_of(kit: MeterKit) -> Starlette:
    app = Starlette(routes=[Mount("/metrics", metrics_app(kit)), Route("/{path:path}", hello)])
    app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
    return app


def client_of(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


async def samples(client: httpx.AsyncClient) -> dict[Sample, float]:
    text = (await client.get("/metrics/")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def requests(plan: str, outcome: str, reason: str = "none") -> Sample:
    return "meterkit_requests_total", (("outcome", outcome), ("plan", plan), ("reason", reason))


async def test_request_metrics_have_no_label_of_a_customer(store_url: str) -> None:
    customers = ["secret-ada", "secret-bob"]
    kit = MeterKit(loads(PLANS), redis_url=store_url, flush=False, store_timeout=10.0)
    async with kit, client_of(app_of(kit)) as client:
        await kit.customers.set_plan("secret-bob", "pro")
        await kit.customers.link("secret-bob", "cus_1", force=True)
        for customer in customers:
            for status in ("200", "404", "500"):
                await client.get(f"/x?status={status}", headers={"x-customer-id": customer})
        for _ in range(4):
            await client.get("/x", headers={"x-customer-id": "secret-ada"})
        await client.get("/full", headers={"x-customer-id": "secret-bob"})
        await client.get("/x")

        async def settled() -> bool:
            return (await samples(client))["meterkit_delivery_items", (("state", "unlinked"),)] == 1

        await eventually(settled)
        found = await samples(client)
    told = {name: value for name, value in found.items() if name[0] == "meterkit_requests_total"}
    assert told == {
        requests("free", "success"): 3,
        requests("free", "client_error"): 1,
        requests("free", "server_error"): 1,
        requests("free", "refused", "included"): 2,
        requests("pro", "success"): 1,
        requests("pro", "client_error"): 1,
        requests("pro", "server_error"): 1,
        requests("pro", "refused", "feature"): 1,
        requests("none", "refused", "anonymous"): 1,
    }
    assert (found["meterkit_degraded_requests_total", ()], found["meterkit_store_connected", ()]) == (0, 1)
    assert 0 == found["meterkit_store_breaker_open", ()]
    assert 1 <= found["meterkit_decision_seconds_count", ()]
    assert 0 < found["meterkit_decision_seconds_sum", ()]
    assert 1 == found["meterkit_delivery_items", (("state", "pending"),)]
    assert 0 == found["meterkit_delivery_items", (("state", "dead"),)]
    assert 0 == found["meterkit_delivery_age_seconds", (("state", "unlinked"),)]
    values = [value for _, labels in found for _, value in labels]
    assert [] == [value for value in values if any(customer in value for customer in (*customers, "cus_"))]


async def test_ages_are_those_of_the_oldest(store_url: str) -> None:
    clock = Clock()
    async with MeterKit(loads(PLANS), redis_url=store_url, flush=False, clock=clock) as kit:
        keys, names = kit.store.keys, [f"c{nth}" for nth in range(9)]
        names.sort(key=lambda name: keys.customer(name).shard)
        # The oldest is in neither the first nor the last shard.
        for name in (names[4], names[0], names[-1]):
            await kit.customers.link(name, f"cus_{name}", force=True)
            await kit.record(name, "requests", 1)
            await kill_webhook(kit, f"cus_{name}")
            clock.advance(timedelta(hours=1))
        found = await told(kit)
    assert (found["delivery_items pending"], found["webhook_items dead"]) == (3, 3)
    due_s = 3 * 3600 - found["delivery_age_seconds pending"]
    assert 0 <= due_s < 3600
    assert found["webhook_age_seconds dead"] == 3 * 3600


async def test_a_store_that_is_away_is_told_of() -> None:
    kit = MeterKit(loads(PLANS), redis_url=AWAY, flush=False, start_timeout=0.01, store_timeout=0.1)
    async with kit, client_of(app_of(kit)) as client:
        assert 200 == (await client.get("/x", headers={"x-customer-id": "ada"})).status_code
        found = await samples(client)
    assert (found["meterkit_store_connected", ()], found["meterkit_store_breaker_open", ()]) == (0, 1)
    assert (found["meterkit_degraded_requests_total", ()], found[requests("free", "success")]) == (1, 1)
    assert not [name for name in found if name[0].startswith(("meterkit_delivery", "meterkit_webhook"))]


@pytest.mark.usefixtures("valkey")
async def test_each_query_of_the_board_names_what_is_exported(store_url: str, tmp_path: Path) -> None:
    audit_url = f"sqlite:///{tmp_path}/audit.db"
    write_revenue(audit_url, date(2026, 1, 1), {"acme": 9})
    kit = MeterKit(loads(PLANS), redis_url=store_url, flush=False, audit_url=audit_url)
    async with kit, client_of(app_of(kit)) as client:
        await client.get("/x")
        await note_upkeep(kit)
        exported = {name for name, _ in await samples(client)}
    board = json.loads(BOARD.read_text("utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"meterkit_\w+", query)}
    assert len(queries) > 8
    assert set() == asked - exported
    unseen = {name for name in exported - asked if not name.endswith(("_created", "_sum", "_count"))}
    assert set() == unseen


@pytest.mark.dear("a process with a provider of its own")
async def test_opentelemetrys_global_provider_gets_them(tmp_path: Path) -> None:
    program = """
        import asyncio, contextlib, httpx
        from meterkit import MeterKit, MeterMiddleware, StoreError, identify
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from starlette.applications import Starlette

        async def main():
            kits = [MeterKit(redis_url="memory://", flush=False) for _ in range(2)]
            reader = InMemoryMetricReader()
            metrics.set_meter_provider(MeterProvider([reader]))  # After the kits, as it may well be.
            for kit in kits:
                app = MeterMiddleware(Starlette(), kit=kit, identify=identify.header("x-customer-id"))
                to = httpx.ASGITransport(app)
                async with kit, httpx.AsyncClient(transport=to, base_url="http://app") as c:
                    for _ in range(5):
                        await c.get("/x", headers={"x-customer-id": "secret-ada"})
            away = {"redis_url": AWAY, "spool_dir": "spools", "start_timeout": 0.01, "store_timeout": 0.1}
            kits += [MeterKit(key_prefix=name, flush=False, **away) for name in ("one", "two")]
            for kit in kits[2:]:  # Each finds the other's spool in the directory that they share.
                async with kit:
                    pass
            kits[0].store.tally().excess["requests"] += 3
            show(reader)
            async with kits[0], kits[2]:  # One has its store, and one has not.
                with contextlib.suppress(StoreError):
                    await kits[2].consume("secret-ada", "requests")
                show(reader, "mixed ")

        def show(reader, before=""):
            for resource in reader.get_metrics_data().resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        for point in metric.data.data_points:
                            values = sorted(dict(point.attributes).values())
                            print(f"{before}{metric.name} {values} {point.value}")

        asyncio.run(main())
    """.replace("AWAY", repr(AWAY))
    for name in ("one", "two"):
        kit = MeterKit(loads(PLANS), redis_url=AWAY, key_prefix=name, flush=False)
        spool_with(kit, tmp_path / "spools", "tokens", 1).close()
    lines = said_by(program, tmp_path, plans=PLANS).splitlines()
    assert "meterkit.requests ['client_error', 'free', 'none'] 10" in lines
    assert "meterkit.requests.degraded [] 0" in lines
    assert "meterkit.units.beyond_limits ['requests'] 3" in lines
    assert any(line.startswith("meterkit.decisions [] ") for line in lines)
    assert any(line.startswith("meterkit.decisions.duration [] 0.") for line in lines)
    lanes = ("store.breaker.open", "store.breaker.opened", "settlements.waiting", "settlements.lost")
    for gauge in (*lanes, "allotments.granted", "allotments.returned", "allotments.unused"):
        assert f"meterkit.{gauge} [] 0" in lines
    assert {"mixed meterkit.store.connected [] 0", "mixed meterkit.store.breaker.open [] 1"} <= {*lines}
    assert "meterkit.spool.size ['foreign'] 0" in lines
    size = sum(path.stat().st_size for path in spools(tmp_path / "spools"))
    assert size > 0
    assert f"meterkit.spool.size ['left'] {size}" in lines
    assert "secret" not in "".join(lines)


def spools(directory: Path) -> list[Path]:
    return list(directory.glob("*.spool"))


async def test_the_age_of_spools_is_that_of_the_oldest(tmp_path: Path) -> None:
    kit = MeterKit(
        loads(PLANS), redis_url=AWAY, flush=False, spool_dir=tmp_path, clock=Clock(), start_timeout=0.01
    )
    for days in (1, 3, 2):
        spool_with(kit, tmp_path, "requests", 1, days=days).close()
    async with kit:
        found = await told(kit)
    assert (found["spool_files left"], found["spool_age_seconds left"]) == (3, 3 * 86_400)


async def test_an_outage_is_told_as_it_comes_and_goes(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with TcpProxy(valkey.port) as proxy, kit_at(proxy.url, store_timeout=5, spool_dir=tmp_path) as kit:
        lane = await kit.store.lane()
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (0, 0)
        assert (found["spool_files held"], found["spool_bytes held"]) == (0, 0)
        await proxy.set("refuse")
        await eventually(lambda: lane.is_down)
        await kit.record("acme", "tokens", 7)
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (1, 1)
        assert (found["settlements_waiting"], found["settlements_lost_total"]) == (1, 0)
        assert found["spool_files held"] == 1
        assert found["spool_bytes held"] == sum(path.stat().st_size for path in spools(tmp_path))
        assert "store_replicas" not in found
        await proxy.set("pass")
        await settled(kit)
        await eventually(lambda: not spools(tmp_path))
        found = await told(kit)
        assert (found["store_breaker_open"], found["store_breaker_opened_total"]) == (0, 1)
        assert (found["settlements_waiting"], found["spool_files held"]) == (0, 0)


@pytest.mark.dear("two servers are started")
async def test_how_the_store_keeps_what_it_is_told_is_a_number() -> None:
    with spawn_watched("--appendonly", "yes") as watched:
        async with kit_at(watched.url) as kit:
            found = await told(kit)
            assert (found["store_durability WAITAOF and WAIT"], found["store_replicas"]) == (1, 1)
            replica = next(server for server in watched.servers if server is not watched.master)
            replica.stop()
            await asyncio.to_thread(watched.wait_until, lambda: not _replicas(watched.master))
            found = await told(kit)
            assert (found["store_durability WAITAOF"], found["store_replicas"]) == (1, 0)
    with spawn_server("--appendonly", "yes", "--appendfsync", "no") as server:
        async with kit_at(server.url) as kit:
            found = await told(kit)
            # What is never known to be on the disk counts as kept by nobody once it is waited for.
            assert found["store_durability WAITAOF"] + found["store_durability none"] == 1


def _replicas(server: Server) -> int:
    return int(server.command("INFO", "replication")["connected_slaves"])


async def test_each_node_of_a_cluster_counts(cluster: Cluster) -> None:
    async with kit_at(cluster.url) as kit:
        found = await told(kit)
        assert (found["store_durability none"], found["store_replicas"]) == (3, 0)
        assert found["store_breaker_opened_total"] == 0
        first, *_, last = cluster.masters
        for node in (first, last):
            with spawn_server("--replicaof", f"127.0.0.1 {node.port}"):
                await eventually(partial(_has_current_replica, node))
                found = await told(kit)
                # Of the server with the fewest.
                assert (found["store_durability WAIT"], found["store_replicas"]) == (1, 0)
            await eventually(partial(_has_no_replica, node))
        last.command("ACL", "SETUSER", "default", "-info")
        try:
            assert "store_replicas" not in await told(kit)
        finally:
            last.command("ACL", "SETUSER", "default", "+info")


def _has_no_replica(server: Server) -> bool:
    return _replicas(server) == 0


def _has_current_replica(server: Server) -> bool:
    return "online" in str(server.command("INFO", "replication").get("slave0"))
