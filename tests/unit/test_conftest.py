"""The nets in ``conftest.py`` catch what they are for, and the clock of upper bounds waits for the loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from faults.refusals import loop_clock
from servers.stores import Server

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with our conftest; a pytest started in it shares nothing with this one."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests))
    # looptime's plugin is for pytest-asyncio: it fails without it.
    pytester.makeini("[pytest]\naddopts = -p no:looptime_plugin")
    pytester.makeconftest((tests / "conftest.py").read_text())
    return pytester


@pytest.mark.whole
@pytest.mark.dear("a pytest of its own, which starts a server")
def test_tasks_and_keys_left_behind_fail_their_tests(run: pytest.Pytester) -> None:
    run.makepyfile("""
        import asyncio
        import pytest
        import redis

        kept = []

        @pytest.mark.anyio
        async def test_leaves_a_task():
            kept.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))

        @pytest.mark.anyio
        async def test_leaves_none():
            await asyncio.create_task(asyncio.sleep(0))
            asyncio.create_task(asyncio.sleep(60)).cancel()

        def write(url, ttl):
            with redis.Redis.from_url(url) as client:
                assert client.dbsize() == 0
                client.set("left", "1", ex=ttl)

        def test_leaves_one(store_url):
            write(store_url, None)

        def test_leaves_one_that_goes_away(store_url):
            write(store_url, 60)

        @pytest.mark.leaves_keys("it is about this")
        def test_may_leave_one(store_url):
            write(store_url, None)
    """)
    result = run.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*tasks left behind*forgotten*", "*WITHOUT_TTL*left*"])


def test_the_servers_are_of_two_makes(valkey: Server, redis_server: Server) -> None:
    assert "valkey_version" in valkey.command("INFO", "server")
    assert "valkey_version" not in redis_server.command("INFO", "server")


@pytest.mark.anyio
async def test_the_clock_stands_still_while_the_loop_does() -> None:
    async with loop_clock() as passed_s:
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - as if the machine had run something else
        await asyncio.sleep(0)
        assert passed_s() < 0.05
        while passed_s() < 0.05:  # noqa: ASYNC110 - the clock has no event
            await asyncio.sleep(0.01)
