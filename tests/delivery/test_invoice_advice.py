"""What is mispriced: units on invoice lines of other prices than they were recorded at."""
# Internals: a pure table of invoice lines and advice.

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest

from meterkit.delivery.invoices import LineCharge, PriceTerms, read_price_terms
from meterkit.delivery.reconcile_findings import PriceMismatch, advice_on_amounts, advice_on_prices, mispriced

TABLE: list[tuple[str, dict[str, int], dict[str, int], list[tuple[int, str, str]]]] = [
    ("each at its price", {"5": 10, "3": 4}, {"3": 4, "5": 10}, []),
    ("all at another price", {"5": 10}, {"3": 10}, [(10, "5", "3")]),
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
    assert [PriceMismatch(units, Fraction(was), Fraction(billed)) for units, was, billed in expected] == found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], ""),
        (
            [
                PriceMismatch(3, Fraction(1, 80), Fraction(1, 100)),
                PriceMismatch(1_000, Fraction(5), Fraction(3)),
            ],
            (
                "3 units were recorded at $0.000125 each and are billed at $0.0001 each; 1000 units"
                " were recorded at $0.05 each and are billed at $0.03 each (in_1, in_2): check who"
                " changed the price; that is $20.00 less, and the customer's own price gives no more"
            ),
        ),
    ],
)
def test_mispriced_units_in_words(found: list[PriceMismatch], expected: str) -> None:
    assert advice_on_prices(found, ["in_1", "in_2"], "usd") == expected


def price_of(name: str = "price_1", **terms: Any) -> PriceTerms:
    """A price as Stripe shows it."""
    return read_price_terms({"id": name, "currency": "usd", "recurring": {"meter": "mtr_1"}, **terms})


FREE_100: Final = [{"up_to": 100, "unit_amount": 0}, {"up_to": None, "unit_amount_decimal": "2.5"}]
FLAT_FEE: Final = [{"up_to": 10, "unit_amount": 1, "flat_amount": 500}, {"up_to": None, "unit_amount": 2}]
SECOND_FEE: Final = [{"up_to": 10, "unit_amount": 1}, {"up_to": None, "unit_amount": 2, "flat_amount": 300}]
CHARGES: list[tuple[dict[str, Any], int, int, str | None]] = [
    ({"unit_amount_decimal": "0.5"}, 7, 0, "7/2"),
    ({"unit_amount_decimal": "5", "transform_quantity": {"divide_by": 10, "round": "up"}}, 7, 0, None),
    ({"tiers": FREE_100, "tiers_mode": "graduated"}, 103, 0, "15/2"),
    ({"tiers": FREE_100, "tiers_mode": "graduated"}, 10, 95, "25/2"),
    ({"tiers": FREE_100, "tiers_mode": "volume"}, 102, 0, "255"),
    ({"tiers": FREE_100, "tiers_mode": "volume"}, 2, 100, "255"),
    ({"tiers": FLAT_FEE, "tiers_mode": "graduated"}, 0, 0, "500"),
    ({"tiers": FLAT_FEE, "tiers_mode": "graduated"}, 2, 10, "4"),
    ({"tiers": SECOND_FEE, "tiers_mode": "graduated"}, 0, 0, "0"),
    ({"tiers": SECOND_FEE, "tiers_mode": "graduated"}, 10, 0, "10"),
    ({"tiers": SECOND_FEE, "tiers_mode": "graduated"}, 2, 10, "304"),
]


@pytest.mark.parametrize(("terms", "units", "after", "expected"), CHARGES)
def test_the_charge_of_a_price(terms: dict[str, Any], units: int, after: int, expected: str | None) -> None:
    charge = price_of(**terms).charge(Decimal(units), after=Decimal(after))
    assert charge == (None if expected is None else Fraction(expected))


def tiered(name: str, units: int, cents: int) -> LineCharge:
    """Lines of a price with 100 free units, and then $0.025 a unit."""
    return LineCharge(
        price_of(name, tiers=FREE_100, tiers_mode="graduated"), Decimal(units), cents, 1 + (units > 100)
    )


def flat(units: int, cents: int) -> LineCharge:
    return LineCharge(price_of(unit_amount_decimal="2.5"), Decimal(units), cents, 1)


AMOUNTS: list[tuple[str, list[LineCharge], str]] = [
    ("nothing", [], ""),
    ("one price, rounded up", [flat(3, 8)], ""),
    ("one price, rounded down", [flat(3, 7)], ""),
    (
        "one price, a cent less",
        [flat(3, 6)],
        "3 units at price_1 come to $0.08, and the lines have $0.06",
    ),
    ("one price, much more", [flat(4, 500)], "check who changed them, and credit $4.90"),
    (
        "a tier edited",
        [tiered("a", 300, 400)],
        "; that is $1.00 less, and the customer's own price gives no",
    ),
    (
        "a free tier twice",
        [tiered("a", 100, 0), tiered("b", 100, 0)],
        (
            "the tiers began again when a was switched to b (in_1): $0.00 are billed, and with each tier"
            " once it would be $2.50: check who switched the price at once, such as a portal"
        ),
    ),
    (
        "the same price in two spans",
        [tiered("a", 100, 0), tiered("a", 100, 0)],
        "the tiers of a began again when its item was removed and added (in_1): $0.00 are billed",
    ),
    ("the same price in two spans, within the free tier", [tiered("a", 60, 0), tiered("a", 40, 0)], ""),
]


@pytest.mark.parametrize(
    ("charges", "expected"), [row[1:] for row in AMOUNTS], ids=[row[0] for row in AMOUNTS]
)
def test_amounts_of_lines_in_words(charges: list[LineCharge], expected: str) -> None:
    found = advice_on_amounts(charges, ["in_1"], "usd")
    assert expected in found
    assert bool(found) == bool(expected)
    assert advice_on_amounts(charges, ["in_1"], "eur") == ""  # In another currency.
