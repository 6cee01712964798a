"""Which minutes of a Stripe customer's former customer the next one's intents may not have."""

from __future__ import annotations

import pytest

from meterkit.customers.links import minutes_taken_ms, pending_minutes_ms

MINUTE = 60_000
NOW = 30_000_000 * MINUTE
END = NOW - 10_000 * MINUTE


@pytest.mark.parametrize(
    ("used", "closing", "taken"),
    [
        # Usage of open periods is stamped from the present minute on.
        ({-2, -1, 0, 3}, (), {-1, 0, 3}),
        # That of a closed period has its last minute, or the first before it that is free.
        ({-50}, (-50,), {-50}),
        ({-50, -51, -52, -54}, (-50,), {-50, -51, -52}),
        ({-51}, (-50,), set[int]()),
        ({-50, -70, 2}, (-50, -70), {-50, -70, 2}),
    ],
)
def test_minutes_that_the_next_ones_intents_could_come_to_lie_in(
    used: set[int], closing: tuple[int, ...], taken: set[int]
) -> None:
    found = minutes_taken_ms(
        {NOW + minute * MINUTE for minute in used}, [NOW + minute * MINUTE for minute in closing], NOW
    )
    assert found == tuple(sorted(NOW + minute * MINUTE for minute in taken))


@pytest.mark.parametrize(
    ("totals", "minutes"),
    [
        ({"1|requp": "5", "1|e": f"{END}"}, {END - MINUTE}),
        # The last minute that is whole.
        ({"1|requp": "5", "1|e": f"{END + 59_999}"}, {END - MINUTE}),
        ({"1|requp": "5", "1|e": f"{END}", "2|tokep": "1", "2|e": f"{NOW}"}, {END - MINUTE, NOW - MINUTE}),
        # Nothing is to be sealed of it; or it is not over.
        ({"1|requp": "0", "1|requd": "7", "1|e": f"{END}"}, set[int]()),
        ({"1|requp": "5"}, set[int]()),
    ],
)
def test_minutes_that_pending_usage_of_closed_periods_is_stamped_with(
    totals: dict[str, str], minutes: set[int]
) -> None:
    assert pending_minutes_ms(totals) == minutes
