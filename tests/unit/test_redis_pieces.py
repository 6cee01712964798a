"""Pieces of the store's client that need no server."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
import stat
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.decisions.keys import Keys
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.redis import discovery, scripts
from meterkit.redis.breaker import Reconnector
from meterkit.redis.daemon_thread import in_daemon_thread
from meterkit.redis.embedded import EmbeddedServer
from meterkit.redis.filelock import FileLock
from meterkit.redis.hold_renewal import Renewal
from meterkit.redis.lane import Lane
from meterkit.redis.private_directory import check_peer, make_directory
from meterkit.redis.server import eviction_warning, not_past
from meterkit.redis.tallies import BUCKETS_S, Tallies
from meterkit.redis.tls import Tls
from meterkit.redis.url import Address, Place
from servers.stores import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from meterkit.redis.breaker import AnyConnection
    from meterkit.redis.connection import OnEnd

pytestmark = pytest.mark.anyio


def ignore(*_: object) -> None:
    """Nothing is done."""


def test_a_thread_gives_its_result_or_its_error() -> None:
    assert in_daemon_thread(lambda: 7, name="seven").result(10) == 7
    assert isinstance(in_daemon_thread(lambda: 1 // 0, name="none").exception(10), ZeroDivisionError)


def test_a_clock_may_be_ahead_and_no_more_than_a_minute_behind() -> None:
    now = time()
    for told in (now + 10**6, now - 30):
        assert not_past(partial(float, told), "redis://x")() == told
    with pytest.raises(MeterkitError, match="which is past, and redis://x keeps nothing"):
        not_past(lambda: now - 90, "redis://x")()


def test_files_of_a_store_are_of_this_user_alone(tmp_path: Path) -> None:
    make_directory(tmp_path / "new")
    ignored = tmp_path / "new" / ".gitignore"
    assert ignored.read_text() == "# A database of meterkit.\n*\n"
    lock = FileLock(tmp_path / "new" / "some.lock")
    assert lock.acquire()
    try:
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (ignored, tmp_path / "new" / "some.lock")]
    finally:
        lock.close()
    assert modes == [0o600, 0o600]


def test_a_server_of_this_user_is_used(tmp_path: Path) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        check_peer(one, tmp_path / "socket")


def test_a_full_disk_is_named_and_another_error_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        def acquire(*_: object, **__: object) -> bool:
            raise OSError(number, "so it is")

        monkeypatch.setattr(FileLock, "acquire", acquire)

    fail(errno.ENOSPC)
    with pytest.raises(StoreError):
        EmbeddedServer(tmp_path / "store").start()
    fail(errno.EIO)
    with pytest.raises(OSError, match="so it is"):
        EmbeddedServer(tmp_path / "store").start()


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"maxmemory_policy": "noeviction"}, None),
        (
            {"maxmemory_policy": "allkeys-lru", "maxmemory": "0"},
            r"no limit now: maxmemory 0\) it throws away customers",
        ),
        ({"maxmemory_policy": "volatile-lru", "maxmemory": "9"}, r"memory is full it throws away counters"),
    ],
)
def test_a_server_that_may_throw_keys_away_is_warned_of(memory: dict[str, str], expected: str | None) -> None:
    found = eviction_warning(memory)
    assert found is None if expected is None else found and re.search(expected, found)


@pytest.mark.parametrize("name", ["decide", "seal", "strand"])
def test_a_script_has_each_function_once(name: str) -> None:
    text = scripts.load(name).text
    functions = re.findall(r"^local function (\w+)", text, re.MULTILINE)
    assert functions
    assert len(functions) == len(set(functions))


def test_without_a_certificate_of_its_own_a_client_names_none() -> None:
    assert isinstance(Tls().context, ssl.SSLContext)
    with pytest.raises(SettingsError, match=r"ssl_certfile=none\.pem cannot be used"):
        _ = Tls(certfile="none.pem").context


def test_a_certificate_that_nothing_vouches_for_is_refused_with_its_cure() -> None:
    error = ssl.SSLCertVerificationError("no")
    error.verify_code, error.verify_message = 19, "self-signed certificate in certificate chain"
    for tls, named in ((Tls(), "the system's are asked"), (Tls(ca_certs="ca.pem"), "ca.pem is read")):
        assert f"of the authorities that vouch for it ({named})" in tls.refusal(error)


async def test_every_request_is_answered_and_one_in_eight_is_timed() -> None:
    tallies, loop = Tallies(), asyncio.get_running_loop()

    def call(_: object) -> asyncio.Future[Any]:
        future = loop.create_future()
        future.set_result(7)
        return future

    timed = tallies.timed(call)
    asked: Any = None
    assert [await timed(asked) for _ in range(16)] == [7] * 16
    await asyncio.sleep(0)
    assert (sum(tallies.durations), len(tallies.durations)) == (2, len(BUCKETS_S) + 1)


async def test_a_cluster_that_cannot_be_reached_says_why() -> None:
    place = Place("127.0.0.1", free_port())
    for places, why in (((place,), "Connect call failed|refused"), ((), "no node is named")):
        with pytest.raises(StoreError, match=f"cannot be reached: .*({why})"):
            await discovery.find(Address(kind="cluster", places=places), (), timeout_s=5, clock=time)


async def test_renewal_that_begins_again_renews_once_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    renewal = Renewal(ignore, lambda: 0)
    timers = list[asyncio.TimerHandle]()
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(delay: float, call: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:
        timer = later(delay, call, *args, **more)
        timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", call_later, raising=False)
    renewal.begin()
    renewal.begin()
    renewal.stop()
    assert len(timers) == 2
    assert all(timer.cancelled() for timer in timers)


def lane() -> Lane:
    async def connect(_: OnEnd) -> AnyConnection:
        raise StoreError("it is away")

    script = scripts.load("settle")
    return Lane(connect, keys=Keys("mk", 1), scripts=[script], fence=script, timeout_s=1, now_ms=lambda: 0)


async def test_a_warning_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    found = lane()
    for _ in range(3):
        found.warn("the store is full")
    assert caplog.messages == ["the store is full"]


async def test_scripts_are_loaded_once_for_all_that_miss_them_in_a_tick() -> None:
    found, asked = lane(), list[tuple[Any, ...]]()

    class Line:
        def ask(self, *parts: Any) -> None:
            asked.append(parts)

    line: Any = Line()
    found.load(None)
    found.load(line)
    found.load(line)
    assert [parts[:2] for parts in asked] == [("SCRIPT", "LOAD")]
    await asyncio.sleep(0)
    found.load(line)
    assert len(asked) == 2


async def test_settings_that_do_not_fit_the_store_are_refused_at_the_start() -> None:
    async def refuse(_: OnEnd) -> AnyConnection:
        raise SettingsError("redis_url", "redis_url: it is another's")

    reconnector = Reconnector(refuse, timeout_s=1, on_change=ignore)
    with pytest.raises(SettingsError, match="it is another's"):
        await reconnector.reach(5)
    await reconnector.stop()


async def test_requests_are_not_served_before_the_kit_is_started() -> None:
    assert not lane().is_served
