"""A line of the log is due at most once in a span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit import throttle
from meterkit.throttle import Throttle

if TYPE_CHECKING:
    import pytest


def test_a_line_is_due_once_in_a_span_and_others_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0
    monkeypatch.setattr(throttle, "monotonic", lambda: now_s)
    lines = Throttle(60)
    assert [lines.is_due("a"), lines.is_due("a"), lines.is_due("b")] == [True, False, True]
    now_s += 59.9
    assert not lines.is_due("a")
    now_s += 0.1
    assert [lines.is_due("a"), lines.is_due("a")] == [True, False]
    lines.forget()
    assert lines.is_due("a")


def test_memory_is_bounded() -> None:
    lines = Throttle(60, most=2)
    assert [lines.is_due(name) for name in "abab"] == [True, True, False, False]
    assert [lines.is_due(name) for name in "ca"] == [True, True]
