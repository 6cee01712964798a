from __future__ import annotations

from typing import Any, Final

import pytest

from meterkit.decisions.customer_overrides import NO_OVERRIDES, next_end_ms, overrides_at, with_overrides
from meterkit.decisions.subscription import NEVER_MS

NOW_MS: Final = 1_800_000_000_000
LATER_MS: Final = NOW_MS + 1_000
MORE: Final = {"requests": {"included": 50}}


def stored(
    before: dict[str, dict[str, object]] | None = None,
    meters: dict[str, Any] | None = None,
    features: dict[str, bool] | None = None,
    until_ms: int | None = None,
    now_ms: int = NOW_MS,
) -> dict[str, dict[str, object]]:
    return with_overrides(before or {}, meters or {}, features, until_ms=until_ms, now_ms=now_ms)


def test_without_overrides_there_are_none_and_nothing_ends() -> None:
    assert overrides_at({}, NOW_MS) == NO_OVERRIDES
    assert next_end_ms({}, NOW_MS) == NEVER_MS


def test_an_override_without_an_end_holds_and_is_not_among_those_that_end() -> None:
    found = overrides_at(stored(None, MORE, {"chat": True, "export": False}), NEVER_MS - 1)
    assert (found.meters, found.features) == (MORE, {"chat": True, "export": False})
    assert found.ends == {}
    assert next_end_ms(stored(None, MORE), NOW_MS) == NEVER_MS


@pytest.mark.parametrize(
    ("now_ms", "holds"), [(LATER_MS - 1, True), (LATER_MS, False), (LATER_MS + 1, False)]
)
def test_an_override_ends_at_its_millisecond(now_ms: int, *, holds: bool) -> None:
    found = overrides_at(stored(None, MORE, {"chat": True}, LATER_MS), now_ms)
    assert found.meters == (MORE if holds else {})
    assert found.features == ({"chat": True} if holds else {})
    assert found.ends == ({"requests": LATER_MS, "feature chat": LATER_MS} if holds else {})


def test_the_next_end_is_the_earliest_that_is_to_come() -> None:
    both = stored(stored(None, MORE, None, LATER_MS), None, {"chat": True}, LATER_MS + 7)
    ends = [next_end_ms(both, now_ms) for now_ms in (NOW_MS, LATER_MS - 1, LATER_MS, LATER_MS + 7)]
    assert ends == [LATER_MS, LATER_MS, LATER_MS + 7, NEVER_MS]


def test_what_is_given_later_is_laid_over_what_was_given_and_an_empty_one_takes_it_back() -> None:
    first = stored(None, {"requests": {"included": 50}, "pages": {"included": 5}}, {"chat": True})
    second = stored(first, {"requests": {"included": 60}})
    assert overrides_at(second, NOW_MS).meters == {"requests": {"included": 60}, "pages": {"included": 5}}
    assert overrides_at(second, NOW_MS).features == {"chat": True}
    third = stored(second, {"pages": {}}, {"export": False})
    assert overrides_at(third, NOW_MS).meters == {"requests": {"included": 60}}
    assert overrides_at(third, NOW_MS).features == {"chat": True, "export": False}


def test_features_are_all_taken_back_together_and_meters_stay() -> None:
    first = stored(None, MORE, {"chat": True})
    assert stored(first, None, {}) == MORE
    assert stored(stored(None, None, {"chat": True}), None, {}) == {}


@pytest.mark.parametrize(("now_ms", "stays"), [(LATER_MS - 1, True), (LATER_MS, False)])
def test_what_has_ended_is_left_out_when_something_else_is_given(now_ms: int, *, stays: bool) -> None:
    first = stored(None, MORE, {"chat": True}, LATER_MS)
    second = stored(first, {"pages": {"included": 5}}, {"export": True}, now_ms=now_ms)
    assert ("requests" in second) == stays
    features = second["@features"]
    assert set(features) == ({"chat", "export"} if stays else {"export"})
