"""A spool file and the records in it: what a disk does not take is not added, what was added counts once."""

# Internals: what a disk takes half of, and what had been sent before, cannot be timed from outside.

# pyright: reportPrivateUsage=false
# Another process is made to come in between, where no call of ours is.

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from drivers.plans import plans_text
from drivers.spools import spool_with
from faults.proxy import TcpProxy
from faults.refusals import PLANS, eventually, kit_at, lane_of, settled, used
from meterkit import MeterKit
from meterkit.catalog import Catalog, loads
from meterkit.decisions.keys import Keys, meter_field, shard_of
from meterkit.decisions.packed import EventMark
from meterkit.errors import StoreError
from meterkit.redis import settlement_queue
from meterkit.redis.local_files import FileLock
from meterkit.redis.settlement_queue import NEVER_SENT, SentRecord
from meterkit.redis.url import parse_redis_url
from meterkit.store import spool_file
from meterkit.store.prepared_decisions import prepare_holding
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities, RateCorrection, RepeatMark, UsedQuantities
from meterkit.store.spool_file import (
    DAMAGED,
    SpoolFile,
    SpoolHeader,
    SpoolInfo,
    find_spools,
    frame,
    list_spools,
)
from meterkit.store.spool_replay import SpoolReplay, read_record, write_record
from meterkit.store.store import Store
from meterkit.store.views import CustomerCache
from servers.stores import Server

SUBJECTS = plans_text("subjects")
BY_MODEL = """
schema: 1
currency: usd
default_plan: free
meters:
  input_tokens: {unit: token}
  large_input: {unit: token, from: input_tokens, where: {model: "*-large*"}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""
HEADER = SpoolHeader(store="redis://here", prefix="mk", shards=4, producer="p", made_ms=1)


@contextmanager
def room_for(size: int) -> Generator[None]:
    """No file of this process grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    tmp_path.chmod(0o700)
    made = SpoolFile.create(tmp_path, HEADER)
    yield made
    made.close()


def test_what_a_disk_does_not_say_it_has_is_not_added(file: SpoolFile) -> None:
    before = file.end
    # This device takes all that is written, and does not say that it keeps it.
    lock: Any = vars(file)["_lock"]
    device = os.open(os.devnull, os.O_RDWR)
    os.dup2(device, lock.fileno())
    os.close(device)
    with pytest.raises(OSError, match="Invalid argument"):
        file.append(frame(b"one"))
    assert file.end == before


