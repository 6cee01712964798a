"""Events of object stores, read from their messages: S3 (also by SQS), EventBridge, MinIO."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast
from urllib.parse import unquote_plus

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

NULL_VERSION: Final = "null"
"""The version of objects in unversioned buckets; only this one can be overwritten."""
Change = Literal["stored", "removed", "unclear"]
"""The effect on a version; ``unclear``: only a listing shows it."""
_STORED: Final = frozenset({"Put", "Post", "Copy", "CompleteMultipartUpload"})
# MinIO's lifecycle removes all versions of an object, and reports one of them:
# https://github.com/minio/minio/blob/master/cmd/data-scanner.go
_REMOVED_ALL: Final = frozenset(
    {("ObjectRemoved", "DeleteAllVersions"), ("LifecycleDelMarkerExpiration", "Delete")}
)
_HEX: Final = re.compile(r"[0-9A-Fa-f]{1,64}")
_MAJOR: Final = "2"
_RECORDS_MAX: Final = 10_000


class UnreadableEventError(ValueError):
    """A message has none of the supported formats."""


class ObjectEvent(NamedTuple):
    """One event of one version of an object.

    Attributes:
        key: decoded.
        version: ``null`` in buckets without versions.
        size: in bytes; 0 unless stored.
        sequencer: lowercase hex digits; empty if there is none.
        at_ms: when it happened, by the clock of the object store.
    """

    bucket: str
    key: str
    version: str
    change: Change
    size: int
    sequencer: str
    at_ms: int


def read_events(body: bytes | str) -> tuple[list[ObjectEvent], int]:
    """Read the events in a message; also return the number of unreadable records.

    Events that neither store nor remove bytes are left out: tags, retention, delete markers, tests.

    Raises:
        UnreadableEventError: the message has no supported format.
    """
    message = _json(body)
    records = message.get("Records")
    if isinstance(records, list) and len(cast("list[object]", records)) <= _RECORDS_MAX:
        found = [_try_read(_read_s3_event, record) for record in cast("list[object]", records)]
    elif message.get("source") == "aws.s3" and "detail-type" in message:
        found = [_try_read(_read_bridge_event, message)]
    elif message.get("Event") == "s3:TestEvent":
        found = []
    else:
        raise UnreadableEventError("neither S3 or MinIO records, nor an EventBridge event")
    events = [event for event in found if isinstance(event, ObjectEvent)]
    return events, found.count(False)


def unwrap_queue_message(body: str) -> str:
    """Return the SNS message inside a queue message, otherwise the message itself. Pure."""
    try:
        message = _json(body)
    except UnreadableEventError:
        return body
    inner = message.get("Message")
    return inner if message.get("Type") == "Notification" and isinstance(inner, str) else body


def _json(body: bytes | str) -> Mapping[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnreadableEventError("not JSON") from error
    if not isinstance(message, dict):
        raise UnreadableEventError("not a JSON object")
    return cast("Mapping[str, Any]", message)


def _try_read(read: Any, record: Any) -> ObjectEvent | Literal[False] | None:
    """Read an event; None: it changes no bytes; False: it cannot be read."""
    try:
        event: ObjectEvent | None = read(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False
    return event


def _read_s3_event(record: Mapping[str, Any]) -> ObjectEvent | None:
    if str(record["eventVersion"]).partition(".")[0] != _MAJOR:
        raise UnreadableEventError("unsupported major version")
    family, _, action = str(record["eventName"]).removeprefix("s3:").partition(":")
    target = record["s3"]["object"]
    # Both encode keys as forms do, MinIO also the slashes; decoded twice, `%252F` would become a slash.
    key = unquote_plus(_text(target["key"]), errors="strict")
    version = _version(target.get("versionId"))
    change: Change
    if family == "ObjectCreated" and action in _STORED:
        change = "stored"
    elif action == "DeleteMarkerCreated":
        return _read_delete_marker(
            record["s3"]["bucket"]["name"], key, target.get("versionId"), target, record["eventTime"]
        )
    elif (family, action) in _REMOVED_ALL:
        change = "unclear"
    elif family in {"ObjectRemoved", "LifecycleExpiration"} and action == "Delete":
        change = "removed"
    else:
        return None
    return _make_event(record["s3"]["bucket"]["name"], key, version, change, target, record["eventTime"])


def _read_bridge_event(message: Mapping[str, Any]) -> ObjectEvent | None:
    detail, kind = message["detail"], message["detail-type"]
    target, bucket = detail["object"], detail["bucket"]["name"]
    key, version = _text(target["key"]), target.get("version-id")
    if kind == "Object Created":
        return _make_event(bucket, key, _version(version), "stored", target, message["time"])
    if kind != "Object Deleted":
        return None
    if detail.get("deletion-type") == "Delete Marker Created":
        return _read_delete_marker(bucket, key, version, target, message["time"])
    return _make_event(bucket, key, _version(version), "removed", target, message["time"])


def _read_delete_marker(
    bucket: object, key: str, version: object, target: Mapping[str, Any], at: object
) -> ObjectEvent | None:
    """Read a delete marker: it frees bytes only if it replaces the null version."""
    if version is None or version == "":
        return _make_event(bucket, key, NULL_VERSION, "unclear", target, at)
    if version == NULL_VERSION:
        return _make_event(bucket, key, NULL_VERSION, "removed", target, at)
    return None


def _make_event(
    bucket: object, key: str, version: str, change: Change, target: Mapping[str, Any], at: object
) -> ObjectEvent:
    size = 0
    if change == "stored":
        size = target.get("size", 0)  # MinIO leaves out the size of an empty object.
        if type(size) is not int or not 0 <= size <= QUANTITY_MAX:
            raise UnreadableEventError("not a size")
    sequencer = target.get("sequencer") or ""
    if sequencer and not _HEX.fullmatch(_text(sequencer)):
        sequencer = ""
    instant = datetime.fromisoformat(_text(at))
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return ObjectEvent(_text(bucket), key, version, change, size, sequencer.lower(), to_ms(instant))


def _version(version: object) -> str:
    return NULL_VERSION if version in {None, "", NULL_VERSION} else _text(version)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
