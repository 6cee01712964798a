"""What had been sent before it came into a spool: applied once, by the word of its producer of then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from faults.refusals import kit_at, used
from meterkit.decisions.keys import meter_field
from meterkit.redis.settling import NEVER_SENT, Sent
from meterkit.store.hold import Used
from meterkit.store.replay import Replay, write
from meterkit.store.settlement import Settlement

if TYPE_CHECKING:
    from pathlib import Path

    from servers.stores import Server

pytestmark = pytest.mark.anyio

QUANTITIES: Final = (5, 7)


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
async def test_i6_what_was_sent_before_it_was_spooled_is_recorded_unless_the_store_may_have_it(
    valkey: Server, tmp_path: Path, kept: int | None, acknowledged: int, recorded: int, lost: int
) -> None:
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        view = store.cache.get("acme")
        earlier = store.keys.producer(view.shard, "0" * 16)
        if kept is not None:
            valkey.ask("SET", earlier, f"{kept}", "PX", "60000")
        records = [
            write(
                Settlement(view, used=Used(recorded={"tokens": quantity})),
                nth,
                store.now_ms(),
                Sent(earlier, acknowledged + nth, acknowledged),
            )
            for nth, quantity in enumerate(QUANTITIES, start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys)
        await replay.send(records)
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((recorded, 0), lost)
        assert replay.done == {view.shard: 2}


@pytest.mark.parametrize(("is_own", "lost"), [(False, 5), (True, 0)])
async def test_i11_what_was_never_sent_is_recorded_and_tells_of_the_producer_before_it(
    valkey: Server, tmp_path: Path, is_own: bool, lost: int
) -> None:
    # F-122: the process that sends the spool of a dead one counts what the store has lost of that.
    async with kit_at(valkey.url, spool_dir=tmp_path) as kit:
        store, lane = kit.store, await kit.store.lane()
        view = store.cache.get("acme")
        earlier = store.keys.producer(view.shard, "0" * 16)
        sent = (Sent(earlier, NEVER_SENT, 5), None)
        records = [
            write(Settlement(view, used=Used(recorded={"tokens": 7})), nth, store.now_ms(), of)
            for nth, of in enumerate(sent, start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys, is_own=is_own)
        await replay.send(records)
        assert (await used(kit, "acme", "tokens"), replay.lost) == ((14, 0), lost)


@pytest.mark.parametrize("value", ["a key of another type", "a field that is no number"])
async def test_i11_what_follows_on_one_that_can_never_be_applied_is_recorded(
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
            write(
                Settlement(store.cache.get(customer), used=Used(recorded={"tokens": 5})),
                nth,
                store.now_ms(),
                None,
            )
            for nth, customer in enumerate(("globex", "acme", "globex"), start=1)
        ]
        replay = Replay("f" * 16, lane_of=lane.lane_of, cache=store.cache, keys=store.keys)
        await replay.send(records)
        assert (await used(kit, "globex", "tokens"), replay.lost) == ((10, 0), 1)
        assert replay.done == {0: 3}
