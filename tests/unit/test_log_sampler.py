"""Log lines that come by the thousand: the first of a span are written, the others counted and told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from drivers.delivery import CATALOG
from meterkit import StoreError
from meterkit.asgi import logs
from meterkit.asgi.logs import Sampler, TroubleLog

if TYPE_CHECKING:
    import pytest


def test_what_a_loop_that_ended_could_not_tell_the_next_line_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    told: list[int] = []
    lines = Sampler(2, 3600.0, told.append)

    async def ask(times: int) -> list[bool]:
        return [lines.admits() for _ in range(times)]

    assert asyncio.run(ask(5)) == [True, True, False, False, False]
    now[0] += 3599.9
    assert asyncio.run(ask(1)) == [False]
    assert told == []
    now[0] += 0.1
    assert asyncio.run(ask(3)) == [True, True, False]
    assert told == [4]


def test_a_span_with_few_lines_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    told: list[int] = []
    lines = Sampler(1, 1.0, told.append)
    for _ in range(3):
        assert lines.admits()
        now[0] += 1.0
    assert told == []


def test_an_outage_is_told_each_minute_and_how_long_ago_its_last_request_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    lines = TroubleLog()

    async def ask(times: int) -> None:
        for _ in range(times):
            lines.undecided(StoreError("the store is away"), CATALOG.routes[0])

    for _ in range(3):
        asyncio.run(ask(4))
        now[0] += 10.0
    now[0] += 30.0
    asyncio.run(ask(1))
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "more" in text] == [
        "11 more requests were decided without the store within 60 s, the last of them 40 s ago"
    ]
    assert len(told) == 3
