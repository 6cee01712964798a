"""What is recorded after the fact: under which id, in which period, and for how long it is known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from drivers.delivery import NOW, delivered
from drivers.subscribed_customer import kit_of
from faults.proxy import TcpProxy
from faults.refusals import ask, eventually
from llm_payloads.recordings import chat_usage
from meterkit import MeterKit, MeterkitError, UnknownMeterError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

JUNE, JULY = datetime(2031, 6, 1, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)
PLANS = """
meters:
  requests: {unit: request}
  pages:    {unit: page, stripe: {event_name: pages}}
  words:    {unit: word}
  seats:    {unit: seat, kind: gauge}
  desks:    {unit: desk, kind: gauge}
  input_tokens:  {unit: token}
  output_tokens: {unit: token}
routes: [{match: "*", consume: {requests: 1}, charge_on: attempt}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 100/minute}
      pages:    {included: 10, overage: bill}
      words:    {rate: 1000/hour}
      seats:    {included: 100}
"""


@pytest.fixture
async def kit(any_store_url: str, clock: Clock) -> AsyncIterator[MeterKit]:
    async with kit_of(any_store_url, clock, PLANS) as made:
        yield made


async def recorded(kit: MeterKit, customer: str = "ada") -> dict[str, int]:
    meters = (await kit.usage(customer))["meters"]
    counters = ("pages", "words", "input_tokens", "output_tokens")
    return {meter: meters[meter]["recorded"] for meter in counters if meters[meter]["recorded"]}


class Name(str, Enum):  # noqa: UP042 - a StrEnum is formatted by its value
    """Names of an app that writes each once; `f"{Name.WORDS}"` is `Name.WORDS`."""

    PAGES, WORDS, SEATS, ID = "pages", "words", "seats", "inv_42"
    OVERAGE, DENY = "overage", "deny"


async def test_names_may_be_members_of_an_enumeration(kit: MeterKit) -> None:
    """Their usage was counted under other names: it was on no invoice, no limit held, grants came twice."""
    await kit.consume("ada", Name.PAGES)
    async with kit.reserve("ada", {Name.PAGES: 3}) as reservation:
        await reservation.capture({Name.PAGES: 2})
    words: Any
    for words, name in (({Name.WORDS: 9}, Name.ID), ({"words": 9}, "inv_42")):
        await kit.record("ada", words, event_id=name)
        await kit.correct("ada", dict.fromkeys(words, 1), reason="a test", correction_id=name)
        await kit.grants.add("ada", dict.fromkeys(words, 5), grant_id=name)
    assert await recorded(kit) == {"pages": 3, "words": 8}
    assert [(one.grant_id, one.name) for one in await kit.grants.list("ada")] == [("inv_42", "words")]
    await kit.gauges.set("ada", Name.SEATS, 90)
    await kit.gauges.adjust("ada", Name.SEATS, 5, event_id=Name.ID)
    assert await kit.gauges.get("ada", "seats") == 95
    assert [(await kit.check("ada", Name.SEATS, more)).allowed for more in (5, 6)] == [True, False]
    await kit.customers.override("ada", {Name.PAGES: {"included": 3, Name.OVERAGE: Name.DENY}})
    assert not (await kit.check("ada", "pages")).allowed


# Event ids of the app: each counts once for each meter, and another quantity is refused. F-20f


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


@pytest.mark.parametrize(("now", "given"), [(0, ("pages", 0)), (13, ({"words": 5, "pages": 13},))])
async def test_a_new_quantity_of_an_id_is_refused(kit: MeterKit, now: int, given: tuple[Any, ...]) -> None:
    await kit.record("ada", {"pages": 12, "input_tokens": 3}, event_id="report-1")
    said = (
        "event_id 'report-1' of customer 'ada': 12 of pages were recorded under it before, now"
        f" {now} are given; nothing of this call is recorded: .*an event_id of its own"
    )
    with pytest.raises(MeterkitError, match=f"^{said}"):
        await kit.record("ada", *given, event_id="report-1")
    assert await recorded(kit) == {"pages": 12, "input_tokens": 3}
    await kit.record("ada", "words", 5, event_id="report-1")
    assert await recorded(kit) == {"pages": 12, "input_tokens": 3, "words": 5}


@pytest.mark.parametrize(
    ("error", "said", "given"),
    [
        (MeterkitError, "quantities: found none; name at least one meter", (dict[str, int](),)),
        (MeterkitError, "quantity: found 3 beside a mapping of meters", ({"pages": 1}, 3)),
        (MeterkitError, "quantity: found a value of type NoneType", ("pages",)),
        (UnknownMeterError, "'word'", ({"pages": 1, "word": 1},)),
        (MeterkitError, "-1", ({"pages": 1, "words": -1},)),
    ],
)
async def test_a_mapping_is_checked_as_one_meter_is(
    kit: MeterKit, error: type[Exception], said: str, given: tuple[Any, ...]
) -> None:
    with pytest.raises(error, match=said):
        await kit.record("ada", *given, event_id="e")
    await kit.record("ada", {"pages": 1, "words": 2}, event_id="e")
    assert await recorded(kit) == {"pages": 1, "words": 2}


async def test_what_is_no_meters_name_is_refused_with_words(kit: MeterKit) -> None:
    """A mapping, which `record` takes, raised TypeError: unhashable type: 'dict'."""
    mapping: Any = {"pages": 1}
    several: Any = ["pages"]
    for call, name in ((kit.check, mapping), (kit.consume, mapping), (kit.record, several)):
        found = f"^meter: found a value of type {type(name).__name__}; allowed are the counters"
        with pytest.raises(UnknownMeterError, match=found):
            await call("ada", name, 1)


async def test_answers_of_models_go_by_the_same_rule(kit: MeterKit) -> None:
    answer: dict[str, Any] = {"id": "c1", "object": "chat.completion", "model": "m", "choices": []}
    await kit.record("ada", "pages", 2, event_id="job-7")
    for _ in range(2):
        await kit.record_usage("ada", answer | {"usage": chat_usage(5, 2)}, event_id="job-7")
    said = r"'job-7'.*: 2 of output_tokens were recorded .* now 9 are given"
    with pytest.raises(MeterkitError, match=said):
        await kit.record_usage("ada", answer | {"usage": chat_usage(5, 9)}, event_id="job-7")
    assert await recorded(kit) == {"pages": 2, "input_tokens": 5, "output_tokens": 2}


async def test_an_answer_without_tokens_uses_up_no_event_id(kit: MeterKit) -> None:
    answer: dict[str, Any] = {"id": "c1", "object": "chat.completion", "model": "m", "choices": []}
    await kit.record_usage("ada", answer | {"usage": chat_usage(0, 0)}, event_id="job-7")
    for _ in range(2):
        await kit.record("ada", "pages", 3, event_id="job-7")
        await kit.record_usage("ada", answer | {"usage": chat_usage(5, 2)}, event_id="job-7")
    assert await recorded(kit) == {"pages": 3, "input_tokens": 5, "output_tokens": 2}


async def test_changes_of_gauges_go_by_the_same_rule(kit: MeterKit) -> None:
    gauges = kit.gauges
    await kit.record("ada", "pages", 2, event_id="e")
    for _ in range(2):
        assert await gauges.adjust("ada", "seats", 2, event_id="e") == 2
        assert await gauges.set("ada", "desks", 2, event_id="e") == 2
    for change, quantity in ((gauges.adjust, 3), (gauges.adjust, -2), (gauges.set, 2)):
        before = "event_id 'e' of customer 'ada': seats was changed .*by `adjust 2` before"
        with pytest.raises(MeterkitError, match=f"{before}, now `{change.__name__} {quantity}` is given"):
            await change("ada", "seats", quantity, event_id="e")
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
    proxy: TcpProxy,
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meterkit.redis.settlement_queue._SPILL_AFTER_S", 0.05)
    async with kit_of(proxy.url, clock, PLANS, store_timeout=0.1, spool_dir=tmp_path) as kit:
        await kit.record("ada", {"pages": 12, "input_tokens": 3}, event_id="e")
        lane = kit.store.lanes[asyncio.get_running_loop()]
        await proxy.set("refuse")
        await eventually(lambda: lane.is_down)
        # The store cannot say yet that the second one is refused.
        for given in ({"pages": 12, "words": 5}, {"pages": 13, "output_tokens": 7}, {"words": 5}):
            await kit.record("ada", given, event_id="e")
        await kit.record("ada", "output_tokens", 1)
        await proxy.set("pass")
        await eventually(lambda: lane.connected and lane.unsettled == 0)
        assert await recorded(kit) == {"pages": 12, "input_tokens": 3, "words": 5, "output_tokens": 1}
        assert lane.lost == 1
        told = [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]
        assert any("12 of pages were recorded under it before, now 13 are given" in line for line in told)


@pytest.mark.parametrize("event_id", ["", "é" * 129, "a\ud800", 7, "\0resp_1"])
async def test_an_event_id_is_a_text_of_1_to_256_bytes(kit: MeterKit, event_id: Any) -> None:
    """F-27. The last one would be that of a provider's job, which counted no more then."""
    with pytest.raises(MeterkitError, match=r"event_id: found .*; allowed is a text of 1 to 256 bytes"):
        await kit.record("ada", "pages", 1, event_id=event_id)
    for allowed in ("x" * 256, "é" * 128, "line\nline"):
        for _ in range(2):
            await kit.record("ada", "pages", 1, event_id=allowed)
    assert await recorded(kit) == {"pages": 3}


