"""What a change within a period costs is what Stripe's pages and invoices say, to the cent."""
# Internals: a pure table of prorated amounts.

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterkit.subscriptions.proration import Cycle, Line, proration_of

DAY_S = 86_400
NOVEMBER = Cycle(1_793_491_200, 1_796_083_200, 1_794_787_200)
HALFWAY = NOVEMBER


def parts(cents: int, price: str = "price_pro", *, seats: int = 0) -> dict[Literal["base", "seats"], Line]:
    if not seats:
        return {"base": Line(price, cents, 1)}
    return {"base": Line(price, cents, 1), "seats": Line("price_seat", 901, seats)}


@pytest.mark.parametrize(
    ("old", "new", "start_s", "end_s", "now_s", "credit", "charge"),
    [
        # https://pastebin.com/9Hu591Zt: amount_due 4998 is -999, +2998 and the 2999 of the month to come.
        (999, 2_999, 1_477_364_992, 1_480_043_392, 1_477_365_718, 999, 2_998),
        # https://pastebin.com/Rxuk5FLW: amount_due 4997 is -998, +2995 and the 3000 of the month to come.
        (1_000, 3_000, 1_526_482_619, 1_529_161_019, 1_526_487_083, 998, 2_995),
        # https://gist.github.com/matthewarkin/27bcfdf622eb91d3508ea082d0ad50b8: -364 of a February's 1000.
        (1_000, 1_000, 1_487_030_400, 1_489_449_600, 1_488_568_488, 364, 364),
    ],
)  # fmt: skip
def test_invoices_that_stripe_has_made(
    old: int, new: int, start_s: int, end_s: int, now_s: int, credit: int, charge: int
) -> None:
    """Lines of real invoices: by the second, by the period's own length, each line rounded by itself."""
    before, after = parts(old), parts(new, "price_max")
    assert proration_of(before, after, Cycle(start_s, end_s, now_s)) == (credit, charge)


def test_another_interval_is_charged_for_the_rest_of_its_period() -> None:
    """The gist's invoice, of a cycle that begins anew: 9636 is 10000 less what is left of the month."""
    february = Cycle(1_487_030_400, 1_489_449_600, 1_488_568_488)
    before, after = parts(1_000), parts(10_000, "price_year")
    anew = february._replace(start_s=february.now_s, end_s=february.now_s + 365 * DAY_S)
    assert proration_of(before, after, february, anew) == (364, 10_000)
    kept = february._replace(end_s=february.start_s + 365 * DAY_S)
    assert proration_of(before, after, february, kept) == (364, 9_512)
    trial = february._replace(is_trial=True)
    assert proration_of(before, after, trial, trial) == (0, 0)


@pytest.mark.parametrize(
    ("cents", "rest", "of", "share"),
    [
        (1_000, 1, 3, 333),
        (1, 1, 2, 1),
        (2_900, 0, 30, 0),
        (2_900, 30, 30, 2_900),
    ],
)
def test_a_line_is_rounded_to_the_nearest_cent(cents: int, rest: int, of: int, share: int) -> None:
    cycle = Cycle(0, of * DAY_S, (of - rest) * DAY_S)
    assert cycle.share_of(cents) == share


def test_seats_are_one_line_whatever_their_number() -> None:
    """Three seats of 9.01 USD for half a period are 13.515, and 4.505 each: rounded once, not three times."""
    before, after = parts(2_900), parts(2_900, seats=3)
    assert proration_of(before, after, HALFWAY) == (0, 1_352)
    assert proration_of(after, before, HALFWAY) == (1_352, 0)
    more = parts(2_900, seats=5)
    assert proration_of(after, more, HALFWAY) == (1_352, 2_253)


@given(
    old=st.integers(0, 10**9),
    new=st.integers(0, 10**9),
    start_s=st.integers(0, 2**33),
    whole_s=st.integers(1, 366 * DAY_S),
    part=st.fractions(0, 1),
)
def test_no_line_is_off_by_more_than_half_a_cent(
    old: int, new: int, start_s: int, whole_s: int, part: Fraction
) -> None:
    """Property: exact but for one rounding a line, and what changes back and forth costs nothing."""
    cycle = Cycle(start_s, start_s + whole_s, start_s + int(part * whole_s))
    before, after = parts(old), parts(new, "price_max")
    credit, charge = proration_of(before, after, cycle)
    rest = Fraction(cycle.end_s - cycle.now_s, whole_s)
    assert abs(credit - old * rest) <= Fraction(1, 2)
    assert abs(charge - new * rest) <= Fraction(1, 2)
    assert proration_of(after, before, cycle) == (charge, credit)
    assert proration_of(before, before, cycle) == (0, 0)