def test_what_cannot_be_begun_is_begun_once_there_is_room(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    held = open_files()
    for _ in range(2):  # It is tried each second.
        with room_for(40), pytest.raises(OSError, match="too large"):
            SpoolFile.create(tmp_path, HEADER)
    assert (list(tmp_path.glob("*.spool")), open_files()) == ([], held)
    SpoolFile.create(tmp_path, HEADER).remove()


def test_a_damaged_file_is_kept_under_another_name(file: SpoolFile) -> None:
    file.append(frame(b"one"))
    file.set_aside()
    kept = file.path.with_suffix(DAMAGED)
    assert not file.path.exists()
    assert b"one" in kept.read_bytes()


def test_i11_a_spool_sent_meanwhile_hides_no_other(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes one as they are listed: then none was sent."""
    left, listed = SpoolFile.create(file.path.parent, replace(HEADER, producer="q")), Path.iterdir

    def listed_before(directory: Path) -> Iterator[Path]:
        found = [*listed(directory)]
        file.path.unlink()
        yield from found

    monkeypatch.setattr(Path, "iterdir", listed_before)
    assert list(find_spools(left.path.parent, HEADER)) == [left.path]
    left.close()


def test_i11_what_was_removed_is_put_back_once_there_is_room(file: SpoolFile) -> None:
    directory, held = file.path.parent, open_files()
    file.append(frame(b"one"))
    shutil.rmtree(directory)
    with room_for(40), pytest.raises(OSError, match="too large"):
        file.append(frame(b"two"))
    assert (list(directory.glob("*.spool")), open_files()) == ([], held)
    file.append(frame(b"two"))
    assert ([file.path], open_files()) == (list(directory.glob("*.spool")), held)
    file.close()
    found = SpoolFile.claim(file.path)
    assert found is not None
    assert [b"one", b"two"] == found.read(found.begins)[0]
    found.close()


def test_i11_waiting_for_a_spool_leaves_the_new_one(file: SpoolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FileLock._open

    def open_and_wait(lock: FileLock) -> None:
        opened(lock)
        monkeypatch.setattr(FileLock, "_open", opened)
        file.path.unlink()
        file.recreate_if_removed()

    monkeypatch.setattr(FileLock, "_open", open_and_wait)
    assert SpoolFile.claim(file.path) is None
    assert file.path.exists()


# What lies in the directory of spools.


KEYS = Keys("mk", 4)
STORE = "redis://127.0.0.1:6379/0"
NOW_MS = 1_950_000_000_000
DAY_MS = 86_400_000


def spool_of(folder: Path, name: str, *, store: str = STORE, keys: Keys = KEYS, age_ms: int = 0) -> SpoolFile:
    header = replace(SpoolHeader.of(keys, store), producer=name, made_ms=NOW_MS - age_ms)
    return SpoolFile.create(folder, header)


def seen_in(directory: Path) -> Sequence[SpoolInfo]:
    return list_spools(directory, KEYS, store=STORE, now_ms=NOW_MS)


def test_each_is_told_by_who_has_it_whose_it_is_and_how_old(tmp_path: Path) -> None:
    held = spool_of(tmp_path, "held", age_ms=5000)
    for producer, days in (("left", 6), ("old", 7)):
        spool_of(tmp_path, producer, age_ms=days * DAY_MS).close()
    spool_of(tmp_path, "address", store="redis://10.0.0.5:6379/0", age_ms=1).close()
    spool_of(tmp_path, "shards", keys=Keys("mk", 8), age_ms=2).close()
    damaged = spool_of(tmp_path, "damaged")
    damaged.set_aside()
    (tmp_path / "odd.spool").write_bytes(b"no spool")
    (tmp_path / "empty.spool").touch()
    (tmp_path / "notes.txt").write_text("of somebody else")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    states = {one.path.stem.rpartition("-")[2]: one for one in seen_in(tmp_path)}
    assert {name: one.state for name, one in states.items()} == {
        "held": "held",
        "left": "left",
        "old": "refused",
        "address": "foreign",
        "shards": "foreign",
        "damaged": "damaged",
        "odd": "refused",
    }
    assert (states["left"].begun_ms, states["left"].why) == (NOW_MS - 6 * DAY_MS, "")
    assert states["left"].size == states["left"].path.stat().st_size
    assert states["old"].why.startswith("it was begun 7 days ago")
    assert states["odd"].why == "it cannot be read: it does not begin as a spool does"
    assert "10.0.0.5" in states["address"].why
    assert "8 shards" in states["shards"].why
    held.close()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_spool_removed_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file was left, of the user who had looked: an app of another user could not open it."""
    path = spool_of(tmp_path, "left").path

    def open_last(self: Path, mode: str) -> IO[Any]:
        file = os.fdopen(os.open(self, os.O_RDONLY), mode)
        path.unlink()
        return file

    monkeypatch.setattr(Path, "open", open_last)
    assert (seen_in(tmp_path), path.exists()) == ([], False)
    assert (SpoolFile.claim(path), path.exists()) == (None, False)


def test_whoever_looks_keeps_nobody_from_taking_a_spool_over(tmp_path: Path) -> None:
    path = spool_of(tmp_path, "left").path
    for _ in range(50):
        assert [one.state for one in seen_in(tmp_path)] in (["left"], ["held"])
        taken = SpoolFile.claim(path)
        if taken is not None:
            assert [one.state for one in seen_in(tmp_path)] == ["held"]
            taken.close()


@pytest.mark.parametrize("zeros", [8, 4096])
@pytest.mark.anyio
async def test_i11_zeros_of_a_power_failure_hold_up_no_spool(
    valkey: Server, tmp_path: Path, zeros: int
) -> None:
    # A file may have grown on disk before the data that were being written.
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        old, later = (spool_with(kit, tmp_path, "tokens", 5, days=days) for days in (2, 1))
        old.append(bytes(zeros))
        old.close()
        later.close()
        os.utime(old.path, (1, 1))  # The oldest is sent first.
        report = await kit.flush(everything=True)
        assert (report.spooled, report.spools_left, await used(kit, "acme", "tokens")) == (2, [], (10, 0))
        assert seen_in(tmp_path) == []


@pytest.mark.anyio
async def test_i11_a_large_spool_is_sent_while_the_store_takes_it(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 1 GiB takes ten minutes at 1 ms: after five it was left, and the next flush began it anew."""
    send = SpoolReplay.send

    async def sending(self: SpoolReplay, records: Sequence[bytes]) -> None:
        await asyncio.sleep(0.1)
        await send(self, records)

    monkeypatch.setattr(spool_file, "_READ_BYTES", 300)  # Three records or so at a time.
    monkeypatch.setattr(SpoolReplay, "send", sending)
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        file = spool_with(kit, tmp_path, "tokens", 5)
        file.append(b"".join(frame(record_of(kit, number, 5, None)) for number in range(2, 25)))
        file.close()
        assert await kit.store.send_spools(within_s=0.4) == (24, ())
        assert await used(kit, "acme", "tokens") == (120, 0)


@pytest.mark.anyio
async def test_i11_a_spool_damaged_under_its_process_is_kept(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement_queue, "_SPILL_AFTER_S", 0.05)
    async with (
        TcpProxy(valkey.port) as proxy,
        kit_at(proxy.url, spool_dir=tmp_path, store_timeout=0.2) as kit,
    ):
        await proxy.set("refuse")
        await kit.record("acme", "tokens", 5)
        (path,) = (one.path for one in seen_in(tmp_path))
        held = path.read_bytes()
        path.write_bytes(held[:-1] + b"!")
        await proxy.set("pass")
        await eventually(lambda: lane_of(kit).lost == 1)
        await eventually(lambda: path.with_suffix(DAMAGED).exists())
        assert "settlements lost: 1" in caplog.text
        await kit.record("acme", "tokens", 2)
        assert await used(kit, "acme", "tokens") == (2, 0)


@pytest.mark.anyio
async def test_i11_a_long_name_of_a_model_damages_no_spool(proxy: TcpProxy, tmp_path: Path) -> None:
    """An app may pass on the name that a client sends; no record behind one so long was read."""
    async with kit_at(
        proxy.url, shards=1, plans=loads(BY_MODEL), spool_dir=tmp_path, store_timeout=2.0
    ) as kit:
        async with kit.reserve("acme", {"input_tokens": 3}) as reservation:
            await proxy.set("refuse")
            await eventually(lambda: lane_of(kit).is_down)
            await reservation.capture({"input_tokens": 3}, model="m" * 1_100_000)
        await kit.record("globex", "input_tokens", 5)
        await proxy.set("pass")
        await eventually(lambda: lane_of(kit).connected and lane_of(kit).unsettled == 0)
        assert await used(kit, "acme", "input_tokens") == (3, 0)
        assert (await used(kit, "globex", "input_tokens"), lane_of(kit).lost) == ((5, 0), 0)


# Records are sent by another process, by the word of the one that wrote them.


@asynccontextmanager
async def replaying(
    url: str, directory: Path, plans: Catalog | None = None, **told: Any
) -> AsyncGenerator[tuple[MeterKit, SpoolReplay, str]]:
    """A kit that sends what another process has spooled, and the key of that one's numbers."""
    async with kit_at(url, plans=plans, shards=1, spool_dir=directory) as kit:
        store, lane = kit.store, await kit.store.lane()
        replay = SpoolReplay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys, **told)
        yield kit, replay, store.keys.producer(0, "0" * 16)


def record_of(kit: MeterKit, nth: int, tokens: int, sent: SentRecord | None, customer: str = "acme") -> bytes:
    settlement = Settlement(kit.store.cache.get(customer), used=UsedQuantities(recorded={"tokens": tokens}))
    return write_record(settlement, nth, kit.store.now_ms(), sent)


@pytest.mark.parametrize(
    ("kept", "acknowledged", "recorded", "lost"),
    [
        pytest.param(None, 0, 12, 0, id="none of its producer's had been applied"),
        pytest.param(5, 5, 12, 0, id="neither was applied without an answer"),
        pytest.param(6, 5, 7, 0, id="the first was applied without an answer"),
        pytest.param(7, 5, 0, 0, id="both were applied without an answer"),
        # What follows on them was lost as well, and is recorded.
        pytest.param(3, 5, 12, 2, id="the store has lost two that it had acknowledged"),
        # Nobody knows whether they were applied: in doubt they are not billed.
        pytest.param(None, 5, 0, 7, id="the store has no record of what it had acknowledged"),
    ],
)
@pytest.mark.anyio
async def test_i6_spooled_usage_the_store_may_have_counts_once(
    valkey: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kept: int | None,
    acknowledged: int,
    recorded: int,
    lost: int,
) -> None:
    async with replaying(valkey.url, tmp_path) as (kit, replay, earlier):
        if kept is not None:
            valkey.ask("SET", earlier, f"{kept}", "PX", "60000")
        sent = [SentRecord(earlier, acknowledged + nth, acknowledged) for nth in (1, 2)]
        await replay.send([record_of(kit, 1, 5, sent[0]), record_of(kit, 2, 7, sent[1])])
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((recorded, 0), lost)
        assert replay.done == {0: 2}
    assert ("settlements of a spool lost" in caplog.text) == (lost > 0)  # F-319: "lost: 0".


@pytest.mark.parametrize(("kept", "recorded"), [(5, 12), (6, 7)])
@pytest.mark.anyio
async def test_i6_what_may_have_been_applied_counts_for_subjects_once(
    valkey: Server, tmp_path: Path, kept: int, recorded: int
) -> None:
    async with replaying(valkey.url, tmp_path, loads(SUBJECTS)) as (kit, replay, earlier):
        valkey.ask("SET", earlier, f"{kept}", "PX", "60000")
        view = kit.store.cache.get("acme", subjects=(("user", "u_7"),))
        for nth, quantity in ((1, 5), (2, 7)):
            settlement = Settlement(view, used=UsedQuantities(recorded={"words": quantity}))
            await replay.send(
                [write_record(settlement, nth, kit.store.now_ms(), SentRecord(earlier, 5 + nth, 5))]
            )
        (found,) = await kit.usage("acme", by="user")
        assert found.meters["words"].recorded == recorded


@pytest.mark.parametrize(("is_own", "lost"), [(False, 5), (True, 0)])
@pytest.mark.anyio
async def test_i11_unsent_records_tell_losses(
    valkey: Server, tmp_path: Path, is_own: bool, lost: int
) -> None:
    # F-122: the process that sends the spool of a dead one counts what the store has lost of that.
    async with replaying(valkey.url, tmp_path, is_same_loop=is_own) as (kit, replay, earlier):
        unsent = record_of(kit, 1, 7, SentRecord(earlier, NEVER_SENT, 5))
        await replay.send([unsent, record_of(kit, 2, 7, None)])
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((14, 0), lost)


@pytest.mark.parametrize("value", ["a key of another type", "a field that is no number"])
@pytest.mark.anyio
async def test_i11_a_record_not_applied_blocks_no_other(valkey: Server, tmp_path: Path, value: str) -> None:
    async with replaying(valkey.url, tmp_path) as (kit, replay, _):
        await kit.record("acme", "tokens", 1)
        counters = kit.store.keys.customer("acme").counters
        if value == "a key of another type":
            valkey.command("DEL", counters)
            valkey.command("SET", counters, value)
        else:
            valkey.command("HSET", counters, meter_field("tokens"), value)
        customers = enumerate(("globex", "acme", "globex", "acme", "globex"), start=1)
        await replay.send([record_of(kit, nth, 5, None, customer) for nth, customer in customers])
        assert (await used(kit, "globex", "tokens"), replay.lost) == ((15, 0), 2)
        assert replay.done == {0: 5}


def pings(server: Server) -> int:
    """How many a server has answered."""
    return int(server.command("INFO", "commandstats").get("cmdstat_ping", {"calls": 0})["calls"])


@pytest.mark.anyio
async def test_i9_records_of_many_shards_wait_for_few_replies(valkey: Server, tmp_path: Path) -> None:
    """Each shard's were awaited in turn: with 128 and 1 ms a spool of 1 GiB took more than an hour."""
    async with kit_at(valkey.url, shards=128, spool_dir=tmp_path) as kit:
        lane, keys = await kit.store.lane(), kit.store.keys
        replay = SpoolReplay("f" * 16, lane_of=lane.lane_of, cache=kit.store.cache, keys=keys)
        before, counted, records = pings(valkey), Counter[int](), list[bytes]()
        for nth in range(256):
            customer = f"customer-{nth}"
            counted[shard := shard_of(customer, keys.shards)] += 1
            records.append(record_of(kit, counted[shard], 5, None, customer))
        await replay.send(records)
        assert len(replay.done) > 64
        assert pings(valkey) - before < 16


# A record is read as it was written, by whichever release wrote it.


AT_MS = 1_800_000_000_000
SENT = SentRecord("mk:{3}:w:abc", 7, 5)


@pytest.fixture
def cache() -> CustomerCache:
    return Store(parse_redis_url("redis://127.0.0.1:6379/0"), loads(PLANS)).cache


def said(settlement: Settlement) -> dict[str, Any]:
    """All that is applied of a settlement, but for when."""
    names = ("customer", "held", "slot", "used", "correction", "event", "mark")
    return {name: getattr(settlement, name) for name in names} | {"anonymous": settlement.view.anonymous}


@pytest.mark.parametrize("anonymous", [False, True])
def test_a_record_is_read_as_it_was_written(cache: CustomerCache, *, anonymous: bool) -> None:
    view = cache.get("192.0.2.1", anonymous=anonymous)
    used = UsedQuantities({"tokens": 3}, {"tokens": 4}, {"model": "m"}, measured={"tokens": 2})
    held = HeldQuantities({"tokens": 9}, ("requests",), 6_000_000, {"tokens": 1_500})
    correction = RateCorrection({"tokens": 9}, frozenset({"a", "b"}), AT_MS - 5)
    event = EventMark("mk:{3}:e:0a", "order-1", {"requests": 1})
    for settlement in (
        Settlement(view),
        Settlement(view, used=UsedQuantities.of({"tokens": 5}, model="großes", provider='of "one\'s" own')),
        Settlement(view, used=used, held=held, correction=correction),
        Settlement(view, used=UsedQuantities(rated={"requests": 1}), event=event),
        Settlement(
            view, used=UsedQuantities.of({"requests": 1}), mark=RepeatMark("0a" * 16, billed=not anonymous)
        ),
    ):
        # Requests share their settlement: what is theirs alone is new in each record.
        for number, at_ms, sent in ((1, AT_MS, None), (2, AT_MS + 9, SENT), (3, AT_MS + 9, None)):
            found = read_record(write_record(settlement, number, at_ms, sent), cache)
            assert (found.number, found.sent) == (number, sent)
            assert said(found.settlement) == said(settlement)
            assert (found.settlement.occurred_ms, found.settlement.rated_ms) == (at_ms, at_ms)
    # An instant that the app has named stands.
    named = Settlement(view, used=UsedQuantities.of({"tokens": 5}), occurred_ms=AT_MS - 1000)
    assert read_record(write_record(named, 1, AT_MS, None), cache).settlement.occurred_ms == AT_MS - 1000


def test_a_spooled_record_keeps_holds_of_subjects() -> None:
    cache = Store(parse_redis_url("redis://127.0.0.1:6379/0"), loads(SUBJECTS)).cache
    view = cache.get("acme", subjects=(("user", "u_7"), ("team", "größe")))
    decision = prepare_holding(view, {"words": 100, "calls": 2}, "d")
    settlement = Settlement(view, held=HeldQuantities.of(decision, 6), used=UsedQuantities.of({"words": 70}))
    found = read_record(write_record(settlement, 1, AT_MS, None), cache).settlement
    assert found.view.subjects is not None
    assert (found.view.subjects.given, found.held) == ((("user", "u_7"), ("team", "größe")), settlement.held)
    assert (found.held.subjects["user"].spent, len(found.held.subjects["user"].rates)) == (100 * 30, 1)


def test_i12_a_record_of_the_release_before_is_read(cache: CustomerCache) -> None:
    record = (
        b'{"n":4,"c":"acme","at":1800000000000,"anonymous":true,"sent":["mk:{3}:w:abc",7,5],'
        b'"recorded":{"tokens":3},"rated":{"tokens":4},"measured":{},"dimensions":{"model":"m"},'
        b'"held":[{"tokens":9},["requests"],6000000],"correction":[{"tokens":9},["a","b"],5],'
        b'"event":"mk:{3}:e:0a","mark":["0a",true]}'
    )
    number, settlement, sent = read_record(record, cache)
    assert (number, sent, settlement.rated_ms) == (4, SENT, AT_MS)
    assert said(settlement) == {
        "customer": "acme",
        "anonymous": True,
        "held": HeldQuantities({"tokens": 9}, ("requests",), 6_000_000),
        "slot": 6_000_000,
        "used": UsedQuantities({"tokens": 3}, {"tokens": 4}, {"model": "m"}, {}),
        "correction": RateCorrection({"tokens": 9}, frozenset({"a", "b"}), 5),
        "event": EventMark("mk:{3}:e:0a"),
        "mark": RepeatMark("0a", billed=True),
    }


@pytest.mark.anyio
async def test_i11_a_loss_is_counted_once_however_often_a_spool_begins(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # F-319: each time that the store went away amid a spool, what it had lost was counted again.
    send, interrupted = SpoolReplay.send, [1, 2]

    async def sending(self: SpoolReplay, records: Sequence[bytes]) -> None:
        await send(self, records)
        if interrupted:
            interrupted.pop()
            raise StoreError("the store is down again", executed=False)

    monkeypatch.setattr(SpoolReplay, "send", sending)
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        shard = kit.store.cache.get("acme").shard
        file = spool_with(kit, tmp_path, "tokens", 5)
        sent = SentRecord(kit.store.keys.producer(shard, "gone"), 8, 7)
        file.append(b"".join(frame(record_of(kit, number, 5, sent)) for number in (2, 3)))
        file.close()
        for _ in range(3):
            with suppress(StoreError):
                await kit.store.send_spools()
        # Seven that were acknowledged, and two whose outcome is not known.
        assert (lane_of(kit).lost, interrupted) == (9, [])
        assert await used(kit, "acme", "tokens") == (5, 0)
    assert caplog.text.count("settlements of a spool lost") == 3


@pytest.mark.anyio
async def test_a_disk_that_takes_nothing_is_told_once(
    proxy: TcpProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # F-319: a line for each record.
    directory = tmp_path / "spools"
    async with kit_at(proxy.url, spool_dir=directory, store_timeout=0.1) as kit:
        await proxy.set("refuse")
        directory.touch()
        await asyncio.gather(*(kit.record("acme", "tokens", 1) for _ in range(5)))
        assert caplog.text.count("has not acknowledged what was recorded") == 1
        directory.unlink()
        await proxy.set("pass")
        await settled(kit)
        assert await used(kit, "acme", "tokens") == (5, 0)
