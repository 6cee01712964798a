from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Final, get_args

import pytest

from meterkit.catalog import loads
from meterkit.decisions.customer_state import CustomerState, effective_plan
from meterkit.decisions.subscription import NEVER_MS, Access, Status, SubscriptionState

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_MS: Final = 86_400_000
FAILED_MS: Final = 1_800_000_000_000
TEXT: Final = """
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans:
  free: {price: {amount_cents: 0, interval: month}}
  pro: {price: {amount_cents: 2900, interval: month}}
  lapsed: {price: {amount_cents: 0, interval: month}}
dunning: {grace: 2d, restrict_to: lapsed, suspend_after: 5d}
"""
CATALOG: Final = loads(TEXT)

# What the dunning policy says, written down apart from the code: status, failed attempts (from, to), days
# since the first one (from, to), what the customer may do, and the plan that is in force then.
TABLE: Final[tuple[tuple[str, tuple[int, int], tuple[float, float], Access, str], ...]] = (
    ("active", (0, 9), (-1, 99), "full", "pro"),
    ("trialing", (0, 9), (-1, 99), "full", "pro"),
    ("past_due", (0, 2), (-1, 2), "grace", "pro"),
    ("past_due", (3, 9), (-1, 2), "restricted", "lapsed"),
    ("past_due", (0, 9), (2, 5), "restricted", "lapsed"),
    ("past_due", (0, 9), (5, 99), "suspended", "pro"),
    ("unpaid", (0, 9), (-1, 99), "suspended", "pro"),
    ("paused", (0, 9), (-1, 99), "restricted", "lapsed"),
    ("incomplete", (0, 9), (-1, 99), "full", "free"),
    ("incomplete_expired", (0, 9), (-1, 99), "full", "free"),
    ("canceled", (0, 9), (-1, 99), "full", "free"),
)
DAYS: Final = (-0.5, 0, 1, 2 - 1e-8, 2, 2 + 1e-8, 4, 5 - 1e-8, 5, 5 + 1e-8, 30)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


def written(status: str, failures: int, days: float) -> tuple[Access, str]:
    """What the table says."""
    found: list[tuple[Access, str]] = [
        (access, plan)
        for name, (least, most), (begin, end), access, plan in TABLE
        if name == status and least <= failures <= most and begin <= days < end
    ]
    assert len(found) == 1
    return found[0]


def subscription(status: Status, failures: int = 0) -> SubscriptionState:
    return SubscriptionState(
        id="sub_1",
        status=status,
        plan="pro",
        start_ms=FAILED_MS - DAY_MS,
        end_ms=FAILED_MS + 29 * DAY_MS,
        anchor_ms=FAILED_MS - DAY_MS,
        failures=failures,
        failed_at_ms=FAILED_MS,
    )


def cases() -> Iterator[tuple[Status, int, float, Status | None]]:
    yield from product(STATUSES, range(6), DAYS, (None, *STATUSES))


def test_access_is_what_the_table_says_of_every_status_attempt_instant_and_status_by_hand() -> None:
    seen: set[Access] = set()
    for status, failures, days, by_hand in cases():
        state = CustomerState(
            subscription=subscription(status, failures), status=by_hand, status_since_ms=FAILED_MS
        )
        found = effective_plan(state, CATALOG, FAILED_MS + round(days * DAY_MS))
        expected = written(status, failures, days) if by_hand is None else written(by_hand, 1, days)
        if status in {"incomplete", "incomplete_expired"}:  # It gives no plan.
            unpaid: tuple[Access, str] = ("full", "free")
            access, plan = unpaid if by_hand is None else expected
            expected = (access, "free" if plan == "pro" else plan)
        assert (found.access, found.plan.key) == expected, (status, failures, days, by_hand)
        assert found.status == (by_hand or status)
        seen.add(found.access)
    assert seen == set(get_args(Access))


def test_nothing_changes_before_the_instant_that_is_named_and_something_does_at_it() -> None:
    turned = 0
    for status, failures, days, by_hand in cases():
        state = CustomerState(
            subscription=subscription(status, failures), status=by_hand, status_since_ms=FAILED_MS
        )
        now_ms = FAILED_MS + round(days * DAY_MS)
        found = effective_plan(state, CATALOG, now_ms)
        assert found.valid_until_ms > now_ms
        if found.valid_until_ms == NEVER_MS:
            continue
        last = effective_plan(state, CATALOG, found.valid_until_ms - 1)
        after = effective_plan(state, CATALOG, found.valid_until_ms)
        assert (last.access, last.plan) == (found.access, found.plan)
        assert after.access != found.access
        turned += 1
    assert turned > 100


def test_where_the_first_failure_is_not_known_grace_counts_from_the_period_that_is_owed() -> None:
    owed = replace(subscription("past_due", 1), failed_at_ms=0)
    state = CustomerState(subscription=owed)
    assert effective_plan(state, CATALOG, owed.start_ms + 2 * DAY_MS - 1).access == "grace"
    assert effective_plan(state, CATALOG, owed.start_ms + 2 * DAY_MS).access == "restricted"


@pytest.mark.parametrize(
    ("attempts", "failures", "expected"),
    [
        ("null", 9, "grace"),
        ("1", 1, "restricted"),
        ("5", 4, "grace"),
        ("5", 5, "restricted"),
    ],
)
def test_how_many_attempts_end_grace_is_for_the_plans_file_to_say(
    attempts: str, failures: int, expected: Access
) -> None:
    """F-115: daily retries ended seven days of grace on the third day."""
    written = f"{TEXT.rstrip()[:-1]}, attempts: {attempts}}}"
    state = CustomerState(subscription=subscription("past_due", failures))
    for days, access in ((0, expected), (2, "restricted"), (5, "suspended")):
        assert effective_plan(state, loads(written), FAILED_MS + days * DAY_MS).access == access


@pytest.mark.parametrize(("failures", "expected"), [(1, "grace"), (2, "grace"), (3, "restricted")])
def test_the_third_failed_attempt_ends_grace(failures: int, expected: Access) -> None:
    state = CustomerState(subscription=subscription("past_due", failures))
    assert effective_plan(state, CATALOG, FAILED_MS + 1).access == expected
