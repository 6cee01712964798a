"""What becomes of an intent that Stripe may have, by two looks at the summary of its minute."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from meterkit.decisions.ambiguity import compare_in_ms, may_be_sent_again
from meterkit.delivery.comparing import Look, Verdict, judge

HOUR_MS = 3_600_000
FIRST_MS = 1_900_000_000_000
LATER_MS = FIRST_MS + 26 * HOUR_MS


def look(counted: str | None, at_ms: int = LATER_MS) -> Look:
    return Look(counted=None if counted is None else Decimal(counted), at_ms=at_ms)


@pytest.mark.parametrize(
    ("value", "before", "now", "verdict", "words"),
    [
        # One look is none.
        (6, None, "6", "again", ""),
        (6, None, "0", "again", ""),
        (6, "6", "6", "delivered", "said 6, twice"),
        (6, "0", "0", "replace", "said 0, twice"),
        # Anything else is a person's.
        (6, "0", "6", "person", "said 0, and 6 later"),
        (6, "6", "0", "person", "said 6, and 0 later"),
        (6, "12", "12", "person", "says 12, and it is 6"),
        (6, "5", "5", "person", "says 5, and it is 6"),
        (6, "6.5", "6.5", "person", "says 6.5"),
        (6, None, None, "person", "no meter"),
        # Of what takes units back Stripe may say 0 where it has it.
        (-6, "-6", "-6", "delivered", "said -6, twice"),
        (-6, "0", "0", "person", "takes units back"),
        # What is more than a value may be is split within a minute.
        (10**15 - 1, "999999999999999", "999999999999999", "person", "another intent"),
        (10**15 - 2, "999999999999998", "999999999999998", "delivered", "twice"),
    ],
)
def test_two_looks_that_agree_decide(
    value: int, before: str | None, now: str | None, verdict: Verdict, words: str
) -> None:
    judged = judge(
        value=value,
        minute_ms=FIRST_MS,
        first_attempt_ms=FIRST_MS,
        before=None if before is None else look(before),
        now=look(now, LATER_MS + 600_000),
    )
    assert judged.verdict == verdict
    assert words in judged.why


def test_looks_are_ten_minutes_apart_and_none_is_taken_before_26_hours() -> None:
    asked: dict[str, Any] = {"value": 6, "minute_ms": FIRST_MS, "first_attempt_ms": FIRST_MS}
    early = judge(**asked, before=None, now=look("6", LATER_MS - 1))
    assert (early.verdict, early.wait_ms, early.keep) == ("again", 1, None)
    first = judge(**asked, before=None, now=look("6"))
    assert (first.verdict, first.wait_ms, first.keep) == ("again", 600_000, look("6"))
    soon = judge(**asked, before=first.keep, now=look("6", LATER_MS + 599_999))
    assert (soon.verdict, soon.wait_ms, soon.keep) == ("again", 1, look("6"))
    assert judge(**asked, before=soon.keep, now=look("6", LATER_MS + 600_000)).verdict == "delivered"


@pytest.mark.parametrize(("hours", "verdict"), [(35 * 24 - 1, "replace"), (35 * 24, "person")])
def test_what_stripe_does_not_take_any_more_is_not_sent_again(hours: int, verdict: Verdict) -> None:
    now_ms = FIRST_MS + hours * HOUR_MS
    judged = judge(
        value=6,
        minute_ms=FIRST_MS,
        first_attempt_ms=FIRST_MS,
        before=look("0", now_ms - 600_000),
        now=look("0", now_ms),
    )
    assert judged.verdict == verdict
    assert verdict == "replace" or "older than 35 days" in judged.why


def test_for_23_hours_a_repeat_is_counted_once() -> None:
    assert may_be_sent_again(0, FIRST_MS)
    assert may_be_sent_again(FIRST_MS, FIRST_MS + 23 * HOUR_MS)
    assert not may_be_sent_again(FIRST_MS, FIRST_MS + 23 * HOUR_MS + 1)
    assert compare_in_ms(FIRST_MS, FIRST_MS + 25 * HOUR_MS) == HOUR_MS
    assert compare_in_ms(FIRST_MS, FIRST_MS + 27 * HOUR_MS) == 0
