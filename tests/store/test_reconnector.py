"""The reconnector by itself: how often it tries, and what becomes of those who wait for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from meterkit.errors import SettingsError, StoreError
from meterkit.redis.breaker import Reconnector

if TYPE_CHECKING:
    from collections.abc import Callable

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


async def test_i9_a_store_that_is_away_is_tried_after_pauses_of_half_a_second_at_most(
    pauses: list[float],
) -> None:
    store = Store(is_there=False)
    reconnector = reconnector_to(store)
    reconnector.begin()
    await until(lambda: store.tries == 7)
    await reconnector.stop()
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


async def test_a_server_that_does_not_serve_is_not_connected_to_again_and_again(pauses: list[float]) -> None:
    store = Store(becomes=lambda line: setattr(line, "is_unfit", True))

    def end(line: Line | None) -> None:
        if line is not None:
            asyncio.get_running_loop().call_soon(line.end)

    reconnector = reconnector_to(store, on_change=end)
    reconnector.begin()
    await until(lambda: len(store.made) == 7)
    await reconnector.stop()
    assert pauses[:6] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


async def test_after_a_connection_that_lasted_the_next_is_made_at_once(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.breaker._STEADY_S", 0.0)
    store = Store(is_there=False)
    reconnector = reconnector_to(store)
    reconnector.begin()
    await until(lambda: store.tries == 3)
    store.is_there = True
    await reconnector.connected()
    pauses.clear()
    store.made[0].is_unfit = True
    store.made[0].end()
    await reconnector.connected()
    assert pauses == []
    await reconnector.stop()


async def test_a_silence_of_a_timeout_opens_the_breaker_at_once_and_a_connection_closes_it() -> None:
    store = Store()
    reconnector = reconnector_to(store)
    reconnector.begin()
    await reconnector.connected()
    store.is_there = False
    store.made[0].silent_s = 5.0
    await store.made[0].end_soon()
    assert (reconnector.is_open, reconnector.opened) == (True, 1)
    with pytest.raises(StoreError, match="not connected"):
        reconnector.call(cast("Any", None))
    store.is_there = True
    await reconnector.connected()
    assert (reconnector.is_open, reconnector.opened) == (False, 1)
    await reconnector.stop()


async def test_a_breaker_that_is_not_needed_any_more_does_not_open() -> None:
    store = Store(is_there=False)
    reconnector = reconnector_to(store, timeout_s=0.1)
    reconnector.begin()
    await until(lambda: store.tries == 1)
    for task in asyncio.all_tasks():
        if "_connect" in getattr(task.get_coro(), "__qualname__", ""):
            task.cancel()  # Somebody does; then it begins once more.
    store.is_there = True
    await reconnector.connected()
    await _sleep(0.15)
    assert (reconnector.is_open, reconnector.opened) == (False, 0)
    await reconnector.stop()


async def test_who_waits_for_a_connection_is_told_when_none_will_come() -> None:
    store = Store(is_there=False)
    reconnector = reconnector_to(store)
    reconnector.begin()
    waiting = reconnector.call(cast("Any", None))
    reaching = asyncio.ensure_future(reconnector.reach(3600))
    await until(lambda: store.tries == 1)
    await reconnector.stop()
    with pytest.raises(StoreError, match="it is away"):
        await waiting
    await asyncio.wait_for(reaching, 240)
    with pytest.raises(StoreError, match="it is away"):
        reconnector.call(cast("Any", None))


async def test_no_connection_is_left_open_that_ended_before_it_was_used() -> None:
    store = Store(becomes=lambda line: setattr(line, "open", False))
    reconnector = reconnector_to(store)
    reconnector.begin()
    await until(lambda: len(store.made) == 2)
    await reconnector.stop()
    assert all(line.gone for line in store.made[:2])


async def test_an_outage_after_the_start_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    reconnector = reconnector_to(store)
    await reconnector.reach(5)
    store.is_there = False
    store.made[0].silent_s = 5.0
    await store.made[0].end_soon()
    assert [record.getMessage() for record in caplog.records] == ["it has ended; trying again until it can"]
    await reconnector.stop()


async def test_what_was_wrong_with_the_settings_is_not_said_of_a_later_outage() -> None:
    store = Store()
    errors: list[Exception] = [SettingsError("redis_url", "another store")]

    async def connect(on_end: OnEnd) -> AnyConnection:
        if errors:
            raise errors.pop()
        return await store.connect(on_end)

    reconnector = Reconnector(connect, timeout_s=5.0, on_change=lambda _: None)
    with pytest.raises(SettingsError):
        await asyncio.wait_for(reconnector.reach(3600), 240)
    await reconnector.connected()
    store.is_there = False
    store.made[0].silent_s = 5.0
    await store.made[0].end_soon()
    assert type(reconnector.trouble) is StoreError
    # Nor is it waited for again: it was last reached long ago.
    await asyncio.wait_for(reconnector.reach(0), 240)
    await reconnector.stop()


async def test_a_connection_that_ends_at_once_is_made_again_while_the_start_waits() -> None:
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


async def test_a_store_of_its_own_is_waited_for_until_the_first_attempt_ends() -> None:
    """F-233: a busy machine took longer to start it than a store is waited for that runs already."""
    may_connect = asyncio.Event()
    store = Store()

    async def start(on_end: OnEnd) -> AnyConnection:
        await may_connect.wait()
        return await store.connect(on_end)

    reconnector = Reconnector(start, timeout_s=0.01, on_change=lambda _: None)
    reaching = asyncio.ensure_future(reconnector.reach(0, is_own=True))
    await _sleep(0.05)
    assert not reaching.done()
    may_connect.set()
    await reaching
    assert reconnector.connection is cast("Any", store.made[0])
    await reconnector.stop()


async def test_a_store_of_its_own_that_does_not_start_is_not_waited_for() -> None:
    reconnector = reconnector_to(Store(is_there=False))
    await asyncio.wait_for(reconnector.reach(0, is_own=True), 240)
    assert reconnector.connection is None
    await reconnector.stop()
