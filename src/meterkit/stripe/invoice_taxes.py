"""Taxes of an invoice as Stripe shows it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def taxes_on_top(invoice: Mapping[str, Any]) -> int:
    """The taxes that an invoice adds to its prices, in minor units; those within the prices are left out."""
    taxes = invoice.get("total_taxes") or ()
    return sum(int(one["amount"]) for one in taxes if one.get("tax_behavior") != "inclusive")
