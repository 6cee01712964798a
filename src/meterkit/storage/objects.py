"""Whose an object is: the key of an object to customer and type. Pure."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog import OTHER_TYPE
from meterkit.errors import CustomerError
from meterkit.store.customer_id import check_customer

if TYPE_CHECKING:
    from meterkit.catalog import Storage

__all__ = ["Owner", "bucket_of", "bucket_tag", "object_field", "owner_of", "upload_field"]

_FIELDS: Final = {
    "{customer}": "(?P<customer>[^/]+)",
    "{type}": "(?P<type>[^/]+)",
    "{path:path}": "(?P<path>.+)",
}
_FIELD: Final = re.compile(r"(\{[a-z:]+\})")
_KEY_BYTES_MAX: Final = 1024
_ENCODED_SLASH: Final = "%2f"


class Owner(NamedTuple):
    """Whose an object is, and under which type usage shows it."""

    customer: str
    type: str


def owner_of(storage: Storage, bucket: str, key: str) -> Owner | None:
    """Match a decoded key against the plans file; None: no customer's, and not counted.

    A key with the segment ``..`` or a literal ``%2F`` is no customer's: another reader of the key could take
    it for another customer's.
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
            return Owner(customer, kind if kind in storage.types else OTHER_TYPE)
    return None


@cache
def bucket_tag(bucket: str) -> str:
    """The four characters that the fields of a bucket's objects begin with."""
    return urlsafe_b64encode(blake2b(bucket.encode(), digest_size=3).digest()).decode()


def object_field(bucket: str, key: str, version: str) -> str:
    """The field of an object's version: a digest, since keys may name what only the app may keep."""
    name = f"{bucket}\0{key}\0{version}".encode("utf-8", "surrogatepass")
    return bucket_tag(bucket) + urlsafe_b64encode(blake2b(name, digest_size=18).digest()).decode()


def upload_field(bucket: str, key: str) -> str:
    """The field of a presigned upload: a digest of bucket and key, whatever the version will be."""
    return object_field(bucket, key, "")


def bucket_of(storage: Storage, customer: str, key: str) -> str | None:
    """The bucket in which a key is the customer's; None: there is none, or the key is none that S3 takes."""
    try:
        is_key = len(key.encode()) <= _KEY_BYTES_MAX
    except (AttributeError, UnicodeEncodeError):
        is_key = False
    if not is_key:
        return None
    for pattern in storage.objects:
        owner = owner_of(storage, pattern.bucket, key)
        if owner is not None and owner.customer == customer:
            return pattern.bucket
    return None


@cache
def _matcher(template: str) -> re.Pattern[str]:
    parts = (_FIELDS.get(part, re.escape(part)) for part in _FIELD.split(template))
    return re.compile("".join(parts), re.DOTALL)
