"""The reconnector by itself: how often it tries, what a start waits for, and what it logs."""

# Internals: its clock and its connections are the test's.

# pyright: reportPrivateUsage=false
# What ends a connection, and the clock, are the test's.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from meterkit.errors import StoreError
from meterkit.redis.breaker import Reconnector

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from meterkit.redis.breaker import AnyConnection
    from meterkit.redis.connection import OnEnd

pytestmark = pytest.mark.anyio


class Line:
    """A connection that the test ends; its server owes an answer for so long."""

    open, is_unfit, gone, silent_s = True, False, True, 0.25

    async def close(self) -> None:
        """There is nothing to close."""


async def test_i9_pauses_between_attempts_grow_to_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, pauses, enough = asyncio.sleep, list[float](), asyncio.Event()

    async def connect(_: OnEnd) -> AnyConnection:
        if len(pauses) == 6:
            enough.set()
        raise StoreError("it is away")

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    reconnector = Reconnector(connect, timeout_s=5.0, on_change=lambda _: None)
    reconnector.begin()
    await asyncio.wait_for(enough.wait(), 240)
    await reconnector.stop()
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


async def test_a_start_waits_for_a_connection_that_lasts() -> None:
    """F-233: the start returned without a store, although it had time left."""
    made: list[AnyConnection] = []

    async def connect(on_end: OnEnd) -> AnyConnection:
        line = Line()
        made.append(cast("AnyConnection", line))
        if len(made) == 1:  # It ends once it is used, before those who wait for it have their turn.
            line.open = False
            asyncio.get_running_loop().call_soon(on_end, line, "it has ended", [])
        return made[-1]

    reconnector = Reconnector(connect, timeout_s=5.0, on_change=lambda _: None)
    async with asyncio.timeout(240):
        await reconnector.reach(3600)  # In this task: what is seen next is what the start left.
    assert reconnector.connection is made[1]
    await reconnector.stop()


# Log lines: a store that comes and goes has one a minute; an outage that lasts always has one.


@dataclass
class Timer:
    """A call that is due at a time."""

    at: float
    do: Callable[..., object]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Clock:
    """An event loop whose time a test moves on; calls that are due run then."""

    now: float = 1000.0
    timers: list[Timer] = field(default_factory=list["Timer"])

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, do: Callable[..., object], *_: object) -> asyncio.TimerHandle:
        timer = Timer(at, do)
        self.timers.append(timer)
        return cast("asyncio.TimerHandle", timer)

    def create_task(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            if not timer.is_cancelled:
                timer.do()
        self.now = until


class Link:
    """A reconnector whose server is there, or not."""

    def __init__(self) -> None:
        self.clock, self.is_there = Clock(), asyncio.Event()
        self.is_there.set()
        self.reconnector = Reconnector(self._connect, timeout_s=0.25, on_change=lambda _: None)
        self.reconnector._loop = cast("asyncio.AbstractEventLoop", self.clock)
        self.reconnector._away_since = self.clock.now
        self.reconnector._said_at = self.reconnector._told_at = self.clock.now - 3600
        self.reconnector.begin()

    async def _connect(self, _: object) -> AnyConnection:
        await self.is_there.wait()
        return cast("AnyConnection", Line())

    def end(self) -> None:
        connection = self.reconnector.connection
        assert connection is not None
        self.is_there.clear()
        self.reconnector._on_end(connection, "it is silent", [])

    async def back(self) -> None:
        self.is_there.set()
        await self.reconnector.connected()
        if self.reconnector._task is not None:  # It has ended; who began it is told in the next tick.
            await asyncio.wait([self.reconnector._task])

    async def blip(self, after_s: float) -> None:
        """Go away after so many seconds, for 0.35; it is known after 0.25 more."""
        self.clock.advance(after_s)
        self.end()
        self.clock.advance(0.35)
        await self.back()


@asynccontextmanager
async def link() -> AsyncGenerator[Link]:
    made = Link()
    await made.back()
    try:
        yield made
    finally:
        await made.reconnector.stop()


AWAY = "it is silent; trying again until it can"


async def test_a_store_that_comes_and_goes_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with link() as at:
        for _ in range(12):
            await at.blip(9)
        at.clock.advance(600)
        await at.blip(1)
        assert at.reconnector.opened == 13
    assert caplog.messages == [
        AWAY,
        "the store is back after 0.6 s",
        "the store was away again, 6 times within 60 s; it is there now",
        "the store was away again, 5 times within 60 s; it is there now",
        AWAY,
        "the store is back after 0.6 s",
    ]


async def test_an_outage_that_begins_soon_after_a_blip_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with link() as at:
        await at.blip(5)
        await at.blip(5)
        at.clock.advance(5)
        at.end()
        at.clock.advance(45)
        assert caplog.messages[2:] == []
        at.clock.advance(60)
        assert caplog.messages[2:] == [f"{AWAY} (it was away once more since the last such line)"]
        await at.back()
        assert caplog.messages[3:] == ["the store is back after 105.2 s"]
