"""What is mispriced: units on invoice lines of other prices than they were recorded at."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from meterkit.delivery.invoice_advice import Mispriced, advice_on_prices, mispriced

TABLE: list[tuple[str, dict[str, int], dict[str, int], list[tuple[int, str, str]]]] = [
    ("nothing at all", {}, {}, []),
    ("each at its price", {"5": 10, "3": 4}, {"3": 4, "5": 10}, []),
    ("all at another price", {"5": 10}, {"3": 10}, [(10, "5", "3")]),
    ("some at another price", {"5": 10}, {"3": 4, "5": 6}, [(4, "5", "3")]),
    ("what is on no line has no other price", {"5": 10}, {"5": 4}, []),
    ("what nothing was recorded of is not mispriced", {"5": 4}, {"5": 4, "3": 9}, []),
    ("missing and mispriced at once", {"5": 10}, {"3": 4}, [(4, "5", "3")]),
    (
        "several prices, the dearest first",
        {"5": 10, "7/2": 6},
        {"3": 12, "2": 4},
        [(10, "5", "3"), (2, "7/2", "3"), (4, "7/2", "2")],
    ),
]


@pytest.mark.parametrize(
    ("recorded", "lines", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_is_mispriced(
    recorded: dict[str, int], lines: dict[str, int], expected: list[tuple[int, str, str]]
) -> None:
    found = mispriced(
        {Fraction(price): units for price, units in recorded.items()},
        {Fraction(price): Decimal(units) for price, units in lines.items()},
    )
    assert [Mispriced(units, Fraction(was), Fraction(billed)) for units, was, billed in expected] == found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ""),
        (
            [Mispriced(3, Fraction(1, 80), Fraction(1, 100)), Mispriced(1_000, Fraction(5), Fraction(3))],
            (
                "3 units were recorded at USD 0.000125 each and are billed at USD 0.0001 each; 1000 units"
                " were recorded at USD 0.05 each and are billed at USD 0.03 each (in_1, in_2): see who"
                " changed the price, and bill USD 20.00 more"
            ),
        ),
    ],
)
def test_mispriced_units_in_words(found: list[Mispriced], expected: str) -> None:
    assert advice_on_prices(found, ["in_1", "in_2"], "usd") == expected
