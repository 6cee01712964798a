from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from meterkit.decisions.subscription import SubscriptionState
from meterkit.decisions.subscription_periods import Renewals, is_cut_short, is_final, renewals_of


def ms(month: int, day: int, *, year: int = 2031) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1_000)


HOUR_MS: Final = 3_600_000
MONTHLY: Final = SubscriptionState(
    id="sub_1",
    status="active",
    plan="pro",
    start_ms=ms(5, 1),
    end_ms=ms(6, 1),
    anchor_ms=ms(2, 1),
    created_ms=ms(2, 1),
)


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        (99, None),
        (100, 777),
        (199, 777),
        (200, 300),
        (299, 300),
        (300, None),
    ],
)
def test_usage_is_on_the_invoice_of_the_renewal_behind_it(at_ms: int, expected: int | None) -> None:
    assert Renewals(100, 200, 300).invoiced_ms(at_ms, 777) == expected


@pytest.mark.parametrize(
    ("changed", "now_ms", "expected"),
    [
        pytest.param({}, ms(5, 20), (ms(2, 1), ms(4, 1), ms(5, 1)), id="within its period"),
        pytest.param({}, ms(6, 1) - 1, (ms(2, 1), ms(4, 1), ms(5, 1)), id="just before its renewal"),
        pytest.param({}, ms(6, 1), (ms(2, 1), ms(5, 1), ms(6, 1)), id="renewed by the clock"),
        pytest.param({}, ms(7, 2), (ms(2, 1), ms(6, 1), ms(7, 1)), id="a renewal later"),
        pytest.param({"created_ms": ms(4, 10)}, ms(5, 20), (ms(4, 10), ms(4, 10), ms(5, 1)), id="its first"),
        pytest.param({"created_ms": ms(5, 1)}, ms(5, 20), None, id="none yet"),
        pytest.param({"created_ms": 0}, ms(5, 20), None, id="not known when it was made"),
        pytest.param(
            {"trial_end_ms": ms(4, 20)}, ms(5, 20), (ms(4, 20), ms(4, 20), ms(5, 1)), id="after a trial"
        ),
        pytest.param({"trial_end_ms": ms(5, 1)}, ms(5, 20), None, id="a trial until now"),
        pytest.param({"cancel_at_ms": ms(5, 15)}, ms(5, 15), (ms(2, 1), ms(5, 1), ms(5, 15)), id="it ends"),
        pytest.param(
            {"cancel_at_ms": ms(5, 15)}, ms(5, 15) - 1, (ms(2, 1), ms(4, 1), ms(5, 1)), id="it is to end"
        ),
        pytest.param(
            {"status": "canceled", "ended_at_ms": ms(5, 10)},
            ms(5, 5),
            (ms(2, 1), ms(5, 1), ms(5, 10)),
            id="it has ended, by a clock that is ahead",
        ),
        pytest.param({"status": "paused"}, ms(5, 20), None, id="paused"),
        pytest.param({"status": "incomplete"}, ms(5, 20), None, id="not paid for yet"),
        pytest.param(
            {"start_ms": ms(5, 1, year=2030), "end_ms": ms(5, 1), "anchor_ms": ms(5, 1, year=2029)}
            | {"created_ms": ms(5, 1, year=2029)},
            ms(3, 1),
            (ms(5, 1, year=2029), ms(5, 1, year=2029), ms(5, 1, year=2030)),
            id="a year",
        ),
        pytest.param(
            {"start_ms": ms(4, 10), "end_ms": ms(2, 1, year=2032)}
            | {"usage_start_ms": ms(5, 1), "usage_end_ms": ms(6, 1)},
            ms(5, 20),
            (ms(2, 1), ms(4, 1), ms(5, 1)),
            id="a yearly base price, and usage by the month",
        ),
    ],
)
def test_the_latest_two_renewals(
    changed: dict[str, Any], now_ms: int, expected: tuple[int, int, int] | None
) -> None:
    assert renewals_of(replace(MONTHLY, **changed), now_ms) == expected


def test_without_a_subscription_there_are_none() -> None:
    assert renewals_of(None, ms(5, 20)) is None


@pytest.mark.parametrize(
    ("final_ms", "held_ms", "after_ms", "expected"),
    [
        (0, 0, HOUR_MS - 300_001, False),
        (0, 0, HOUR_MS - 300_000, True),
        (0, 5 * HOUR_MS, 5 * HOUR_MS - 300_001, False),
        (0, 5 * HOUR_MS, 5 * HOUR_MS - 300_000, True),
        (0, 1, HOUR_MS - 300_001, False),
        (1, 5 * HOUR_MS, 0, True),
    ],
)
def test_a_draft_takes_usage_until_five_minutes_before_its_end(
    final_ms: int, held_ms: int, after_ms: int, *, expected: bool
) -> None:
    made_ms = ms(5, 1)
    held = made_ms + held_ms if held_ms else 0
    assert is_final(made_ms, final_ms=final_ms, held_ms=held, now_ms=made_ms + after_ms) == expected


@pytest.mark.parametrize(
    ("changed", "at_ms", "expected"),
    [
        pytest.param({}, ms(5, 20), True, id="amid its period"),
        pytest.param({}, ms(6, 1), False, id="at its end"),
        pytest.param({}, ms(7, 1), False, id="a renewal later"),
        pytest.param({}, ms(6, 20), True, id="amid the next period"),
        pytest.param({}, ms(5, 1), False, id="at its start"),
        pytest.param({"trial_end_ms": ms(6, 1), "status": "trialing"}, ms(5, 20), False, id="in a trial"),
        pytest.param({"trial_end_ms": ms(5, 10), "status": "trialing"}, ms(5, 20), True, id="after a trial"),
        pytest.param({"status": "paused"}, ms(5, 20), False, id="paused"),
        pytest.param({"status": "incomplete"}, ms(5, 20), False, id="not paid for yet"),
        pytest.param({"status": "past_due"}, ms(5, 20), True, id="past due"),
        pytest.param({"cancel_at_ms": ms(5, 20)}, ms(5, 20), False, id="when it was to end"),
    ],
)
def test_a_billed_period_is_cut_short_where_no_renewal_was_due(
    changed: dict[str, Any], at_ms: int, expected: bool
) -> None:
    assert is_cut_short(replace(MONTHLY, **changed), at_ms) == expected
