"""The nets in ``conftest.py`` catch what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
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


def test_a_task_left_behind_fails_the_test(run: pytest.Pytester) -> None:
    run.makepyfile("""
        import asyncio
        import pytest

        kept = []

        @pytest.mark.anyio
        async def test_leaves_one():
            kept.append(asyncio.create_task(asyncio.sleep(60), name="forgotten"))

        @pytest.mark.anyio
        async def test_leaves_none():
            await asyncio.create_task(asyncio.sleep(0))
            asyncio.create_task(asyncio.sleep(60)).cancel()
    """)
    result = run.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*tasks left behind*forgotten*"])


def test_a_key_without_ttl_fails_the_test(run: pytest.Pytester) -> None:
    run.makepyfile("""
        import pytest
        import redis

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
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*WITHOUT_TTL*left*"])


def test_the_servers_are_of_two_makes(valkey: Server, redis_server: Server) -> None:
    assert "valkey_version" in valkey.command("INFO", "server")
    assert "valkey_version" not in redis_server.command("INFO", "server")
