"""``kit.storage``: bytes that customers store, kept exact by events and listings; presigned uploads."""

from __future__ import annotations

import logging
from asyncio import sleep
from functools import partial
from hmac import compare_digest
from http import HTTPStatus
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol

from meterkit.catalog.meters import check_quantity
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import HOUR_MS
from meterkit.errors import MeterkitError, StoreError
from meterkit.http_bodies import read_body, send_json, send_problem
from meterkit.log_throttle import MINUTE_S, Throttle
from meterkit.redis.daemon_thread import in_thread
from meterkit.storage.aws import Aws
from meterkit.storage.object_events import UnreadableEventError, read_events, unwrap_queue_message
from meterkit.storage.object_owners import apply_events, find_bucket, upload_field
from meterkit.storage.recalculation import recalculate
from meterkit.storage.sns import ForgedMessageError, open_message
from meterkit.store import replies
from meterkit.store.gauge_levels import held_meanwhile
from meterkit.store.input_checks import check_customer
from meterkit.store.task_lease import StorageUpkeep, TaskLease

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

    from starlette.types import Receive, Scope, Send

    from meterkit.catalog import Storage
    from meterkit.decisions.decision import Decision
    from meterkit.storage.recalculation import BucketLister
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.storage")

_CERTIFICATES_MAX: Final = 16
_PEM_END: Final = b"-----END CERTIFICATE-----"
"""Only certificates are cached: another reply may come from a proxy."""
_FETCHES_MOST: Final = 8
"""Concurrent fetches: a sender who knows a topic's name can cause some before its signature is checked."""
_CHECK_EVERY_S: Final = 60.0
BODY_BYTES_MAX: Final = 1 << 20
"""Limit of a request body with the secret."""
SIGNED_BYTES_MAX: Final = 128 << 10
"""Limit of other bodies: anybody can post them, and they are parsed first. S3's messages have a few KiB."""

_AUTHORIZATION: Final = b"authorization"
_SECRET_LEAST: Final = 16


