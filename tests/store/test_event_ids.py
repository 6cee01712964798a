"""Event ids of the app: each counts once for each meter, and another quantity is refused. F-20f"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from faults.proxy import TcpProxy
from faults.refusals import eventually
from meterkit import MeterKit, MeterkitError, UnknownMeterError
from meterkit.catalog import loads
from tokens.recordings import chat_usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  pages:  {unit: page, stripe: {event_name: pages}}
  words:  {unit: word}
  seats:  {unit: seat, kind: gauge}
  desks:  {unit: desk, kind: gauge}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      pages: {included: 10, overage: bill}
      words: {rate: 1000/hour}
      seats: {included: 100}
"""
COUNTERS = ("pages", "words", "input_tokens", "output_tokens")


@asynccontextmanager
async def kit_on(url: str, **settings: Any) -> AsyncGenerator[MeterKit]:
    given: dict[str, Any] = {"flush": False, "shards": 4, "store_timeout": 10.0} | settings
    async with MeterKit(loads(PLANS), redis_url=url, **given) as kit:
        yield kit


@pytest.fixture
async def kit(any_store_url: str) -> AsyncGenerator[MeterKit]:
    async with kit_on(any_store_url) as made:
        yield made


async def recorded(kit: MeterKit, customer: str = "ada") -> dict[str, int]:
    meters = (await kit.usage(customer))["meters"]
    return {meter: meters[meter]["recorded"] for meter in COUNTERS if meters[meter]["recorded"]}


def answer(**usage: int) -> dict[str, Any]:
    found = chat_usage(usage["prompt"], usage["completion"])
    return {"id": "c1", "object": "chat.completion", "model": "m", "choices": [], "usage": found}


async def test_two_meters_under_one_event_id_both_count_once(kit: MeterKit) -> None:
    for _ in range(3):
        await kit.record("ada", "pages", 12, event_id="report-1")
        await kit.record("ada", "words", 900, event_id="report-1")
    assert await recorded(kit) == {"pages": 12, "words": 900}
    await kit.record("ida", "pages", 1, event_id="report-1")
    assert await recorded(kit, "ida") == {"pages": 1}


async def test_an_id_counted_in_part_counts_the_other_meters(kit: MeterKit) -> None:
    await kit.record("ada", "pages", 12, event_id="report-1")
    for _ in range(2):
        await kit.record("ada", {"pages": 12, "words": 900, "input_tokens": 7}, event_id="report-1")
        assert await recorded(kit) == {"pages": 12, "words": 900, "input_tokens": 7}
    (rate,) = [rate for rate in await kit.rates("ada") if rate["meter"] == "words"]
    assert rate["used"] == 900
    # What comes behind it is sent again, and counts once.
    calls = [kit.record("ada", {"words": 1, "pages": 1}, event_id=f"e{n // 2}") for n in range(20)]
    calls += [kit.record("ada", {"pages": 1, "output_tokens": 5}, event_id=f"e{n}") for n in range(10)]
    await asyncio.gather(*calls)
    assert await recorded(kit) == {"pages": 22, "words": 910, "input_tokens": 7, "output_tokens": 50}


@pytest.mark.parametrize("given", [("pages", 0), ({"words": 5, "pages": 13},)])
async def test_another_quantity_under_an_id_is_refused_as_a_whole(
    kit: MeterKit, given: tuple[Any, ...]
) -> None:
    await kit.record("ada", {"pages": 12, "input_tokens": 3}, event_id="report-1")
    with pytest.raises(MeterkitError) as refused:
        await kit.record("ada", *given, event_id="report-1")
    quantity = given[-1] if isinstance(given[-1], int) else given[-1]["pages"]
    assert str(refused.value).startswith(
        f"event_id 'report-1' of customer 'ada': 12 of pages were recorded under it before, now {quantity}"
        " are given; nothing of this call is recorded: "
    )
    assert "an event_id of its own" in str(refused.value)
    assert await recorded(kit) == {"pages": 12, "input_tokens": 3}
    await kit.record("ada", "words", 5, event_id="report-1")
    assert await recorded(kit) == {"pages": 12, "input_tokens": 3, "words": 5}


