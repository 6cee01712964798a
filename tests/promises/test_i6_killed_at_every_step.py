"""I6: flushers are killed between any two steps, Stripe fails as it likes: billed is what was recorded.

Each seed is another life. ``make test`` has 10 of 50; ``make soak`` has 500, by ``METERKIT_CRASH_SEEDS=500``.
``METERKIT_CRASH_SEED=17`` with ``--whole`` runs that one alone.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from drivers.sampled import some
from faults.crashes import Drawn, SharedClock, start_of
from meterkit.testing import StripeEmulator
from servers.stores import Server

pytestmark = pytest.mark.anyio

SEEDS: Final = range(int(os.environ.get("METERKIT_CRASH_SEEDS", "50")))
ALONE: Final = os.environ.get("METERKIT_CRASH_SEED")
SHARES: Final = 10  # Tests, so that several processes may share them.
SAMPLE: Final = 1  # Of them.


@asynccontextmanager
async def born(seed: int, server: Server, directory: Path) -> AsyncGenerator[Drawn]:
    """A life that has not begun."""
    server.ask("FLUSHALL")
    file = directory / f"{seed}.clock"
    clock = SharedClock(file, start_of(seed))
    emulator = StripeEmulator(clock=clock)
    async with emulator.serve() as url:
        yield Drawn(seed, server, url, emulator, clock, file)


@pytest.mark.dear("the matrix of crashes: each life kills several processes")
@pytest.mark.parametrize("share", some(range(SHARES), range(SAMPLE)))
async def test_i6_what_is_billed_is_what_was_recorded(valkey: Server, tmp_path: Path, share: int) -> None:
    seeds = SEEDS[share::SHARES] if ALONE is None else [int(ALONE)][: share == 0]
    for seed in seeds:
        async with born(seed, valkey, tmp_path) as life:
            ended = await life.lead()
        alone = f"alone: METERKIT_CRASH_SEED={seed} pytest --whole {__name__.replace('.', '/')}.py"
        assert ended.left == [], alone
        assert ended.billed == ended.recorded, alone


async def test_i6_a_stopped_flusher_sends_nothing_of_a_lost_shard(valkey: Server, tmp_path: Path) -> None:
    # It was refused what another had sent, of whom nobody heard again: that counted as never tried.
    async with born(0, valkey, tmp_path) as life:
        life.life["shards"], life.life["transport"] = 1, "v2-stream"
        async with life.begin() as kit:
            await life.record(kit)
            stands = life.start({"how": "stop", "step": "attempt", "when": "after", "nth": 1})
            assert await life.ends(stands) == "stopped"
            await life.wait(70)
            life.expire_leases()
            life.emulator.fail_next("drop", when="after")
            other = life.start({"how": "kill", "step": "send", "when": "after", "nth": 1})
            assert await life.ends(other) == "ended"
            life.expire_leases()
            life.emulator.fail_next("error", status=429, times=None)
            await life.go_on(stands)
            await life.wait(25 * 3600)
            ended = await life.end(kit)
    assert (ended.left, ended.billed) == ([], ended.recorded)
