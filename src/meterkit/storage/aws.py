"""S3 and SQS by boto3, each call in a thread: bucket listings, presigned uploads, queue messages."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from functools import cache
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import to_ms
from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

_WAIT_S: Final = 20
_MESSAGES_MOST: Final = 10


class Version(NamedTuple):
    """A version of an object in a bucket; ``null`` in unversioned buckets."""

    key: str
    version: str
    size: int


class ListingPage(NamedTuple):
    """A page of a listing, and the object store's time of it (ms; None if it sends none)."""

    versions: Sequence[Version]
    at_ms: int | None


class Aws:
    """Client of S3 and SQS; boto3 finds region and credentials as usual.

    Args:
        endpoint: URL of another S3, such as MinIO; None: Amazon's.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._client: Callable[[str], Any] = cache(self._make_client)
        self._making = Lock()  # Two threads must not make clients of one session.

    def require(self) -> Any:
        """Import boto3. Raises MeterkitError if it is not installed."""
        try:
            return import_module("boto3")
        except ImportError as error:
            raise MeterkitError(
                "boto3 is required for bucket listings and queues. Install with:"
                " pip install 'meterkit[storage]'"
            ) from error

    def _make_client(self, service: str) -> Any:
        boto3 = self.require()
        # For other endpoints boto3 defaults to v2 signatures, which do not sign lengths.
        config: Any = import_module("botocore.config").Config(
            signature_version="s3v4" if service == "s3" else None,
            retries={"mode": "standard", "total_max_attempts": 5},
        )
        endpoint = self._endpoint if service == "s3" else None
        with self._making:
            return boto3.client(service, endpoint_url=endpoint, config=config)

    async def _call_in_thread(self, what: str, service: str, method: str, **arguments: Any) -> Any:
        """Call a method in a thread; so is its client made, which reads files and may find no region."""
        self.require()
        errors: Any = import_module("botocore.exceptions")
        try:
            return await in_thread(lambda: getattr(self._client(service), method)(**arguments))
        except (errors.BotoCoreError, errors.ClientError) as error:
            raise MeterkitError(f"{what}: {error}") from error

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[ListingPage]:
        """Yield all versions of objects with a key prefix, page by page.

        Raises:
            MeterkitError: boto3 is not installed, or the object store does not answer, or refuses.
        """
        more: dict[str, str] = {}
        while True:
            what = f"the bucket {bucket} cannot be listed"
            reply: dict[str, Any] = await self._call_in_thread(
                what, "s3", "list_object_versions", Bucket=bucket, Prefix=prefix, **more
            )
            date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
            yield ListingPage(
                [Version(one["Key"], one["VersionId"], one["Size"]) for one in reply.get("Versions", ())],
                None if date is None else to_ms(parsedate_to_datetime(date)),
            )
            if not reply["IsTruncated"]:
                return
            more = {"KeyMarker": reply["NextKeyMarker"]}
            if reply.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = reply["NextVersionIdMarker"]

    async def presign(self, bucket: str, key: str, size: int, *, lasts_s: int) -> str:
        """Presign a PUT of exactly ``size`` bytes; raises as :meth:`pages` does."""
        found: str = await self._call_in_thread(
            f"an upload to the bucket {bucket} cannot be presigned",
            "s3",
            "generate_presigned_url",
            ClientMethod="put_object",
            Params={"Bucket": bucket, "Key": key, "ContentLength": size},
            ExpiresIn=lasts_s,
        )
        return found

    async def receive(self, queue_url: str, *, wait_s: int = _WAIT_S) -> Sequence[tuple[str, str]]:
        """Receive up to ten messages of a queue: body and receipt; raises as :meth:`pages` does."""
        reply = await self._call_in_thread(
            "the queue of storage events cannot be read",
            "sqs",
            "receive_message",
            QueueUrl=queue_url,
            MaxNumberOfMessages=_MESSAGES_MOST,
            WaitTimeSeconds=wait_s,
        )
        return [(one["Body"], one["ReceiptHandle"]) for one in reply.get("Messages", ())]

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> None:
        """Delete messages from a queue; raises as :meth:`pages` does."""
        entries = [{"Id": str(nth), "ReceiptHandle": receipt} for nth, receipt in enumerate(receipts)]
        if entries:
            what = "messages cannot be deleted from the queue of storage events"
            await self._call_in_thread(
                what, "sqs", "delete_message_batch", QueueUrl=queue_url, Entries=entries
            )