async def test_a_mapping_is_checked_as_one_meter_is(kit: MeterKit) -> None:
    with pytest.raises(MeterkitError, match="quantities: found none; name one meter at least"):
        await kit.record("ada", {}, event_id="e")
    with pytest.raises(MeterkitError, match="quantity: found 3 beside a mapping of meters"):
        await kit.record("ada", {"pages": 1}, 3)
    with pytest.raises(MeterkitError, match="quantity: found a value of type NoneType"):
        await kit.record("ada", "pages")
    for wrong, error in (
        ({"pages": 1, "word": 1}, UnknownMeterError),
        ({"pages": 1, "words": -1}, MeterkitError),
    ):
        with pytest.raises(error):
            await kit.record("ada", wrong, event_id="e")
    await kit.record("ada", {"pages": 1, "words": 2}, event_id="e")
    assert await recorded(kit) == {"pages": 1, "words": 2}


async def test_answers_of_models_go_by_the_same_rule(kit: MeterKit) -> None:
    await kit.record("ada", "pages", 2, event_id="job-7")
    for _ in range(2):
        await kit.record_usage("ada", answer(prompt=5, completion=2), event_id="job-7")
    with pytest.raises(
        MeterkitError, match=r"'job-7'.*: 2 of output_tokens were recorded .* now 9 are given"
    ):
        await kit.record_usage("ada", answer(prompt=5, completion=9), event_id="job-7")
    assert await recorded(kit) == {"pages": 2, "input_tokens": 5, "output_tokens": 2}


async def test_changes_of_gauges_go_by_the_same_rule(kit: MeterKit) -> None:
    gauges = kit.gauges
    await kit.record("ada", "pages", 2, event_id="e")
    for _ in range(2):
        assert await gauges.adjust("ada", "seats", 2, event_id="e") == 2
        assert await gauges.set("ada", "desks", 2, event_id="e") == 2
    for change, quantity in ((gauges.adjust, 3), (gauges.adjust, -2), (gauges.set, 2)):
        with pytest.raises(
            MeterkitError, match="event_id 'e' of customer 'ada': seats was changed"
        ) as refused:
            await change("ada", "seats", quantity, event_id="e")
        assert f"by `adjust 2` before, now `{change.__name__} {quantity}` is given" in str(refused.value)
    assert (await gauges.get("ada", "seats"), await recorded(kit)) == (2, {"pages": 2})


async def test_what_an_earlier_release_has_counted_counts_no_more(kit: MeterKit) -> None:
    """I12: it kept no meters, so a second meter cannot be told from a repeat."""
    admin = await kit.store.admin()
    key = kit.store.keys.event(kit.store.cache.get("ada").shard, "ada", "old")
    await admin.ask(admin.client.set(key, 1, px=60_000))
    await kit.record("ada", {"pages": 1, "words": 2}, event_id="old")
    assert await recorded(kit) == {}


async def test_an_id_stays_used_when_its_customer_is_deleted(kit: MeterKit) -> None:
    """A queue may bring a job again after the deletion."""
    await kit.record("ada", "words", 8, event_id="e")
    await kit.customers.delete("ada")
    await kit.record("ada", "words", 8, event_id="e")
    with pytest.raises(MeterkitError, match="8 of words were recorded"):
        await kit.record("ada", "words", 9, event_id="e")
    assert await recorded(kit) == {}
    await kit.record("ada", "pages", 1, event_id="e")
    assert await recorded(kit) == {"pages": 1}


async def test_i9_a_conflict_behind_an_outage_blocks_no_other(
    valkey: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.redis.producer._SPILL_AFTER_S", 0.05)
    async with TcpProxy(valkey.port) as proxy:
        settings: dict[str, Any] = {"store_timeout": 0.1, "spool_dir": tmp_path}
        async with kit_on(proxy.url, **settings) as kit:
            await kit.record("ada", {"pages": 12, "input_tokens": 3}, event_id="e")
            lane = kit.store.lanes[asyncio.get_running_loop()]
            await proxy.set("refuse")
            await eventually(lambda: lane.is_away)
            with caplog.at_level(logging.WARNING, "meterkit.store"):
                # The store cannot say yet that the second one is refused.
                for quantities in (
                    {"pages": 12, "words": 5},
                    {"pages": 13, "output_tokens": 7},
                    {"words": 5},
                ):
                    await kit.record("ada", quantities, event_id="e")
                await kit.record("ada", "output_tokens", 1)
                await proxy.set("pass")
                await eventually(lambda: lane.connected and lane.unsettled == 0)
            assert await recorded(kit) == {"pages": 12, "input_tokens": 3, "words": 5, "output_tokens": 1}
            assert lane.lost == 1
            told = [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]
            assert any("12 of pages were recorded under it before, now 13 are given" in line for line in told)
