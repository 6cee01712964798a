"""Calls of boto3, each in a thread: listings of buckets, messages of a queue."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import to_ms
from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

_WAIT_S: Final = 20
_MESSAGES_MOST: Final = 10


class Version(NamedTuple):
    """A version of an object that a bucket has; ``null`` where the bucket has no versions."""

    key: str
    version: str
    size: int


class Page(NamedTuple):
    """A page of a listing, and when the object store answered by its clock (ms; None: it does not say)."""

    versions: Sequence[Version]
    at_ms: int | None


class Aws:
    """S3 and SQS by boto3, which reads region and credentials where it always does.

    Args:
        endpoint: another address of S3, such as MinIO's; None: Amazon's.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._client: Callable[[str], Any] = cache(self._made)

    def require(self) -> Any:
        """Import boto3. Raises MeterkitError where it is not installed."""
        try:
            return import_module("boto3")
        except ImportError as error:
            raise MeterkitError(
                "boto3 is required for listings of buckets and for queues. Install with:"
                " pip install 'meterkit[storage]'"
            ) from error

    def _made(self, service: str) -> Any:
        boto3 = self.require()
        # At another address boto3 has signed by v2, which does not sign lengths.
        config: Any = import_module("botocore.config").Config(
            signature_version="s3v4" if service == "s3" else None,
            retries={"mode": "standard", "total_max_attempts": 5},
        )
        endpoint = self._endpoint if service == "s3" else None
        return boto3.client(service, endpoint_url=endpoint, config=config)

    async def pages(self, bucket: str, prefix: str) -> AsyncGenerator[Page]:
        """All versions of all objects whose key begins so, page by page.

        Raises:
            MeterkitError: boto3 is not installed, or the object store does not answer, or refuses.
        """
        more: dict[str, str] = {}
        while True:
            listing = partial(self._client("s3").list_object_versions, Bucket=bucket, Prefix=prefix, **more)
            reply: dict[str, Any] = await _called(f"the bucket {bucket} cannot be listed", listing)
            said = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
            yield Page(
                [Version(one["Key"], one["VersionId"], one["Size"]) for one in reply.get("Versions", ())],
                None if said is None else to_ms(parsedate_to_datetime(said)),
            )
            if not reply["IsTruncated"]:
                return
            more = {"KeyMarker": reply["NextKeyMarker"]}
            if reply.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = reply["NextVersionIdMarker"]

    async def presigned(self, bucket: str, key: str, size: int, *, lasts_s: int) -> str:
        """The address of an upload of exactly so many bytes by PUT; raises as :meth:`pages` does."""
        call = partial(
            self._client("s3").generate_presigned_url,
            "put_object",
            Params={"Bucket": bucket, "Key": key, "ContentLength": size},
            ExpiresIn=lasts_s,
        )
        found: str = await _called(f"an upload to the bucket {bucket} cannot be presigned", call)
        return found

    async def receive(self, queue_url: str, *, wait_s: int = _WAIT_S) -> Sequence[tuple[str, str]]:
        """Up to ten messages of a queue: body and receipt; raises as :meth:`pages` does."""
        call = partial(
            self._client("sqs").receive_message,
            QueueUrl=queue_url,
            MaxNumberOfMessages=_MESSAGES_MOST,
            WaitTimeSeconds=wait_s,
        )
        reply = await _called("the queue of storage events cannot be read", call)
        return [(one["Body"], one["ReceiptHandle"]) for one in reply.get("Messages", ())]

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> None:
        """Take messages off a queue; raises as :meth:`pages` does."""
        entries = [{"Id": str(nth), "ReceiptHandle": receipt} for nth, receipt in enumerate(receipts)]
        if entries:
            call = partial(self._client("sqs").delete_message_batch, QueueUrl=queue_url, Entries=entries)
            await _called("messages cannot be taken off the queue of storage events", call)


async def _called(what: str, call: Callable[[], Any]) -> Any:
    errors: Any = import_module("botocore.exceptions")
    try:
        return await in_thread(call)
    except (errors.BotoCoreError, errors.ClientError) as error:
        raise MeterkitError(f"{what}: {error}") from error