class ObjectStorage:
    """Counts the bytes of stored objects for the gauge that the plans file names under ``storage:``.

    Events may arrive repeatedly, late and in any order. :meth:`recalculate` corrects the effect of lost ones.
    """

    def __init__(self, store: Store, endpoint: str | None) -> None:
        self._store = store
        self._aws = Aws(endpoint)
        self._certificates: dict[str, bytes] = {}
        self._fetching = 0
        self._warned = Throttle(MINUTE_S)
        self._recorded_s: dict[str, float] = {}
        self._upkeep = StorageUpkeep(store)
        key = store.keys.shard(HOOKS_SHARD, "storage:lease")
        self._lease = TaskLease(store, key, lasts_ms=HOUR_MS)

    async def count(self, body: bytes | str) -> None:
        """Count the events of one message: S3 or MinIO records, or an EventBridge event.

        Raises:
            UnreadableEventError: the message is neither.
            StoreError: the store does not answer; count the message again.
            MeterkitError: the plans file has no ``storage:``.
        """
        storage = self._configured()
        events, unread = read_events(body)
        if unread:
            self.warn("an object store sent unreadable records; the hourly listing corrects their effect")
        if self._store.is_off:
            return
        foreign = await apply_events(self._store, storage, events)
        if foreign:
            self.warn(
                "events of some objects are not counted: no pattern of storage.objects matches their keys"
            )

    async def count_signed(self, body: bytes, topics: Collection[str]) -> None:
        """Count the events of a post that SNS has signed, or confirm a subscription; raises as :meth:`count`.

        Raises:
            ForgedMessageError: SNS has not signed it for one of the topics, or more than an hour ago.
        """
        self._configured()
        now_s = self._store.now_ms() / 1000
        try:
            message = await open_message(body, topics=topics, now_s=now_s, fetch=self.fetch)
        except OSError as error:
            raise StoreError(f"SNS does not answer: {error}") from error
        if message is not None:
            await self.count(message)

    async def poll(self, queue_url: str, *, wait_s: int = 20) -> int:
        """Count up to ten messages of an SQS queue and delete the counted ones; returns their number.

        Waits up to ``wait_s`` seconds for the first. The messages may be of S3, SNS or EventBridge.

        Raises:
            StoreError: the store does not answer; no message was counted, and SQS delivers them again.
            MeterkitError: the queue cannot be read, boto3 is missing, or the plans file has no ``storage:``.
        """
        self._configured()
        counted: list[str] = []
        failed: StoreError | None = None
        messages = await self._aws.receive(queue_url, wait_s=wait_s)
        await self._record_read(queue_url)
        try:
            for body, receipt in messages:
                try:
                    await self.count(unwrap_queue_message(body))
                except UnreadableEventError as error:
                    self.warn(f"an unreadable message stays in the queue of storage events: {error}")
                except StoreError as error:
                    failed = error  # The error may concern one customer; count the other messages.
                else:
                    counted.append(receipt)
        finally:
            await self._aws.delete(queue_url, counted)
        if failed is not None and not counted:
            raise failed
        if failed is not None:
            self.warn(f"some messages of the queue were not counted; SQS delivers them again: {failed}")
        return len(counted)

    async def recalculate(
        self, customer: str | None = None, *, dry_run: bool = False, lister: BucketLister | None = None
    ) -> Mapping[str, int]:
        """List the buckets and correct the stored bytes; returns the drift in bytes by customer.

        Customers without drift are left out. The drift is positive if the bucket has more.

        Args:
            customer: one customer; None: all.
            dry_run: return the drift and change nothing.
            lister: lists the buckets; None: boto3.

        Raises:
            CustomerError: the id is not allowed.
            StoreError: the store does not answer, or a record of a customer is damaged; all other
                customers are recalculated.
            MeterkitError: a bucket cannot be listed, boto3 is missing, or the plans file has no ``storage:``.
        """
        storage, store = self._configured(), self._store
        if customer is not None:
            customer = check_customer(customer)
        if store.is_off:
            return {}
        requests: Mapping[str, int] = {} if dry_run else await self.unclear()
        corrected, failed = await recalculate(store, storage, lister or self._aws, customer, dry_run=dry_run)
        for name, at_ms in requests.items():
            if customer in {None, name} and name not in failed:
                await self._end_request(name, at_ms)
        if customer is None and not dry_run:
            await self._upkeep.record_listing(corrected)
            if corrected:
                total = sum(map(abs, corrected.values()))
                _logger.warning("a listing corrected %d bytes of %d customers", total, len(corrected))
        for name, error in failed.items():
            raise StoreError(
                f"{len(failed)} customers could not be recalculated, the first is {name!r}: {error}"
            ) from error
        return corrected

    async def recalculate_due(self) -> bool:
        """Recalculate all customers unless a process did within the hour; return whether this one did.

        Raises:
            StoreError, MeterkitError: as :meth:`recalculate`.
        """
        async with self._lease.held() as is_held:
            listed_ms = (await self._upkeep.read_state()).listed_ms if is_held else None
            is_due = is_held and (listed_ms is None or self._store.now_ms() - listed_ms >= HOUR_MS)
            if is_due:
                await self.recalculate()
        return is_due

    def worker_tasks(
        self, queue_url: str | None = None
    ) -> Mapping[str, Callable[[], Coroutine[object, object, None]]]:
        """Background tasks of a worker by name: the hourly recalculation, and a queue if one is given.

        Raises:
            MeterkitError: a queue is given, and boto3 is missing or the plans file has no ``storage:``.
        """
        tasks: dict[str, Callable[[], Coroutine[object, object, None]]] = {}
        if queue_url is not None:
            self._configured()
            self._aws.require()
            tasks["storage queue"] = partial(self._poll_forever, queue_url)
        if self._store.catalog.storage is not None and not self._store.is_off:
            tasks["storage"] = self._recalculate_hourly
        return tasks

    async def _poll_forever(self, queue_url: str) -> None:
        while True:
            await self.poll(queue_url)

    async def _recalculate_hourly(self) -> None:
        while True:
            await self.recalculate_due()
            await sleep(_CHECK_EVERY_S)

    async def _record_read(self, queue_url: str) -> None:
        """Record in the store that a queue was read, at most once a minute."""
        now_s = monotonic()
        if (
            now_s - self._recorded_s.get(queue_url, -_CHECK_EVERY_S) >= _CHECK_EVERY_S
            and not self._store.is_off
        ):
            await self._upkeep.record_queue_read(queue_url)
            self._recorded_s[queue_url] = now_s

    async def presign(self, customer: str, key: str, size: int) -> str:
        """Presign a PUT of exactly ``size`` bytes, valid for 45 minutes, and hold the bytes; returns the URL.

        The hold ends with the event of the object, or after at most an hour.

        Raises:
            UploadRefusedError: the plan does not allow that many more bytes.
            CustomerError, QuantityError: an argument cannot be used.
            StoreError: the store does not answer.
            MeterkitError: the key is not the customer's, it cannot be presigned, boto3 is missing, or the
                plans file has no ``storage:``.
        """
        return await presign(self._store, self._configured(), self._aws, check_customer(customer), key, size)

    async def unclear(self) -> Mapping[str, int]:
        """Return customers whose bytes need a listing, with the time of the last doubt (ms).

        Raises:
            StoreError: the store does not answer.
        """
        admin, found = await self._store.admin(), dict[str, int]()
        for shard in range(self._store.keys.shards):
            page = await admin.ask(
                admin.client.zrange(self._store.keys.relist(shard), 0, -1, withscores=True)
            )
            found |= {name.decode(): int(at_ms) for name, at_ms in page}
        return found

    def warn(self, message: str) -> None:
        """Log a warning, at most once a minute."""
        if self._warned.is_due(message):
            _logger.warning("%s", message)

    async def fetch(self, url: str) -> bytes:
        """Fetch a URL of SNS; certificates are cached. Raises OSError."""
        known = self._certificates.get(url)
        if known is not None:
            return known
        if self._fetching >= _FETCHES_MOST:
            raise OSError(f"{_FETCHES_MOST} fetches are already running")
        fetching: Any = import_module("meterkit.storage.sns_signatures")  # Only messages of SNS need it.
        self._fetching += 1
        try:
            found: bytes = await in_thread(fetching.fetch, url)
        finally:
            self._fetching -= 1
        if _PEM_END in found:
            if len(self._certificates) >= _CERTIFICATES_MAX:
                self._certificates.clear()
            self._certificates[url] = found
        return found

    def _configured(self) -> Storage:
        storage = self._store.catalog.storage
        if storage is None:
            raise MeterkitError(
                f"{self._store.catalog.source} has no `storage:`; add it with the gauge, and the"
                " bucket and key of"
                " the counted objects"
            )
        return storage

    async def _end_request(self, customer: str, at_ms: int) -> None:
        """Remove the request for a listing of a customer, unless there was another one since."""
        admin, keys = await self._store.admin(), self._store.keys
        key = keys.relist(keys.customer(customer).shard)
        if await admin.ask(admin.client.zscore(key, customer)) == at_ms:
            await admin.ask(admin.client.zrem(key, customer))