async def test_what_a_decision_records_lives_to_the_end_of_the_period(valkey: Server, clock: Clock) -> None:
    """F-25."""
    async with kit_of(valkey.url, clock, PLANS) as kit:
        await kit.customers.set_plan("known", "free")
        for customer, more in (("stranger", timedelta(minutes=15)), ("known", timedelta(days=40))):
            assert await ask(kit, customer) == 200
            assert (await kit.usage(customer))["meters"]["requests"]["recorded"] == 1
            counters = kit.store.keys.customer(customer).counters
            assert valkey.command("PEXPIRETIME", counters) >= (JULY + more).timestamp() * 1000


async def test_a_plan_that_the_file_does_not_have_is_named_once(
    kit: MeterKit, any_store_url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """F-23: a process with an older plans file."""
    newer = PLANS + "  gold: {extends: free, meters: {pages: {included: 500}}}\n"
    async with kit_of(any_store_url, clock, newer) as other:
        for customer in ("ada", "zeta"):
            await other.customers.set_plan(customer, "gold")
        for customer in ("ada", "zeta", "ada"):
            assert (await kit.check(customer, "pages")).plan == "free"
    (alarm,) = [record for record in caplog.records if "'gold'" in record.getMessage()]
    assert alarm.levelno == logging.ERROR
    assert "customer 'ada'" in alarm.getMessage()
    assert "default plan 'free'" in alarm.getMessage()


# Late usage. F-24


async def totals_of(kit: MeterKit) -> dict[str, int]:
    client: Any = (await kit.store.admin()).client
    found = await client.hgetall(kit.store.keys.customer("ada").totals)
    return {name.decode(): int(text) for name, text in found.items()}


async def test_late_usage_is_billed_in_the_next_period(
    kit: MeterKit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.record("ada", "pages", 8)
    clock.advance(timedelta(days=25))
    for _ in range(2):
        await kit.record("ada", "pages", 7, occurred_at=JULY - timedelta(milliseconds=1))
    await kit.record("ada", "pages", 1, occurred_at=JULY)
    (told,) = [line for line in caplog.messages if "came late" in line]
    for words in ("customer 'ada'", "7 of pages", "2031-06-01", "is billed in this one"):
        assert words in told
    row = (await kit.usage("ada"))["meters"]["pages"]
    assert (row["recorded"], row["overage"], row["unlinked"], row["late"]) == (15, 5, 5, 0)
    assert delivered(await totals_of(kit), JUNE, "pages", "u") == 14
    clock.advance(timedelta(days=31))
    await kit.record("ada", "pages", 1)
    totals = await totals_of(kit)
    assert (delivered(totals, JULY, "pages", "m"), delivered(totals, JULY, "pages", "i")) == (14, 10)


async def test_late_usage_goes_to_the_dead_letters_if_asked(
    any_store_url: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_of(any_store_url, clock, PLANS + "billing: {late_usage: dead_letter}\n") as kit:
        await kit.record("ada", "pages", 8)
        clock.advance(timedelta(days=25))
        for _ in range(3):
            await kit.record("ada", "pages", 7, occurred_at=JULY - timedelta(days=1), event_id="only-once")
        (told,) = [line for line in caplog.messages if "came late" in line]
        assert "7 of pages" in told
        assert "is not billed" in told
        row = (await kit.usage("ada"))["meters"]["pages"]
        assert (row["recorded"], row["unlinked"]) == (0, 0)
        assert delivered(await totals_of(kit), JUNE, "pages", "u") == 7


async def test_usage_of_the_future_and_naive_times_are_refused(kit: MeterKit) -> None:
    for at, said in (
        (NOW + timedelta(seconds=60, milliseconds=1), "occurred_at: found 2031-06-10T12:01:30"),
        (datetime(2031, 6, 10), "naive"),  # noqa: DTZ001 - it is refused
        (datetime(1969, 12, 31, tzinfo=UTC), "occurred_at: found 1969"),
    ):
        with pytest.raises(MeterkitError, match=said):
            await kit.record("ada", "pages", 1, occurred_at=at)
    await kit.record("ada", "pages", 1, occurred_at=NOW + timedelta(seconds=60))
    assert await recorded(kit) == {"pages": 1}


async def test_i5_late_usage_is_reported_once(kit: MeterKit, clock: Clock) -> None:
    await kit.customers.link("ada", "cus_ada")
    for month in range(3):
        for day in range(5):
            at = clock.now() - timedelta(days=9 * day)
            await kit.record("ada", "pages", 10 + day, occurred_at=at)
        row = (await kit.usage("ada"))["meters"]["pages"]
        assert (row["recorded"], row["pending"]) == (60, row["overage"])
        clock.advance(timedelta(days=31 - month % 2))
    await kit.record("ada", "pages", 0)
    totals = await totals_of(kit)
    total = {kind: sum(n for name, n in totals.items() if name.endswith(kind)) for kind in "iopqum"}
    assert total["i"] + total["o"] == 3 * 60
    assert total["p"] + total["q"] == total["o"]
    assert total["u"] == total["m"] > 0
