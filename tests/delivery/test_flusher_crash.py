"""Flushers in processes of their own: several at once, and such as are killed between two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.delivery import NOW, desk, until
from drivers.sampled import whole
from drivers.workers import workers

if TYPE_CHECKING:
    from servers.stores import Server

pytestmark = pytest.mark.anyio


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("point", [whole("leased"), "sent", whole("acknowledged")])
async def test_the_next_process_delivers_a_killed_ones_rest_once(
    valkey: Server, store_url: str, point: str
) -> None:
    async with desk(store_url, shards=1) as at:
        await at.link("acme", "zeta")
        await at.kit.record("acme", "requests", 5)
        await at.kit.record("zeta", "requests", 6)
        settings = {"shards": 1}
        options = {"store": store_url, "stripe": at.url, "now": NOW.isoformat(), "settings": settings}
        async with workers(1, **options, crash=point) as (doomed,):
            with pytest.raises(EOFError, match="-9"):
                await doomed.ask("flush")
        leased = [(await at.kit.usage(name))["meters"]["requests"]["leased"] for name in ("acme", "zeta")]
        # The first call of a process is alone.
        assert sum(leased) == 0 if point == "acknowledged" else sum(leased) in {5, 6}

        # Its lease outlives it, for at most a minute.
        assert 0 < valkey.command("PTTL", "mk:{0}:lease") <= 60_000
        before = len(at.emulator.requests)
        assert (await at.flush(everything=True, timeout_s=0)).delivered == 0
        assert len(at.emulator.requests) == before
        valkey.command("PEXPIRE", "mk:{0}:lease", 1)
        await until(lambda: valkey.command("EXISTS", "mk:{0}:lease") == 0)

        report = await at.flush(everything=True)
        assert report.left == 0
        usage = [(await at.kit.usage(name))["meters"]["requests"]["delivered"] for name in ("acme", "zeta")]
        assert usage == [5, 6]
    assert (at.accepted("acme"), at.accepted("zeta")) == (5, 6)
    assert len(at.emulator.events) == 2
