"""What a person must do about an invoice, when it became final, and what becomes of late usage."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest

from meterkit.delivery.invoice_advice import advice_on_invoices
from meterkit.delivery.invoices import MADE_WITHIN_MS, Invoiced, is_renewal_of
from meterkit.delivery.late_usage import late_in_words
from meterkit.delivery.report import LateUsage
from meterkit.outbox.invoice_ends import finalized_ms

MADE_MS: Final = 1_800_000_000_000
FINAL: Final = Invoiced(quantity=Decimal(100), state="final", invoices=["in_1"], subscriptions=["sub_1"])


def advice(
    invoiced: Invoiced, counted: int, *, late: int = 0, after_ms: int = MADE_WITHIN_MS, price: str = ""
) -> str:
    return advice_on_invoices(
        invoiced, counted, late=late, price=price, made_ms=MADE_MS, now_ms=MADE_MS + after_ms
    )


@pytest.mark.parametrize(
    ("invoiced", "counted", "late"),
    [
        (FINAL, 100, 0),
        (FINAL, 120, 20),
        (FINAL, 110, 20),  # Some of what is late has reached the invoice.
        (replace(FINAL, quantity=Decimal(0)), -5, 0),
        (replace(FINAL, state="unknown"), 70, 0),
        (Invoiced(state="none"), 0, 0),
    ],
)
def test_where_lines_have_what_was_counted_nothing_is_to_be_done(
    invoiced: Invoiced, counted: int, late: int
) -> None:
    assert advice(invoiced, counted, late=late) == ""


def test_a_draft_is_waited_for() -> None:
    assert advice(replace(FINAL, state="draft"), 120) == (
        "the draft in_1 has 100 of 120: Stripe brings it up to date when it becomes final"
    )


def test_an_invoice_that_is_not_made_yet_is_waited_for() -> None:
    none = Invoiced(state="none")
    assert advice(none, 7, after_ms=MADE_WITHIN_MS - 1) == (
        "7 are on no invoice yet: Stripe makes it within an hour or two"
    )
    assert "(no invoice line has them)" in advice(none, 7, after_ms=MADE_WITHIN_MS)
    assert advice(FINAL, 107, after_ms=0).startswith("7 of 107 units")


def test_what_is_missing_by_mistake_is_billed_by_an_invoice_item() -> None:
    assert advice(FINAL, 107, price=" at USD 0.05 each") == (
        "7 of 107 units that Stripe has counted at USD 0.05 each are on no invoice (invoice in_1 has 100):"
        " see whether the subscription has the meter's price; if it was removed by mistake, bill them by an"
        " invoice item"
    )
    assert advice(FINAL, 127, late=20).startswith("7 of 107 units")
    assert advice(FINAL, 101).startswith("1 of 101 units")


def test_what_is_too_much_is_credited() -> None:
    assert advice(FINAL, 93) == "in_1 has 100, and Stripe has counted 93: credit 7 units"
    assert advice(FINAL, -3).endswith("counted 0: credit 100 units")
    twice = replace(FINAL, subscriptions=["sub_1", "sub_2"], invoices=["in_1", "in_2"])
    assert advice(twice, 50) == (
        "billed twice: in_1, in_2 have 100, and Stripe has counted 50: the subscriptions sub_1, sub_2 bill"
        " the same meter; end one, and credit 50 units"
    )


@pytest.mark.parametrize(
    ("invoice", "expected"),
    [
        ({"status": "draft", "created": 5, "status_transitions": {"finalized_at": 7}}, 0),
        ({"status": "open", "created": 5, "status_transitions": {"finalized_at": 7}}, 7_000),
        ({"status": "void", "status_transitions": {"finalized_at": 7, "voided_at": 9}}, 7_000),
        ({"status": "void", "status_transitions": {"voided_at": 9}}, 9_000),
        ({"status": "uncollectible", "status_transitions": {"marked_uncollectible_at": 8}}, 8_000),
        ({"status": "void", "status_transitions": {"marked_uncollectible_at": 8, "voided_at": 9}}, 8_000),
        ({"status": "open", "created": 5}, 5_000),
        ({"status": "open"}, 0),
    ],
)
def test_when_an_invoice_became_final(invoice: dict[str, Any], expected: int) -> None:
    assert finalized_ms(invoice) == expected


RENEWAL: Final = {
    "billing_reason": "subscription_cycle",
    "period_end": 7,
    "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}},
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"billing_reason": "subscription_update"}, False),
        ({"period_end": 8}, False),
        ({"parent": None}, False),
        ({"parent": None, "subscription": "sub_1"}, True),
        (
            {"parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_2"}}},
            False,
        ),
    ],
)
def test_the_invoice_of_a_renewal(changed: dict[str, Any], *, expected: bool) -> None:
    assert is_renewal_of(RENEWAL | changed, "sub_1", 7) == expected


def late(meter: str, quantity: int, *, is_billed: bool) -> LateUsage:
    return LateUsage(
        customer="ada", meter=meter, quantity=quantity, period="2031-05-01T00:00:00Z", is_billed=is_billed
    )


def test_what_becomes_of_late_usage_in_words() -> None:
    billed, lost = late("tokens", 5, is_billed=True), late("pages", 7, is_billed=False)
    assert late_in_words([billed]) == "5 of tokens: the invoice of the open period bills it"
    assert late_in_words([lost]) == "7 of pages: no invoice bills it"
    assert late_in_words([lost, billed, late("rows", 1, is_billed=False)]) == (
        "5 of tokens: the invoice of the open period bills it; 7 of pages, 1 of rows: no invoice bills it"
    )


def test_units_of_a_void_invoice_are_named_by_it() -> None:
    found = Invoiced(voided={"in_2": Decimal(7)})
    assert advice(found, 7, after_ms=0) == (
        "7 of 7 units that Stripe has counted are on no invoice (no invoice line has them; in_2 had 7 and is"
        " void): see who voided it, and why"
    )


def test_a_surplus_is_credited_at_its_own_amount() -> None:
    words = advice_on_invoices(
        FINAL, 90, late=0, price=" at USD 0.05 each", surplus="USD 0.40", made_ms=MADE_MS, now_ms=MADE_MS
    )
    assert words == "in_1 has 100, and Stripe has counted 90: credit 10 units, USD 0.40"
