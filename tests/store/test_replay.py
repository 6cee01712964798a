"""A record of the spool: read as it was written, and applied once, by the word of its producer of then."""

# Internals: a pure table of records; what had been sent before cannot be timed from outside.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from faults.refusals import PLANS, kit_at, used
from meterkit.catalog import loads
from meterkit.decisions.event_marks import EventMark
from meterkit.decisions.keys import meter_field
from meterkit.redis.settling import NEVER_SENT, Sent
from meterkit.redis.url import parse_redis_url
from meterkit.store.hold import Correction, Held, Mark, Used
from meterkit.store.replay import Replay, read, write
from meterkit.store.settlement import Settlement
from meterkit.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from meterkit import MeterKit
    from meterkit.store.views import CustomerCache
    from servers.stores import Server

pytestmark = pytest.mark.anyio

QUANTITIES: Final = (5, 7)


def record_of(kit: MeterKit, customer: str, number: int, tokens: int, sent: Sent | None) -> bytes:
    settlement = Settlement(kit.store.cache.get(customer), used=Used(recorded={"tokens": tokens}))
    return write(settlement, number, kit.store.now_ms(), sent)


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
async def test_i6_spooled_usage_the_store_may_have_counts_once(
    valkey: Server, tmp_path: Path, kept: int | None, acknowledged: int, recorded: int, lost: int
) -> None:
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        view = store.cache.get("acme")
        earlier = store.keys.producer(view.shard, "0" * 16)
        if kept is not None:
            valkey.ask("SET", earlier, f"{kept}", "PX", "60000")
        records = [
            record_of(kit, "acme", nth, quantity, Sent(earlier, acknowledged + nth, acknowledged))
            for nth, quantity in enumerate(QUANTITIES, start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys)
        await replay.send(records)
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((recorded, 0), lost)
        assert replay.done == {view.shard: 2}


@pytest.mark.parametrize(("is_own", "lost"), [(False, 5), (True, 0)])
async def test_i11_unsent_records_tell_what_their_producer_lost(
    valkey: Server, tmp_path: Path, is_own: bool, lost: int
) -> None:
    # F-122: the process that sends the spool of a dead one counts what the store has lost of that.
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        view = store.cache.get("acme")
        earlier = store.keys.producer(view.shard, "0" * 16)
        sent = (Sent(earlier, NEVER_SENT, 5), None)
        records = [record_of(kit, "acme", nth, 7, of) for nth, of in enumerate(sent, start=1)]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys, is_own=is_own)
        await replay.send(records)
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((14, 0), lost)


@pytest.mark.parametrize("value", ["a key of another type", "a field that is no number"])
async def test_i11_a_record_that_cannot_be_applied_blocks_no_other(
    valkey: Server, tmp_path: Path, value: str
) -> None:
    async with kit_at(valkey.url, shards=1, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        await kit.record("acme", "tokens", 1)
        counters = store.keys.customer("acme").counters
        if value == "a key of another type":
            valkey.command("DEL", counters)
            valkey.command("SET", counters, value)
        else:
            valkey.command("HSET", counters, meter_field("tokens"), value)
        records = [
            record_of(kit, customer, nth, 5, None)
            for nth, customer in enumerate(("globex", "acme", "globex"), start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys)
        await replay.send(records)
        assert (await used(kit, "globex", "tokens"), replay.lost) == ((10, 0), 1)
        assert replay.done == {0: 3}


# A record is read as it was written, by whichever release wrote it.


AT_MS = 1_800_000_000_000
SENT = Sent("mk:{3}:w:abc", 7, 5)


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
    used = Used({"tokens": 3}, {"tokens": 4}, {"model": "m"}, measured={"tokens": 2})
    held = Held({"tokens": 9}, ("requests",), 6_000_000, {"tokens": 1_500})
    correction = Correction({"tokens": 9}, frozenset({"a", "b"}), AT_MS - 5)
    event = EventMark("mk:{3}:e:0a", "order-1", {"requests": 1})
    for settlement in (
        Settlement(view),
        Settlement(view, used=Used.of({"tokens": 5}, model="großes", provider='of "one\'s" own')),
        Settlement(view, used=used, held=held, correction=correction),
        Settlement(view, used=Used(rated={"requests": 1}), event=event),
        Settlement(view, used=Used.of({"requests": 1}), mark=Mark("0a" * 16, billed=not anonymous)),
    ):
        # Requests share their settlement: what is theirs alone is new in each record.
        for number, at_ms, sent in ((1, AT_MS, None), (2, AT_MS + 9, SENT), (3, AT_MS + 9, None)):
            found = read(write(settlement, number, at_ms, sent), cache)
            assert (found.number, found.sent) == (number, sent)
            assert said(found.settlement) == said(settlement)
            assert (found.settlement.occurred_ms, found.settlement.rated_ms) == (at_ms, at_ms)


def test_an_instant_that_the_app_has_named_stands(cache: CustomerCache) -> None:
    settlement = Settlement(cache.get("acme"), used=Used.of({"tokens": 5}), occurred_ms=AT_MS - 1000)
    found = read(write(settlement, 1, AT_MS, None), cache).settlement
    assert (found.occurred_ms, found.rated_ms) == (AT_MS - 1000, AT_MS)


def test_i12_a_record_of_the_release_before_is_read(cache: CustomerCache) -> None:
    record = (
        b'{"n":4,"c":"acme","at":1800000000000,"anonymous":true,"sent":["mk:{3}:w:abc",7,5],'
        b'"recorded":{"tokens":3},"rated":{"tokens":4},"measured":{},"dimensions":{"model":"m"},'
        b'"held":[{"tokens":9},["requests"],6000000],"correction":[{"tokens":9},["a","b"],5],'
        b'"event":"mk:{3}:e:0a","mark":["0a",true]}'
    )
    number, settlement, sent = read(record, cache)
    assert (number, sent, settlement.rated_ms) == (4, SENT, AT_MS)
    assert said(settlement) == {
        "customer": "acme",
        "anonymous": True,
        "held": Held({"tokens": 9}, ("requests",), 6_000_000),
        "slot": 6_000_000,
        "used": Used({"tokens": 3}, {"tokens": 4}, {"model": "m"}, {}),
        "correction": Correction({"tokens": 9}, frozenset({"a", "b"}), 5),
        "event": EventMark("mk:{3}:e:0a"),
        "mark": Mark("0a", billed=True),
    }
