"""Watches: one process looks, where its event is wanted, and an event is told once in two days."""
# Internals: a watch looks when the test says so.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.messages import NOW, any_event, kit_of
from meterkit.notify.watches import Lookout, SummaryWatch, tell_once
from meterkit.store.messages import next_notices
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit import MeterKit, PeriodSummary

pytestmark = pytest.mark.anyio

EVENT = "period.summary"


async def looks(*lookouts: Lookout) -> int:
    """How many of them look when it is their turn."""
    found: list[Lookout] = []
    for lookout in lookouts:

        async def look(one: Lookout = lookout) -> None:
            found.append(one)

        await lookout.turn(look)
    return len(found)


async def test_one_of_two_processes_looks_for_an_event_that_is_wanted(store_url: str) -> None:
    async with kit_of(store_url, Clock(NOW)) as kit:
        wanted: list[str] = []
        assert 0 == await looks(Lookout(kit.store, EVENT, wanted.__contains__))
        wanted.append(EVENT)
        both = [Lookout(kit.store, EVENT, wanted.__contains__) for _ in range(2)]
        assert 1 == await looks(*both)
        assert 1 == await looks(Lookout(kit.store, "usage.spike", any_event))


async def test_a_notice_is_repeated_after_two_days_without_a_call(store_url: str) -> None:
    clock, made = Clock(NOW), 0
    async with kit_of(store_url, clock, shards=1) as kit:

        async def make() -> Mapping[str, Any] | None:
            nonlocal made
            made += 1
            return {"id": str(made)}

        async def nothing() -> None:
            return None

        async def told() -> list[str]:
            return [notice.data["id"] for notice in await next_notices(kit.store, 0, [EVENT])]

        await told()
        await tell_once(kit.store, "acme", EVENT, "a", nothing)
        assert [] == await told()
        await tell_once(kit.store, "acme", EVENT, "a", make)
        for _ in range(3):
            clock.advance(timedelta(days=2))
            await tell_once(kit.store, "acme", EVENT, "a", make)
        await tell_once(kit.store, "bolt", EVENT, "b", make)
        assert ["1", "2"] == await told()
        clock.advance(timedelta(days=2, milliseconds=1))
        await tell_once(kit.store, "acme", EVENT, "a", make)
        assert ["3"] == await told()


async def test_a_handler_alone_makes_an_event_wanted(store_url: str) -> None:
    def wanted(kit: MeterKit) -> set[str]:
        return {event for event in (EVENT, "storage.over") if kit.notify.wants(event)}

    async with kit_of(store_url, Clock(NOW)) as kit:
        assert set() == wanted(kit)

        @kit.on(EVENT)
        def summed_up(_event: PeriodSummary) -> None:
            """Is never called here."""

        assert {EVENT} == wanted(kit)


async def test_summaries_are_looked_for_once_an_hour(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looked = Clock(NOW), list[datetime]()

    async def look() -> None:
        looked.append(clock.now())

    async with kit_of(store_url, clock) as kit:
        watch = SummaryWatch(kit.store, any_event)
        monkeypatch.setattr(watch, "look", look)
        for minutes in (0, 59, 1, 1):
            clock.advance(timedelta(minutes=minutes))
            await watch._look_hourly()
    assert looked == [NOW, NOW + timedelta(hours=1)]
