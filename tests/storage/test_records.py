"""Messages of object stores, read: what AWS and MinIO document, and what must count nothing."""
# Internals: a pure table of records of object stores.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from meterkit.catalog import ObjectPattern, Storage
from meterkit.storage.records import Owner, UnreadableError, carried, owner_of, read_events

if TYPE_CHECKING:
    from meterkit.storage.records import ObjectEvent

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
BRIDGED: Final = {
    "source": "aws.s3",
    "detail-type": "Object Created",
    "time": "2021-11-12T00:00:00Z",
    "detail": {
        "bucket": {"name": "b"},
        "object": {"key": "a+b/é", "size": 5, "version-id": "IYV3p45", "sequencer": "617f08299329d189"},
        "reason": "PutObject",
    },
}


def record(name: str = "ObjectCreated:Put", *, version: str = "2.1", **target: object) -> dict[str, Any]:
    found = {"key": "k", "size": 7, "sequencer": "0A", **target}
    return {
        "eventVersion": version,
        "eventTime": "1970-01-01T00:00:01.500Z",
        "eventName": name,
        "s3": {"bucket": {"name": "b"}, "object": found},
    }


def read(*records: object) -> tuple[list[ObjectEvent], int]:
    return read_events(json.dumps({"Records": records}))


def bridged(kind: str = "Object Created", **changes: object) -> bytes:
    detail = BRIDGED["detail"]
    assert isinstance(detail, dict)
    return json.dumps({**BRIDGED, "detail-type": kind, "detail": {**detail, **changes}}).encode()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ObjectCreated:Put", "stored"),
        ("s3:ObjectCreated:PutTagging", None),
        ("ObjectRemoved:Delete", "removed"),
        ("LifecycleExpiration:DeleteMarkerCreated", "unclear"),
        ("ObjectRemoved:DeleteMarkerCreated", "unclear"),
        ("s3:ObjectRemoved:DeleteAllVersions", "unclear"),
        ("s3:ObjectRemoved:NoOP", None),
        ("s3:LifecycleDelMarkerExpiration:Delete", "unclear"),
        ("ObjectRestore:Completed", None),
    ],
)
def test_events_are_read_by_what_becomes_of_bytes(name: str, change: str | None) -> None:
    events, unread = read(record(name))
    assert unread == 0
    assert [event.change for event in events] == ([] if change is None else [change])


def test_a_marker_frees_only_what_it_replaces() -> None:
    assert read(record("ObjectRemoved:DeleteMarkerCreated", versionId="m1")) == ([], 0)
    events, _ = read(record("ObjectRemoved:DeleteMarkerCreated", versionId="null"))
    assert [(event.change, event.version, event.size) for event in events] == [("removed", "null", 0)]


def test_keys_are_decoded_once() -> None:
    found, _ = read(*(record(key=key) for key in ("ada%2Fa+b%2B", "ada/%252e", "ada%252Fb")))
    assert [event.key for event in found] == ["ada/a b+", "ada/%2e", "ada%2Fb"]
    [event], _ = read_events(bridged())
    assert (event.key, event.size, event.version, event.sequencer) == (
        *("a+b/é", 5, "IYV3p45"),
        "617f08299329d189",
    )


def test_events_of_eventbridge() -> None:
    target = {"key": "k", "version-id": "mtB0", "sequencer": "617b398000000000"}
    marker = bridged("Object Deleted", object=target, **{"deletion-type": "Delete Marker Created"})
    assert read_events(marker) == ([], 0)
    [event], _ = read_events(
        bridged("Object Deleted", object=target, **{"deletion-type": "Permanently Deleted"})
    )
    assert (event.change, event.version, event.size) == ("removed", "mtB0", 0)
    assert read_events(bridged("Object Tags Added")) == ([], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        record(size=-1),
        record(size=10**15),
        record(size=True),
        record(key=7),
        record(key="%ff"),
        record(version="3.0"),
        {**record(), "eventTime": "yesterday"},
        {"eventVersion": "2.1"},
        "text",
    ],
)
def test_an_unreadable_record_counts_nothing_and_is_skipped(wrong: object) -> None:
    events, unread = read(wrong, record())
    assert ([event.size for event in events], unread) == ([7], 1)


@pytest.mark.parametrize("body", ["[]", "[" * 100_000, '{"Records": 1}', b"\xff"])
def test_what_is_no_message_of_an_object_store_is_refused(body: str | bytes) -> None:
    with pytest.raises(UnreadableError):
        read_events(body)


def test_a_test_event_and_a_message_of_sns_within_a_queue() -> None:
    assert read_events('{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}') == ([], 0)
    inner = json.dumps({"Records": [record()]})
    assert carried(json.dumps({"Type": "Notification", "Message": inner})) == inner
    assert (carried(inner), carried("text")) == (inner, "text")


def test_a_sequencer_that_is_none_is_left_out() -> None:
    events, _ = read(record(sequencer="xyz"), record(sequencer=None), record(sequencer="AF"))
    assert [event.sequencer for event in events] == ["", "", "af"]


STORAGE: Final = Storage(
    gauge="storage",
    objects=(
        ObjectPattern(bucket="b", key="public/{customer}/x"),
        ObjectPattern(bucket="b", key="{customer}/{type}/{path:path}"),
        ObjectPattern(bucket="c", key="u-{customer}.bin"),
    ),
    types=("images",),
)


@pytest.mark.parametrize(
    ("bucket", "key", "owner"),
    [
        ("b", "ada/images/a/b c", Owner("ada", "images")),
        ("b", "ada/films/a", Owner("ada", "other")),
        ("b", "public/ada/x", Owner("ada", "other")),
        ("b", "public/ada/y", Owner("public", "other")),
        ("c", "u-ada.bin", Owner("ada", "other")),
        ("c", "u-adaxbin", None),
        ("b", "ada/images/", None),
        ("b", "/images/a", None),
        ("d", "ada/images/a", None),
        ("b", "ada/images/../../bob/images/a", None),
        ("b", "ada/images/..%2fbob", None),
        ("b", "ada/images/%2F", None),
        ("b", "a\nda/images/x", None),
    ],
)
def test_a_key_says_whose_an_object_is(bucket: str, key: str, owner: Owner | None) -> None:
    assert owner_of(STORAGE, bucket, key) == owner
