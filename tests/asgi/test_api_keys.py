"""API keys: looked up off the loop, once for all who ask at the same time, and remembered for a while."""

# Internals: owners of keys are kept for a time that its clock measures.

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from meterkit import MeterkitError, identify
from meterkit.asgi import key_owners

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

pytestmark = pytest.mark.anyio


def bearing(key: str) -> Scope:
    return {"type": "http", "headers": [(b"authorization", b"Bearer " + key.encode())]}


async def who(resolve: Callable[[Scope], Any], key: str) -> str | None:
    found = resolve(bearing(key))
    owner: str | None = await found if asyncio.iscoroutine(found) else found
    return owner


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it becomes so in a thread, or in a task that runs meanwhile
        await asyncio.sleep(0)


class Table:
    """Keys and their owners, and what was asked of it, where."""

    def __init__(self, **owners: str) -> None:
        self.owners = dict(owners)
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.open = threading.Event()
        self.open.set()

    def look_up(self, key: str) -> str | None:
        self.asked.append(key)
        self.threads.add(threading.current_thread())
        assert self.open.wait(30)
        return self.owners.get(key)

    async def look_up_later(self, key: str) -> str | None:
        self.asked.append(key)
        self.threads.add(threading.current_thread())
        await until(self.open.is_set)
        return self.owners.get(key)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of what is remembered: one number, that a test moves."""
    clock = [1000.0]
    monkeypatch.setattr(key_owners, "monotonic", lambda: clock[0])
    return clock


async def test_a_lookup_that_blocks_does_not_block_the_loop() -> None:
    """F-65: it ran on the loop, at every request."""
    table = Table(k1="acme")
    table.open.clear()
    resolve = identify.api_key(table.look_up)
    turns = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(who, resolve, "k1")
        while not table.asked or turns < 100:  # The loop turns while the lookup is held up.
            turns += 1
            await asyncio.sleep(0)
        table.open.set()
    assert threading.main_thread() not in table.threads
    assert await who(resolve, "k1") == "acme"
    assert len(table.asked) == 1


@pytest.mark.parametrize("name", ["look_up", "look_up_later"])
async def test_an_owner_is_remembered_for_ttl_and_no_longer(name: str, now: list[float]) -> None:
    table = Table(k1="acme")
    resolve = identify.api_key(getattr(table, name), ttl=timedelta(seconds=60))
    for _ in range(3):
        assert await who(resolve, "k1") == "acme"
    now[0] += 59.9
    assert resolve(bearing("k1")) == "acme"  # At once: nothing to wait for.
    assert len(table.asked) == 1
    now[0] += 0.2
    table.owners.clear()
    assert await who(resolve, "k1") is None
    assert len(table.asked) == 2
    forgetful = identify.api_key(getattr(table, name), ttl=timedelta(0))
    for _ in range(2):
        await who(forgetful, "k1")
    assert len(table.asked) == 4


async def test_that_nobody_owns_a_key_is_forgotten_sooner(now: list[float]) -> None:
    table = Table()
    resolve = identify.api_key(table.look_up)
    assert [await who(resolve, "new") for _ in range(3)] == [None, None, None]
    assert len(table.asked) == 1
    table.owners["new"] = "acme"
    now[0] += 5.1
    assert await who(resolve, "new") == "acme"


async def test_where_the_first_to_ask_is_cancelled_the_next_one_asks() -> None:
    table = Table(k1="acme")
    table.open.clear()
    resolve = identify.api_key(table.look_up_later)
    first, *others = [asyncio.create_task(who(resolve, "k1")) for _ in range(4)]
    await until(lambda: bool(table.asked))
    others.pop().cancel()  # One of those who wait: nobody else hears of it.
    first.cancel()
    await asyncio.wait([first])
    table.open.set()
    assert await asyncio.gather(*others) == ["acme", "acme"]
    assert len(table.asked) == 2


async def test_what_a_lookup_raises_is_raised_and_not_remembered() -> None:
    times = 0

    def look_up(_: str) -> str:
        nonlocal times
        times += 1
        if times == 1:
            raise LookupError("the directory is away")
        return "acme"

    resolve = identify.api_key(look_up)
    found = await asyncio.gather(who(resolve, "k1"), who(resolve, "k1"), return_exceptions=True)
    assert [str(one) for one in found] == ["the directory is away"] * 2
    assert await who(resolve, "k1") == "acme"
    gc.collect()  # A future whose exception nobody fetched would complain now.
    assert times == 2


async def test_the_cache_is_bounded_and_strangers_evict_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_owners, "_KEYS_KEPT_MAX", 4)
    table = Table(k0="acme", **{f"k{n}": f"customer-{n}" for n in range(1, 6)})
    resolve = identify.api_key(table.look_up_later)
    assert await who(resolve, "k0") == "acme"
    for n in range(50):
        assert await who(resolve, f"stranger-{n}") is None
    assert resolve(bearing("k0")) == "acme"
    for n in range(1, 6):
        await who(resolve, f"k{n}")
    table.asked.clear()
    for n in (5, 4, 3, 2):
        await who(resolve, f"k{n}")
    assert table.asked == []
    await who(resolve, "k0")
    assert len(table.asked) == 1


async def test_no_key_is_kept_anywhere() -> None:
    table = Table(**{"sk-live-secret": "acme"})
    resolve = identify.api_key(table.look_up)
    await who(resolve, "sk-live-secret")
    await who(resolve, "sk-live-wrong")
    cells: list[object] = [cell.cell_contents for cell in resolve.__closure__ or ()]
    held = repr(cells)
    owners = next(cell for cell in cells if hasattr(cell, "of"))
    assert "sk-live" not in held + repr(vars(owners))
    assert identify.hash_key("sk-live-secret") in repr(vars(owners))


async def test_a_lookup_that_finds_no_owner_at_all_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """F-136: the log said `anonymous`, and nothing of the form in which a key is looked up."""
    for hashed, gets in ((False, "the key as the client sent it"), (True, "the SHA-256 of the key, in hex")):
        caplog.clear()
        resolve = identify.api_key(dict[str, str]().get, hashed=hashed)
        for n in range(20):
            assert await who(resolve, f"k{n}") is None
        assert [gets in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    resolve = identify.api_key({"k7": "acme"}.get)
    for n in (7, *range(7)):
        await who(resolve, f"k{n}")
    assert caplog.records == []


@pytest.mark.parametrize("hashed", [True, False])
async def test_i10_what_a_lookup_raises_does_not_tell_the_key(hashed: bool) -> None:
    owners: dict[str, str] = {}
    with pytest.raises(MeterkitError, match=r"^the lookup of an API key raised KeyError$") as raised:
        await who(identify.api_key(owners.__getitem__, hashed=hashed), "sk-live-secret")
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_ttl_that_is_none_is_refused() -> None:
    wrong: list[Any] = [60, timedelta(seconds=-1), None]
    for ttl in wrong:
        with pytest.raises(MeterkitError, match=r"^ttl: found .*; allowed is a timedelta from 0"):
            identify.api_key(Table().look_up, ttl=ttl)
