"""Log lines that come by the thousand: the first of a span are written, the others counted and told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meterkit.asgi import logs
from meterkit.asgi.logs import Sampler

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
