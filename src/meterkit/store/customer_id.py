"""The rules for customer ids, and for the app's own ids of what it records."""

from __future__ import annotations

import re
from typing import Final, TypeGuard

from meterkit.errors import CustomerError, MeterkitError

__all__ = ["CUSTOMER_BYTES_MAX", "check_customer", "check_event_id", "is_customer"]

CUSTOMER_BYTES_MAX: Final = 256

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def is_customer(value: object) -> TypeGuard[str]:
    """Whether this is a customer id: text of 1 to 256 bytes of UTF-8 without control characters."""
    if not isinstance(value, str) or not value:
        return False
    if value.isascii():
        return len(value) <= CUSTOMER_BYTES_MAX and value.isprintable()
    return _fault(value) is None


def check_customer(value: object) -> str:
    """Return the customer id.

    Raises:
        CustomerError: it is not a text of 1 to 256 bytes of UTF-8 without control characters.
    """
    if is_customer(value):
        return value
    # The id itself is left out: it comes from a client and may be anything.
    raise CustomerError(
        f"customer id: found {_fault(value)}; allowed is a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8 "
        "without control characters"
    )


def check_event_id(value: object, name: str = "event_id") -> None:
    """See that this can name what is recorded.

    Raises:
        MeterkitError: it is not a text of 1 to 256 bytes of UTF-8.
    """
    fault = _size_fault(value)
    if fault is not None:
        raise MeterkitError(
            f"{name}: found {fault}; allowed is a text of 1 to {CUSTOMER_BYTES_MAX} bytes of UTF-8, or None"
        )


def _fault(value: object) -> str | None:
    if not isinstance(value, str):
        return _size_fault(value)
    control = _CONTROL.search(value)
    return _size_fault(value) or (
        f"the control character U+{ord(control[0]):04X} at position {control.start()}" if control else None
    )


def _size_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        return f"a lone surrogate at position {error.start}"
    return f"a text of {size} bytes" if size > CUSTOMER_BYTES_MAX else None
