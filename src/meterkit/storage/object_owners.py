"""Owner of a stored object: customer and type by the key patterns of the plans file."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog import OTHER_TYPE
from meterkit.errors import CustomerError
from meterkit.store.input_checks import check_customer

if TYPE_CHECKING:
    from meterkit.catalog import Storage

_FIELDS: Final = {
    "{customer}": "(?P<customer>[^/]+)",
    "{type}": "(?P<type>[^/]+)",
    "{path:path}": "(?P<path>.+)",
}
_FIELD: Final = re.compile(r"(\{[a-z:]+\})")
_KEY_BYTES_MAX: Final = 1024
_ENCODED_SLASH: Final = "%2f"


class ObjectOwner(NamedTuple):
    """Customer of an object, and its type in the usage."""

    customer: str
    type: str


def find_owner(storage: Storage, bucket: str, key: str) -> ObjectOwner | None:
    """Match a decoded key against the plans file; None: no customer owns it, and it does not count.

    A key with the segment ``..`` or a literal ``%2F`` has no owner: another reader of the key could assign
    it to another customer.
    """
    if ".." in key.split("/") or _ENCODED_SLASH in key.lower():
        return None
    for pattern in storage.objects:
        found = _matcher(pattern.key).fullmatch(key) if pattern.bucket == bucket else None
        if found is not None:
            fields = found.groupdict()
            try:
                customer = check_customer(fields["customer"])
            except CustomerError:
                return None
            kind = fields.get("type")
            return ObjectOwner(customer, kind if kind in storage.types else OTHER_TYPE)
    return None


def find_bucket(storage: Storage, customer: str, key: str) -> str | None:
    """Find the bucket in which a customer owns a key; None: there is none, or S3 refuses the key."""
    try:
        is_key = len(key.encode()) <= _KEY_BYTES_MAX
    except (AttributeError, UnicodeEncodeError):
        is_key = False
    if not is_key:
        return None
    for pattern in storage.objects:
        owner = find_owner(storage, pattern.bucket, key)
        if owner is not None and owner.customer == customer:
            return pattern.bucket
    return None


@cache
def _matcher(template: str) -> re.Pattern[str]:
    parts = (_FIELDS.get(part, re.escape(part)) for part in _FIELD.split(template))
    return re.compile("".join(parts), re.DOTALL)
