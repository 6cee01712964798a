"""The reconnector by itself: how often it tries, what becomes of those who wait, and what it says of that."""

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

# Also where a test has the pauses pass at once.
_sleep = asyncio.sleep


async def ticks(number: int) -> None:
    for _ in range(number):
        await _sleep(0)


@dataclass(eq=False)
class Line:
    """A connection that the test ends."""

    on_end: OnEnd
    open: bool = True
    is_unfit: bool = False
    silent_s: float = 0.0
    gone: bool = False

    async def close(self) -> None:
        self.gone = True

    def end(self) -> None:
        self.open = False
        self.on_end(self, "it has ended", [])

    async def end_soon(self) -> None:
        """End once whoever made it has ended, and wait until that is known."""
        await ticks(3)
        self.end()
        await ticks(3)


@dataclass
class Store:
    """What there is to connect to; ``made`` are the connections, and errors while it is away."""

    is_there: bool = True
    tries: int = 0
    made: list[Line] = field(default_factory=list[Line])
    becomes: Callable[[Line], None] = lambda _: None

    async def connect(self, on_end: OnEnd) -> AnyConnection:
        self.tries += 1
        if not self.is_there:
            raise StoreError("it is away")
        line = Line(on_end)
        self.made.append(line)
        self.becomes(line)
        return cast("AnyConnection", line)


def no_matter(_: object) -> None:
    """Take word of what the test does not look at."""


def reconnector_to(
    store: Store, *, timeout_s: float = 5.0, on_change: Callable[[Any], None] = no_matter
) -> Reconnector:
    return Reconnector(store.connect, timeout_s=timeout_s, on_change=on_change)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(240):
        while not condition():
            await ticks(1)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; each passes at once."""
    made = list[float]()

    async def pause(seconds: float) -> None:
        made.append(seconds)
        await _sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    return made


async def test_i9_pauses_between_attempts_grow_to_half_a_second(
    pauses: list[float],
) -> None:
    store = Store(is_there=False)
    reconnector = reconnector_to(store)
    reconnector.begin()
    await until(lambda: store.tries == 7)
    await reconnector.stop()
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


async def test_a_start_waits_for_a_connection_that_lasts() -> None:
    """F-233: the start returned without a store, although it had time left."""
    store = Store()
    store.becomes = lambda line: None if len(store.made) > 1 else ends_in_the_same_turn(line)
    reconnector = reconnector_to(store)
    async with asyncio.timeout(240):
        await reconnector.reach(3600)  # In this task: what is seen next is what the start left.
    assert reconnector.connection is not None
    assert reconnector.connection is cast("Any", store.made[1])
    await reconnector.stop()


def ends_in_the_same_turn(line: Line) -> None:
    """End a connection after it is used, and before those who wait for it have their turn."""
    asyncio.get_running_loop().call_soon(line.end)


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
