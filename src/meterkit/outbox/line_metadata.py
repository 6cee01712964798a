"""Metadata of invoice lines for usage, and of invoices that are made for them alone. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LINE_KEY: Final = "meterkit_line"
"""Key in the metadata of a line for its identifier in the queue."""
USAGE_KEY: Final = "meterkit_usage"
"""Key in the metadata of a line, and of an invoice of our own, for the hash of customer, meter and period."""
METER_KEY: Final = "meterkit_meter"
"""Key in the metadata of a line for the name of its meter."""


def metadata_of(shown: Mapping[str, Any]) -> Mapping[str, str]:
    """Read the metadata of an object at Stripe."""
    found: Mapping[str, str] = shown.get("metadata") or {}
    return found


def item_of(line: Mapping[str, Any]) -> str:
    """Read the id of the invoice item of a line; a pending item is shown as itself."""
    parent: Mapping[str, Any] = line.get("parent") or {}
    details: Mapping[str, Any] = parent.get("invoice_item_details") or {}
    return str(details.get("invoice_item") or line["id"])


def is_usage_line(line: Mapping[str, Any]) -> bool:
    """Whether meterkit has written a line for usage of a period."""
    return LINE_KEY in metadata_of(line)


def is_usage_invoice(invoice: Mapping[str, Any], end_ms: int) -> bool:
    """Whether meterkit has made an invoice for the usage alone of a period that ends then."""
    return metadata_of(invoice).get(USAGE_KEY, "").startswith(f"{end_ms}:")
