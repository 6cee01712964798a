"""The block ``storage:``: which gauge holds stored bytes, and how an object's key names its customer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.catalog.errors import RefusedError, unknown
from meterkit.catalog.storage_values import OTHER_TYPE, ObjectPattern, Storage
from meterkit.catalog.value_parsers import NAME, scalar, text
from meterkit.catalog.value_shapes import AnyForm, Key, ListOf, MappedShape, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.models import Meter

_KEY_ALLOWED: Final = 'a key with {customer}, {type} and {path:path}, such as "{customer}/{type}/{path:path}"'
_FIELD: Final = re.compile(r"\{[^{}]*\}|[{}]")
_SHARED_SEGMENT: Final = re.compile(r"\}[^/{]*\{")
_FIELDS: Final = ("{customer}", "{type}", "{path:path}")
_BUCKET: Final = text(255, pattern=r"[A-Za-z0-9._:/-]+", allowed="the name of a bucket, such as uploads")


def _parse_key(text: str) -> str:
    found = _FIELD.findall(text)
    strange = [field for field in found if field not in _FIELDS]
    if strange:
        raise RefusedError(f"unknown field {strange[0]} in a key; allowed: {_KEY_ALLOWED}")
    if found.count("{customer}") != 1 or len(set(found)) != len(found):
        raise RefusedError(
            f"a key has {{customer}} once, and other fields at most once; allowed: {_KEY_ALLOWED}"
        )
    if "{path:path}" in found and not text.endswith("{path:path}"):
        raise RefusedError(f"{{path:path}} must be at the end; allowed: {_KEY_ALLOWED}")
    if _SHARED_SEGMENT.search(text) or text.startswith("/"):
        # By {customer}-{path:path}, ada's file `b-c.png` would be the customer ada-b's.
        raise RefusedError(f"separate fields by /, and do not begin with /; allowed: {_KEY_ALLOWED}")
    return text


class ObjectsTable(Table, what="objects"):
    """``objects:`` in ``storage:``."""

    bucket = Key(_BUCKET, "Name of the bucket.", required=True)
    key = Key(
        scalar(_parse_key, _KEY_ALLOWED, pattern=r"\{customer\}"),
        "How an object's key names its customer and type.",
        required=True,
    )


def _build_pattern(table: ObjectsTable) -> ObjectPattern | None:
    if table.bucket is None or table.key is None:
        return None
    return ObjectPattern(bucket=table.bucket, key=table.key)


_OBJECTS: Final = MappedShape(ObjectsTable, _build_pattern)


def _as_tuple(pattern: ObjectPattern) -> tuple[ObjectPattern, ...]:
    return (pattern,)


class StorageTable(Table, what="storage"):
    """``storage:`` at the top level."""

    gauge = Key(NAME, "The gauge that holds the stored bytes.", required=True)
    objects = Key(
        AnyForm(
            "a map with bucket and key, or a list of such maps",
            items=ListOf(_OBJECTS, "objects", 1),
            fields=MappedShape(_OBJECTS, _as_tuple),
        ),
        "Buckets and the keys of their objects; the first match wins.",
        required=True,
    )
    types = Key(ListOf(NAME, "types"), "Types that usage shows separately; all others are `other`.")


def build_storage(table: StorageTable | None, meters: Mapping[str, Meter | None]) -> Storage | None:
    """Build the storage settings; what is wrong is noted."""
    if table is None or table.gauge is None:
        return None
    if table.gauge not in meters:
        table.refuse("gauge", unknown("meter", table.gauge, meters))
        return None
    meter = meters[table.gauge]
    if meter is not None and (meter.kind != "gauge" or meter.unit not in {"byte", "bytes"}):
        table.refuse("gauge", f"{table.gauge} must be a gauge of bytes: {{unit: byte, kind: gauge}}")
    types = table.types or ()
    if OTHER_TYPE in types:
        table.refuse("types", f"`{OTHER_TYPE}` always exists; leave it out")
    return Storage(gauge=table.gauge, objects=table.objects or (), types=types)
