"""A bucket of moto's server, changed and listed over HTTP by boto3, with the records that S3 documents.

The model in memory says what the bucket must have; the server's own listing is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.storage.aws import Aws
from storage.objects import Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from meterkit.storage.aws import Page

__all__ = ["BOTO3", "PAGE", "MotoBucket"]

BOTO3: Final[Any] = import_module("boto3")  # It has no types.
PAGE: Final = 3


def _shortened(params: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
    return {**params, "MaxKeys": PAGE}


@dataclass(slots=True)
class MotoBucket(Bucket):
    """A bucket of moto.

    Attributes:
        client: boto3's.
        aws: lists with the library's own code.
        marker: key and version where the listing goes on.
    """

    client: Any = None
    aws: Aws | None = None
    marker: tuple[str | None, str | None] = (None, None)

    @classmethod
    def made(cls, address: str, like: Bucket) -> MotoBucket:
        """Create an empty bucket, with versions where ``like`` has them.

        Clients of boto3 that are made from now on list a few versions at a time.
        """
        session = BOTO3.session.Session()
        BOTO3.DEFAULT_SESSION = session
        bucket = cls(like.name, like.is_versioned, like.random, like.now_ms, aws=Aws(address))
        session.events.register("provide-client-params.s3.ListObjectVersions", _shortened)
        session.events.register("after-call.s3.ListObjectVersions", bucket.listed)
        bucket.client = client = session.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=like.name)
        if like.is_versioned:
            client.put_bucket_versioning(Bucket=like.name, VersioningConfiguration={"Status": "Enabled"})
        return bucket

    def listed(self, parsed: Mapping[str, Any], **_: object) -> None:
        """Note where the listing goes on."""
        self.marker = parsed.get("NextKeyMarker"), parsed.get("NextVersionIdMarker")

    def remove(self, key: str, family: str) -> None:
        """What a DELETE without a version does, or a rule."""
        # moto ends a listing where the version that ended its last page has gone; S3 goes on with the next.
        if self.is_versioned or key != self.marker[0]:
            Bucket.remove(self, key, family)

    def remove_version(self, key: str, version: str) -> None:
        """Remove a version."""
        if (key, version) != self.marker:
            Bucket.remove_version(self, key, version)

    def suspend(self) -> None:
        """Do nothing: moto lists null versions that a marker has replaced, which S3 removes."""

    def put(self, key: str, size: int, action: str) -> str | None:
        """Store an object as one of S3's actions does; its version."""
        at, body = {"Bucket": self.name, "Key": key}, b"x" * size
        if action == "Copy":
            self.client.put_object(Bucket=self.name, Key="elsewhere", Body=body)
            source = {"Bucket": self.name, "Key": "elsewhere"}
            reply = self.client.copy_object(**at, CopySource=source)
        elif action == "CompleteMultipartUpload":
            reply = self._upload_parts(at, body)
        else:  # A form of a browser stores as a PUT does; moto takes it elsewhere.
            reply = self.client.put_object(**at, Body=body)
        version: str | None = reply.get("VersionId")
        return version

    def delete(self, key: str, version: str | None) -> str | None:
        """Delete an object or a version; the version that was removed or created as a marker."""
        at = {"Bucket": self.name, "Key": key}
        at |= {} if version is None else {"VersionId": version}
        found: str | None = self.client.delete_object(**at).get("VersionId")
        # S3 creates a marker also where there is no object of the key; moto does not.
        return found or Bucket.delete(self, key, version)

    def abort(self, key: str, size: int) -> None:
        """Begin an upload of parts, and abort it: S3 sends no record."""
        at = {"Bucket": self.name, "Key": key}
        upload = self.client.create_multipart_upload(**at)["UploadId"]
        self.client.upload_part(**at, UploadId=upload, PartNumber=1, Body=b"x" * size)
        self.client.abort_multipart_upload(**at, UploadId=upload)

    def live(self) -> dict[tuple[str, str], int]:
        """What the server lists, which is also what the model has."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.name)
        found = {
            (one["Key"], one["VersionId"]): one["Size"]
            for page in pages
            for one in page.get("Versions", ())
            if one["Key"] != "elsewhere"
        }
        assert found == Bucket.live(self)
        return found

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        """Pages of the server's listing, at the time of the history."""
        assert self.aws is not None
        async for page in self.aws.pages(bucket, prefix):
            yield page._replace(at_ms=self.now_ms)

    def _upload_parts(self, at: Mapping[str, str], body: bytes) -> Any:
        upload = self.client.create_multipart_upload(**at)["UploadId"]
        part = self.client.upload_part(**at, UploadId=upload, PartNumber=1, Body=body)
        parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
        return self.client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})
