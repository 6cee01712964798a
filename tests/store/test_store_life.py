"""The life of a kit: started, stopped, forgotten, forked, on several loops; nothing is left."""

from __future__ import annotations

import asyncio
import fcntl
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from drivers.sampled import whole
from faults.proxy import TcpProxy
from faults.refusals import ask, eventually, in_flight, kit_at, metered, open_sockets, settled, used
from servers.stores import Server


def run_program(program: str, url: str) -> tuple[str, str, int]:
    """Run a program in a process where every warning, of unclosed sockets too, is an error."""
    head = f"""
        import asyncio, os, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from faults.refusals import Client, kit_at, metered, settle, settled, used
        kit = kit_at({url!r}, store_timeout=5.0)  # What is slow on a busy machine is not away.
        app = metered(kit)
        def post(quantity):
            settle(kit, "acme", tokens=quantity)
    """
    command = [sys.executable, "-W", "error", "-c", dedent(head) + dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout, done.stderr, done.returncode


def look(url: str, customer: str = "acme", meter: str = "tokens") -> tuple[int, int]:
    async def ask() -> tuple[int, int]:
        async with kit_at(url) as kit:
            return await used(kit, customer, meter)

    return asyncio.run(ask())


def clients(server: Server) -> int:
    """Connections to a server other than the one that asks."""
    return int(server.command("INFO", "clients")["connected_clients"]) - 1


@pytest.mark.anyio
@pytest.mark.each_loop
async def test_i7_starts_and_stops_are_counted_and_repeatable(valkey: Server) -> None:
    sockets, tasks = open_sockets(), asyncio.all_tasks()
    kit, loop = kit_at(valkey.url), asyncio.get_running_loop()
    for _ in range(3):
        await kit.start()
        lane = kit.store.lanes[loop]
        await kit.start()
        assert kit.store.lanes == {loop: lane}
        await kit.stop()
        # F-87: looked at before it is used, which would start it again.
        assert kit.store.lanes == {loop: lane}
        assert lane.connected
        await kit.record("acme", "tokens", 1)
        assert kit.store.lanes == {loop: lane}
        await kit.stop()
        assert kit.store.lanes == {}
        await kit.stop()  # One too many is no harm.
    assert await used(kit, "acme", "tokens") == (3, 0)  # Used again, it starts again.
    await kit.stop()
    assert open_sockets() == sockets
    assert asyncio.all_tasks() == tasks
    await eventually(lambda: clients(valkey) == 0)


@pytest.mark.anyio
async def test_stopping_without_a_store_says_what_is_not_settled(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.redis.event_loops._DRAIN_S", 0.1)
    (tmp_path / "spool").touch()  # Nothing can be put into it.
    async with TcpProxy(valkey.port) as proxy:
        kit = kit_at(proxy.url, spool_dir=tmp_path / "spool", store_timeout=5)
        await kit.start()
        await proxy.set("refuse")
        for number in range(12):
            await ask(kit, f"customer {number:02}")
        tasks = len(asyncio.all_tasks())
        await kit.stop()
        assert "settlements lost: 12" in caplog.text
        assert "their customers: 'customer 00', 'customer 01', " in caplog.text
        assert "'customer 09' and 2 more" in caplog.text
        assert len(asyncio.all_tasks()) < tasks


@pytest.mark.anyio
@pytest.mark.each_loop
async def test_i7_a_decision_in_flight_at_a_stop_holds_nothing(valkey: Server) -> None:
    kit = kit_at(valkey.url)
    await kit.start()
    for steps in range(1, 6):
        request = asyncio.create_task(ask(kit, "acme", "/deny"))
        for _ in range(steps):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await kit.stop()
    assert in_flight(valkey, "acme") == 0
    assert (await used(kit, "acme"))[1] == 0
    await kit.stop()


@pytest.mark.anyio
@pytest.mark.each_loop
async def test_stopping_amid_the_first_connection_leaves_nothing(valkey: Server) -> None:
    sockets = open_sockets()
    for steps in range(8):
        kit = kit_at(valkey.url)
        starting = asyncio.create_task(kit.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        await kit.stop()
        await asyncio.gather(starting, return_exceptions=True)
        await kit.stop()
    await eventually(lambda: open_sockets() == sockets)


@pytest.mark.dear("a process of its own")
def test_i7_a_program_that_forgets_to_stop_loses_nothing(valkey: Server) -> None:
    program = """
        async def main(steps):
            await kit.start()
            await kit.usage("acme")
            for _ in range(300):
                post(1)
            asyncio.ensure_future(asyncio.sleep(100))
            # Their loop cancels these: they hold nothing. On a busy machine some are served before.
            requests = [asyncio.ensure_future(Client(app).get("acme")) for _ in range(10)]
            for _ in range(steps):
                await asyncio.sleep(0)
            return requests
        requests = [one for n in range(6) for one in asyncio.run(main(1 + n % 2))]
        print(sum(not one.cancelled() for one in requests), end="")
    """
    served, errors, code = run_program(program, valkey.url)
    assert (errors, code) == ("", 0)
    assert (look(valkey.url), look(valkey.url, meter="requests")) == ((1800, 0), (int(served), 0))
    assert in_flight(valkey, "acme") == 0


@pytest.mark.dear("a process of its own")
@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_i7_loops_that_are_merely_closed_leave_nothing(valkey: Server, module: str) -> None:
    # F-16: a hundred of them left a hundred connections, files, lanes and flushers.
    program = f"""
        import gc, {module}
        from pathlib import Path
        from faults.refusals import open_sockets
        async def main():
            await kit.start()
            await kit.usage("acme")
            post(1)
            asyncio.ensure_future(Client(app).get("acme"))
        files = set()
        for _ in range(8):
            loop = {module}.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
            files.add(len(list(Path("/proc/self/fd").iterdir())))
        gc.collect()
        print(len(files), kit.store.lanes, open_sockets())
        loop = {module}.new_event_loop()
        loop.run_until_complete(main())
        async def other():
            loop.close()
        asyncio.run(other())
        print(loop.is_closed(), kit.store.lanes, open_sockets())
        kit = kit_at("{valkey.url}", stripe_api_key="sk_test_1", stripe_api_base="http://127.0.0.1:9")
        for _ in range(3):
            loop = {module}.new_event_loop()
            loop.run_until_complete(kit.start())
            loop.close()
        del loop
        gc.collect()
        print(len(kit._serving._background._tasks), kit.store.lanes)
    """
    printed, said, code = run_program(program, valkey.url)
    assert (printed, code) == ("1 {} 0\nTrue {} 0\n0 {}\n", 0)
    # That this store keeps nothing on disk is said, once a loop with a flusher at most; nothing else is.
    assert all("keeps nothing: " in line for line in said.splitlines())
    assert look(valkey.url) == (9, 0)
    assert in_flight(valkey, "acme") == 0


@pytest.mark.dear("a process of its own")
@pytest.mark.whole
def test_i7_a_loop_may_be_closed_without_the_store(valkey: Server) -> None:
    # F-16
    program = """
        import time
        # It would be waited for where anything was left.
        sys.modules["meterkit.redis.event_loops"]._DRAIN_S = 60
        kit = kit_at("redis://127.0.0.1:9/0", start_timeout=0.1)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(kit.start())
        began = time.monotonic()
        loop.close()
        print(time.monotonic() - began < 40, kit.store.lanes)
    """
    stdout, stderr, code = run_program(program, valkey.url)
    assert (stdout, code) == ("True {}\n", 0)
    assert len(stderr.splitlines()) == 1  # That it cannot be reached.


def test_two_loops_have_a_connection_each_and_share_the_kit(valkey: Server) -> None:
    kit = kit_at(valkey.url)
    both = threading.Barrier(2)
    seen: list[int] = []

    async def work() -> None:
        async with kit:
            await kit.record("acme", "tokens", 1)
            await asyncio.to_thread(both.wait, 20)
            seen.append(len(kit.store.lanes))
            await asyncio.to_thread(both.wait, 20)
            statuses = await asyncio.gather(*(ask(kit, "acme") for _ in range(50)))
            assert statuses == [200] * 50
            await settled(kit)

    threads = [threading.Thread(target=asyncio.run, args=(work(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [2, 2]
    assert kit.store.lanes == {}
    assert (look(valkey.url), look(valkey.url, meter="requests")) == ((2, 0), (100, 0))


def test_the_lifespan_starts_and_stops_the_kit(valkey: Server) -> None:
    def answer(_: Request) -> Response:
        return Response("ok")

    kit = kit_at(valkey.url)
    app = metered(kit, Starlette(routes=[Route("/deny", answer)]))
    with TestClient(app, headers={"x-customer-id": "acme"}) as client:
        assert len(kit.store.lanes) == 1
        assert client.get("/deny").status_code == 200
    assert kit.store.lanes == {}
    assert look(valkey.url, meter="requests") == (1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["memory", "embedded"])
async def test_a_store_of_the_kits_own_is_there_when_the_start_returns(scheme: str, tmp_path: Path) -> None:
    """F-233: however long it takes to start on a busy machine."""
    url = "memory://" if scheme == "memory" else f"embedded://{tmp_path}"
    async with kit_at(url, start_timeout=0) as kit:
        assert (await kit.store.lane()).connection_error is None
        assert not (await kit.check("acme", "tokens")).degraded


@pytest.mark.anyio
async def test_i7_a_start_that_is_cancelled_leaves_no_embedded_server(tmp_path: Path) -> None:
    kit = kit_at(f"embedded://{tmp_path}/store")
    starting = asyncio.ensure_future(kit.start())
    await eventually((tmp_path / "store" / "start.lock").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with (tmp_path / "store" / "server.lock").open("a") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)  # The server holds its lock while it lives.


@pytest.mark.parametrize("scheme", ["redis", "embedded"])
def test_making_a_kit_neither_connects_nor_starts_a_server(scheme: str, tmp_path: Path) -> None:
    sockets = open_sockets()
    kit = kit_at({"redis": "redis://127.0.0.1:1", "embedded": f"embedded://{tmp_path}/store"}[scheme])
    assert open_sockets() == sockets
    assert list(tmp_path.iterdir()) == []
    assert kit.store.lanes == {}


@pytest.mark.dear("a process of its own")
def test_a_kit_loaded_before_the_fork_serves_in_every_child(valkey: Server) -> None:
    program = """
        async def serve():
            statuses = await asyncio.gather(*(Client(app).get("acme", "/deny") for _ in range(25)))
            await settled(kit)
            return statuses
        asyncio.run(serve())  # The parent has used it, too.
        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                ok = asyncio.run(serve()) == [200] * 25
                os._exit(0 if ok else 1)
            children.append(pid)
        print([os.waitpid(pid, 0)[1] for pid in children])
    """
    printed, said, code = run_program(program, valkey.url)
    assert (printed, code) == ("[0, 0, 0, 0]\n", 0)
    assert said.startswith("no lifespan has started meterkit")
    assert said.count("\n") == 1  # Not by each child again.
    assert look(valkey.url, meter="requests") == (125, 0)


@pytest.mark.dear("a process of its own")
def test_calls_without_a_price_are_counted_once_after_a_fork(valkey: Server) -> None:
    program = """
        async def sent():
            async with kit:
                return await kit.store.unpriced.read()
        kit.store.unpriced.note("new-model", 3)
        if not os.fork():
            asyncio.run(sent())
            os._exit(0)
        print(os.wait()[1], asyncio.run(sent()))
    """
    assert run_program(program, valkey.url) == ("0 {'new-model': 3}\n", "", 0)


@pytest.mark.dear("a process of its own")
@pytest.mark.parametrize("store", [whole("a server"), "a server of its own"])
def test_i6_a_fork_counts_what_each_process_settles_once(valkey: Server, store: str, tmp_path: Path) -> None:
    # As pre-forking servers do; and a child leaves the parent's connection alone.
    url = valkey.url if store == "a server" else f"embedded://{tmp_path}/store"
    program = """
        async def child():
            async with kit:
                for _ in range(300):
                    post(1000)
                await settled(kit)

        async def parent():
            async with kit:
                await kit.record("acme", "tokens", 1)
                for n in range(200):
                    post(1)
                    if n == 100:
                        pid = os.fork()
                        if pid == 0:
                            assert kit.store.lanes == {}
                            asyncio._set_running_loop(None)
                            asyncio.run(child())
                            os._exit(0)
                    await asyncio.sleep(0)
                print((await asyncio.to_thread(os.waitpid, pid, 0))[1])
                await kit.record("acme", "tokens", 1)
                lane = kit.store.lanes[asyncio.get_running_loop()]
                print(lane.connected, lane.unsettled)
        asyncio.run(parent())
    """
    assert run_program(program, url) == ("0\nTrue 0\n", "", 0)
    assert look(url) == (300_202, 0)
