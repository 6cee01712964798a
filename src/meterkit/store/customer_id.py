"""The one rule for customer ids."""

from __future__ import annotations

import re
from typing import Final, TypeGuard

from meterkit.errors import CustomerError

__all__ = ["CUSTOMER_BYTES_MAX", "check_customer", "is_customer"]

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


def _fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        return f"a lone surrogate at position {error.start}"
    if size > CUSTOMER_BYTES_MAX:
        return f"a text of {size} bytes"
    control = _CONTROL.search(value)
    return f"the control character U+{ord(control[0]):04X} at position {control.start()}" if control else None