_LASTS_S: Final = 2700
"""A URL expires ten minutes before its hold: the last upload and its event need time."""


class UploadRefusedError(MeterkitError):
    """The customer's plan does not allow an upload.

    Attributes:
        decision: the reason, and in ``decision.gauge`` the limit, the used and the requested bytes.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        gauge = decision.gauge
        figures = (
            "" if gauge is None else f": {gauge.requested} requested, {gauge.used} of {gauge.limit} used"
        )
        super().__init__(f"the upload is refused ({decision.reason}){figures}")


async def presign(store: Store, storage: Storage, aws: Aws, customer: str, key: str, size: int) -> str:
    """Presign an upload and hold its bytes; see :meth:`ObjectStorage.presign`."""
    check_quantity(size)
    bucket = find_bucket(storage, customer, key)
    if bucket is None:
        raise MeterkitError(
            f"key: found {key!r:.200}; allowed is a key of customer {customer!r} that storage.objects of"
            f" {store.catalog.source} matches"
        )
    address = await aws.presign(bucket, key, size, lasts_s=_LASTS_S)
    if not store.is_off:
        await _hold_upload(store, storage.gauge, customer, upload_field(bucket, key), size)
    return address


async def _hold_upload(store: Store, gauge: str, customer: str, upload: str, size: int) -> None:
    """Decide with a hold of minutes, then replace it by a hold of an hour.

    For an instant both holds exist: a decision then may refuse too early, but never allows too much.
    """
    async with held_meanwhile(store, customer, lambda _: {gauge: size}) as (decision, is_held):
        if not decision.allowed:
            raise UploadRefusedError(decision)
        # Shadow mode presigns an upload above the limit, and holds nothing.
        if is_held and decision.reason is None:
            await _hold_presigned(store, gauge, customer, upload, size)


async def _hold_presigned(store: Store, gauge: str, customer: str, upload: str, size: int) -> None:
    admin, keys = await store.admin(), store.keys
    names = [keys.customer(customer).levels, keys.presigned(customer, store.now_ms() // HOUR_MS)]
    reply: Any = await admin.run(store.scripts["hold_upload"], names, gauge, upload, size)
    if reply[0] != replies.ALLOWED:
        raise MeterkitError(
            "this key has been presigned a hundred times within the hour; try again in the next hour"
        )


class StoringKit(Protocol):
    """The part of a kit that the endpoint uses."""

    @property
    def storage(self) -> ObjectStorage:
        """Counter of the events."""
        ...


class StorageEndpoint:
    """Answers 200 once the events of a post have counted.

    Answers 400 for an unsigned or unreadable post, 413 for more than 1 MiB, or 128 KiB without the secret,
    and 503 if the store fails or the plans file has no ``storage:``: MinIO, SNS and EventBridge send it
    again.

    Args:
        kit: its plans file has ``storage:``.
        secret: the token that MinIO and EventBridge send after ``Bearer`` in ``Authorization``.
        topics: ARNs of trusted SNS topics.

    Raises:
        MeterkitError: the secret is too short, or topics are named and ``cryptography`` is missing.
    """

    def __init__(self, kit: StoringKit, secret: str, topics: Iterable[str] = ()) -> None:
        if len(secret) < _SECRET_LEAST:
            raise MeterkitError(
                f"secret: allowed is a text of at least {_SECRET_LEAST} characters, the same as in MinIO's"
                " MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN; without it, any client could change the stored bytes"
            )
        self._storage = kit.storage
        self._expected = f"Bearer {secret}".encode()
        self._topics = frozenset(topics)
        if self._topics:
            try:
                import_module("meterkit.storage.sns_signatures")
            except ImportError as error:
                raise MeterkitError(str(error)) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the storage endpoint accepts HTTP requests; found {scope['type']}")
        if scope["method"] == "HEAD":  # MinIO's health check.
            await send_json(send, HTTPStatus.OK, None)
            return
        if scope["method"] != "POST":
            await send_problem(
                send, HTTPStatus.METHOD_NOT_ALLOWED, "object stores post their events", allow=b"POST"
            )
            return
        is_bearer = self._is_bearer(scope)
        most = BODY_BYTES_MAX if is_bearer else SIGNED_BYTES_MAX
        body = await read_body(scope, receive, most=most)
        if body is None:
            await send_problem(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {most} bytes")
            return
        try:
            if is_bearer:
                await self._storage.count(body)
            else:
                await self._storage.count_signed(body, self._topics)
        except MeterkitError as error:  # A store error, or the plans file lost `storage:`.
            self._storage.warn(f"events of an object store were not counted; it sends them again: {error}")
            await send_problem(
                send, HTTPStatus.SERVICE_UNAVAILABLE, "the events cannot be counted now; send them again"
            )
        except (ForgedMessageError, UnreadableEventError) as error:
            self._storage.warn(f"the storage endpoint refuses a post: {error}")
            await send_problem(send, HTTPStatus.BAD_REQUEST, str(error))
        else:
            await send_json(send, HTTPStatus.OK, {"received": True})

    def _is_bearer(self, scope: Scope) -> bool:
        found = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
        return len(found) == 1 and compare_digest(found[0], self._expected)
