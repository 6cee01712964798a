"""A store that comes and goes is told once, and then once a minute; an outage that lasts always is."""

# pyright: reportPrivateUsage=false
# What ends a connection, and the clock, are the test's.

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from meterkit.redis.breaker import Reconnector

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from meterkit.redis.breaker import AnyConnection

pytestmark = pytest.mark.anyio


@dataclass
class Timer:
    """What is to be done at a time."""

    at: float
    do: Callable[..., object]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Clock:
    """Stands in for an event loop of which time is moved on by hand; what is due runs then."""

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


class Silent:
    """A connection whose server owes an answer, or ``ended`` by the server."""

    open, is_unfit, gone = True, False, True

    def __init__(self, silent_s: float) -> None:
        self.silent_s = silent_s

    async def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Link:
    """A reconnector whose server is there, or not."""

    clock: Clock
    silent_s: float
    is_there: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, _: object) -> AnyConnection:
        await self.is_there.wait()
        return cast("AnyConnection", Silent(self.silent_s))

    def begin(self) -> None:
        self.reconnector = Reconnector(self.connect, timeout_s=0.25, on_change=lambda _: None)
        self.reconnector._loop = cast("asyncio.AbstractEventLoop", self.clock)
        self.reconnector._away_since = self.clock.now
        self.reconnector._said_at = self.reconnector._told_at = self.clock.now - 3600
        self.is_there.set()
        self.reconnector.begin()

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
async def link(silent_s: float = 0.25) -> AsyncGenerator[Link]:
    made = Link(Clock(), silent_s)
    made.begin()
    await made.back()
    try:
        yield made
    finally:
        await made.reconnector.stop()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


AWAY = "it is silent; trying again until it can"


async def test_a_store_that_comes_and_goes_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with link() as at:
        for _ in range(12):
            await at.blip(9)
        at.clock.advance(600)
        await at.blip(1)
        assert said(caplog) == [
            AWAY,
            "the store is back after 0.6 s",
            "the store was away again, 6 times within 60 s; it is there now",
            "the store was away again, 5 times within 60 s; it is there now",
            AWAY,
            "the store is back after 0.6 s",
        ]
        assert at.reconnector.opened == 13


async def test_an_outage_that_begins_soon_after_a_blip_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with link() as at:
        await at.blip(5)
        await at.blip(5)
        at.clock.advance(5)
        at.end()
        at.clock.advance(45)
        assert said(caplog)[2:] == []
        at.clock.advance(60)
        assert said(caplog)[2:] == [f"{AWAY} (it was away once more since the last such line)"]
        await at.back()
        assert said(caplog)[3:] == ["the store is back after 105.2 s"]


async def test_connections_that_end_again_and_again_are_told_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with link(silent_s=0) as at:
        for _ in range(8):
            at.clock.advance(10)
            at.end()
            await at.back()
        ended = "the store's connection ended: it is silent; connecting again"
        assert said(caplog) == [
            ended,
            "the store is connected again",
            f"{ended} (and 5 times more since the last such line)",
            "the store is connected again",
        ]
