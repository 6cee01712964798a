"""A bucket, and the records that AWS and MinIO write of what happens in it.

moto's records lack ``sequencer`` and ``versionId``, and it writes none for delete markers. These follow
https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html and, for MinIO,
https://github.com/minio/minio/blob/master/internal/event/event.go and ``cmd/notification.go``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Literal, Self
from urllib.parse import quote, quote_plus

from meterkit.storage.aws import ListingPage, Version
from meterkit.storage.object_events import unwrap_queue_message
from meterkit.store.task_lease import StorageUpkeep

__all__ = ["FORMATS", "Bucket", "Format", "Happened", "StorageUpkeep", "unwrap_queue_message"]

Format = Literal["s3", "eventbridge", "minio"]
FORMATS: tuple[Format, ...] = ("s3", "eventbridge", "minio")


def stamp(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Happened:
    """One event: ``name`` as S3 has it, without a version for buckets that have none."""

    name: str
    key: str
    size: int | None
    version: str | None
    at_ms: int
    number: int
    stored_number: int
    """Of the upload of what was removed: MinIO numbers a removal so."""

    @classmethod
    def put(cls, key: str, size: int, at_ms: int, number: int = 5, version: str | None = None) -> Self:
        return cls("ObjectCreated:Put", key, size, version, at_ms, number, number)

    def as_body(self, form: Format, bucket: str) -> bytes:
        if form == "eventbridge":
            return json.dumps(self._bridged(bucket)).encode()
        is_minio = form == "minio"
        number = self.stored_number if is_minio else self.number
        target: dict[str, Any] = {
            "key": quote_plus(self.key) if is_minio else quote(self.key, safe="/*-._").replace("%20", "+"),
            "sequencer": f"{number:016X}",
        }
        if self.size is not None and not (is_minio and self.size == 0):
            target["size"] = self.size
        if self.version is not None:
            target["versionId"] = self.version
        record = {
            "eventVersion": "2.0" if is_minio else "2.1",
            "eventSource": "minio:s3" if is_minio else "aws:s3",
            "eventTime": stamp(self.at_ms),
            "eventName": f"s3:{self.name}" if is_minio else self.name,
            "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": bucket}, "object": target},
        }
        top = {"EventName": f"s3:{self.name}", "Key": f"{bucket}/{self.key}"} if is_minio else {}
        return json.dumps({**top, "Records": [record]}).encode()

    def _bridged(self, bucket: str) -> dict[str, Any]:
        family, _, action = self.name.partition(":")
        target: dict[str, Any] = {"key": self.key, "sequencer": f"{self.number:016X}"}
        if self.version is not None:
            target["version-id"] = self.version
        if family == "ObjectCreated":
            reason = {"Put": "PutObject", "Copy": "CopyObject"}.get(action, action)
            detail = {"reason": reason, "object": {**target, "size": self.size}}
            kind = "Object Created"
        else:
            is_marker = action == "DeleteMarkerCreated"
            reason = "Lifecycle Expiration" if family == "LifecycleExpiration" else "DeleteObject"
            detail = {
                "reason": reason,
                "deletion-type": "Delete Marker Created" if is_marker else "Permanently Deleted",
                "object": target,
            }
            kind = "Object Deleted"
        return {
            "version": "0",
            "source": "aws.s3",
            "detail-type": kind,
            "time": stamp(self.at_ms // 1000 * 1000).replace(".000Z", "Z"),
            "detail": {"version": "0", "bucket": {"name": bucket}, **detail},
        }


@dataclass(slots=True)
class Bucket:
    """Objects and their versions, as S3 keeps them; lists itself as it is when a page is asked for.

    ``versions``: key and version (``null`` without) to size and number of the upload; None: a delete marker.
    """

    name: str
    is_versioned: bool
    random: Random
    now_ms: int
    number: int = 1000
    versions: dict[tuple[str, str], tuple[int, int] | None] = field(
        default_factory=dict[tuple[str, str], "tuple[int, int] | None"]
    )
    happened: list[Happened] = field(default_factory=list["Happened"])
    is_suspended: bool = False

    def suspend(self) -> None:
        """Store no more versions: a PUT or a DELETE from now on replaces the null version."""
        self.is_suspended = self.is_versioned

    def store(self, key: str, size: int, action: str) -> None:
        self._tick()
        version = f"v{self.number:06}" if self.is_versioned and not self.is_suspended else "null"
        self.versions[key, version] = size, self.number
        self._tell(f"ObjectCreated:{action}", key, size, version, self.number)

    def remove(self, key: str, family: str) -> None:
        """What a DELETE without a version does, or a rule."""
        self._tick()
        if self.is_versioned:
            marker = "null" if self.is_suspended else f"m{self.number:06}"
            self.versions[key, marker] = None
            name = "LifecycleExpiration" if family == "LifecycleExpiration" else "ObjectRemoved"
            self._tell(f"{name}:DeleteMarkerCreated", key, None, marker, self.number)
            return
        was = self.versions.pop((key, "null"), None)
        if was is not None:
            self._tell(f"{family}:Delete", key, None, "null", was[1])

    def remove_version(self, key: str, version: str) -> None:
        self._tick()
        was = self.versions.pop((key, version))
        self._tell("ObjectRemoved:Delete", key, None, version, self.number if was is None else was[1])

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        assert bucket == self.name
        names = sorted(place for place in self.versions if place[0].startswith(prefix))
        for name in names or [("", "")]:
            found = self.versions.get(name)
            yield ListingPage([Version(*name, found[0])] if found else [], self.now_ms)

    def _tick(self) -> None:
        self.now_ms += self.random.randrange(1, 5_000)
        self.number += self.random.randrange(1, 9)

    def _tell(self, name: str, key: str, size: int | None, version: str, stored: int) -> None:
        # Where versions are suspended, records name the null version.
        told = None if version == "null" and not self.is_suspended else version
        self.happened.append(Happened(name, key, size, told, self.now_ms, self.number, stored))
