"""``kit.storage``: what customers store, kept exact by events of object stores and by listings."""

from __future__ import annotations

import logging
from asyncio import sleep
from functools import partial
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.argument_checks import check_quantity
from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.decisions.periods import HOLD_SLOT_MS, HOUR_MS
from meterkit.errors import MeterkitError, StoreError
from meterkit.redis.daemon_thread import in_thread
from meterkit.storage.aws import Aws
from meterkit.storage.object_events import UnreadableError, bucket_of, carried, read_events, upload_field
from meterkit.storage.object_records import count_events
from meterkit.storage.recalculation import recalculate
from meterkit.storage.sns import open_notice
from meterkit.store import replies
from meterkit.store.input_checks import check_customer
from meterkit.store.prepared_decisions import prepare_holding, read_decision
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities
from meterkit.store.task_lease import StorageUpkeep, TaskLease
from meterkit.throttle import MINUTE_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    from meterkit.catalog import Storage
    from meterkit.decisions.decision import Decision
    from meterkit.storage.recalculation import Lister
    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.storage")

_CERTIFICATES_MAX: Final = 16
_PEM_END: Final = b"-----END CERTIFICATE-----"
"""What else came from that address is not remembered: it might be the page of a proxy."""
_FETCHES_MOST: Final = 8
"""At once: who knows the name of a topic can have certificates fetched before a signature is checked."""
_LOOK_EVERY_S: Final = 60.0


class ObjectStorage:
    """Counts the bytes of stored objects for the gauge that the plans file names under ``storage:``.

    Events may come repeated, late and in any order. Those that are lost, :meth:`recalculate` makes up for.
    """

    def __init__(self, store: Store, endpoint: str | None) -> None:
        self._store = store
        self._aws = Aws(endpoint)
        self._certificates: dict[str, bytes] = {}
        self._fetching = 0
        self._warned = Throttle(MINUTE_S)
        self._noted: dict[str, float] = {}
        self._upkeep = StorageUpkeep(store)
        key = store.keys.shard(HOOKS_SHARD, "storage:lease")
        self._lease = TaskLease(store, key, lasts_ms=HOUR_MS)

    async def count(self, body: bytes | str) -> None:
        """Count the events of one message: records of S3 or MinIO, or an event of EventBridge.

        Raises:
            UnreadableError: it is neither.
            StoreError: the store does not answer; count the message again.
            MeterkitError: the plans file has no ``storage:``.
        """
        storage = self._configured()
        events, unread = read_events(body)
        if unread:
            self.warn(
                "an object store has sent records that cannot be read: an hourly listing makes up for them"
            )
        if self._store.is_off:
            return
        foreign = await count_events(self._store, storage, events)
        if foreign:
            self.warn("events of objects are not counted: no key of storage.objects matches them")

    async def count_signed(self, body: bytes, topics: Collection[str]) -> None:
        """Count the events of a post that SNS has signed, or confirm a subscription; raises as :meth:`count`.

        Raises:
            ForgedError: SNS has not signed it for one of the topics, or more than an hour ago.
        """
        self._configured()
        now_s = self._store.now_ms() / 1000
        try:
            message = await open_notice(body, topics=topics, now_s=now_s, fetch=self.fetch)
        except OSError as error:
            raise StoreError(f"SNS cannot be asked: {error}") from error
        if message is not None:
            await self.count(message)

    async def poll(self, queue_url: str, *, wait_s: int = 20) -> int:
        """Count up to ten messages of a queue of SQS, and take off the queue those that counted; how many.

        Waits up to ``wait_s`` seconds for the first. The messages are of S3, SNS or EventBridge.

        Raises:
            StoreError: no message has counted, because the store does not answer; they come again.
            MeterkitError: the queue cannot be read, boto3 is missing, or the plans file has no ``storage:``.
        """
        self._configured()
        counted: list[str] = []
        failed: StoreError | None = None
        messages = await self._aws.receive(queue_url, wait_s=wait_s)
        await self._note_read(queue_url)
        try:
            for body, receipt in messages:
                try:
                    await self.count(carried(body))
                except UnreadableError as error:
                    self.warn(f"a message of the queue of storage events stays there: {error}")
                except StoreError as error:
                    failed = error  # It may be about one customer: the others' messages go on.
                else:
                    counted.append(receipt)
        finally:
            await self._aws.delete(queue_url, counted)
        if failed is not None and not counted:
            raise failed
        if failed is not None:
            self.warn(f"events of the queue do not count now; they come again: {failed}")
        return len(counted)

    async def recalculate(
        self, customer: str | None = None, *, dry_run: bool = False, lister: Lister | None = None
    ) -> Mapping[str, int]:
        """List the buckets and correct what is known of their objects; drift in bytes by customer.

        Customers whose bytes were right are left out. The drift is above 0 where the listing has more.

        Args:
            customer: only this one's; None: everybody's.
            dry_run: only look.
            lister: lists buckets; None: boto3 does.

        Raises:
            CustomerError: the id is not allowed.
            StoreError: the store does not answer, or what it keeps of a customer's objects is damaged; all
                other customers are recalculated then.
            MeterkitError: a bucket cannot be listed, boto3 is missing, or the plans file has no ``storage:``.
        """
        storage, store = self._configured(), self._store
        if customer is not None:
            check_customer(customer)
        if store.is_off:
            return {}
        if not dry_run:
            await self._begin(customer)
        corrected, failed = await recalculate(store, storage, lister or self._aws, customer, dry_run=dry_run)
        if customer is None and not dry_run:
            await self._upkeep.listed(corrected)
            if corrected:
                total = sum(map(abs, corrected.values()))
                _logger.warning("a listing has corrected %d bytes of %d customers", total, len(corrected))
        for name, error in failed.items():
            raise StoreError(
                f"the objects of {len(failed)} customers are not recalculated, {name!r} first: {error}"
            ) from error
        return corrected

    async def recalculate_due(self) -> bool:
        """Recalculate all customers unless a process has within the hour, or does; whether this one has.

        Raises:
            StoreError, MeterkitError: as :meth:`recalculate`.
        """
        async with self._lease.held() as is_held:
            listed_ms = (await self._upkeep.seen()).listed_ms if is_held else None
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
            tasks["storage queue"] = partial(self._follow, queue_url)
        if self._store.catalog.storage is not None and not self._store.is_off:
            tasks["storage"] = self._recalculate_hourly
        return tasks

    async def _follow(self, queue_url: str) -> None:
        while True:
            await self.poll(queue_url)

    async def _recalculate_hourly(self) -> None:
        while True:
            await self.recalculate_due()
            await sleep(_LOOK_EVERY_S)

    async def _note_read(self, queue_url: str) -> None:
        """Tell all processes that a queue was read, once a minute at most."""
        now_s = monotonic()
        if now_s - self._noted.get(queue_url, -_LOOK_EVERY_S) >= _LOOK_EVERY_S and not self._store.is_off:
            await self._upkeep.read(queue_url)
            self._noted[queue_url] = now_s

    async def presign(self, customer: str, key: str, size: int) -> str:
        """The address of an upload of exactly ``size`` bytes by PUT, for 45 minutes; its bytes are held.

        The hold ends with the event of the object, or after an hour at most.

        Raises:
            UploadRefusedError: the plan does not allow so many bytes more.
            CustomerError, QuantityError: an argument cannot be used.
            StoreError: the store cannot decide.
            MeterkitError: the key is not the customer's, it cannot be presigned, boto3 is missing, or the
                plans file has no ``storage:``.
        """
        return await presign(self._store, self._configured(), self._aws, check_customer(customer), key, size)

    async def unclear(self) -> Mapping[str, int]:
        """Customers whose bytes only a listing can tell, and since when (ms).

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
        """What an address of SNS has; certificates are remembered. Raises OSError."""
        known = self._certificates.get(url)
        if known is not None:
            return known
        if self._fetching >= _FETCHES_MOST:
            raise OSError(f"it is asked {_FETCHES_MOST} times at the moment")
        fetching: Any = import_module("meterkit.storage.sns_certificates")  # Only messages of SNS need it.
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
                f"{self._store.catalog.source} has no `storage:`: add it, with the gauge, and with the bucket"
                " and the key of the objects that count"
            )
        return storage

    async def _begin(self, customer: str | None) -> None:
        """Forget the requests for a listing that this one answers; later ones stay."""
        admin, keys = await self._store.admin(), self._store.keys
        if customer is not None:
            await admin.ask(admin.client.zrem(keys.relist(keys.customer(customer).shard), customer))
            return
        for shard in range(keys.shards):
            await admin.ask(admin.client.delete(keys.relist(shard)))


_LASTS_S: Final = 2700
"""An address ends ten minutes before its hold: the last upload and its event need time."""


class UploadRefusedError(MeterkitError):
    """An upload is not presigned: the customer's plan does not allow it.

    Attributes:
        decision: why, and in ``decision.gauge`` the limit, the used bytes and the requested bytes.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        gauge = decision.gauge
        figures = "" if gauge is None else f": {gauge.requested} more, {gauge.used} of {gauge.limit} are used"
        super().__init__(f"the upload is refused ({decision.reason}){figures}")


async def presign(store: Store, storage: Storage, aws: Aws, customer: str, key: str, size: int) -> str:
    """Hold the bytes of an upload and give its address; see :meth:`ObjectStorage.presign`."""
    check_quantity(size)
    bucket = bucket_of(storage, customer, key)
    if bucket is None:
        raise MeterkitError(
            f"key: found {key!r:.200}; allowed is a key of customer {customer!r} that storage.objects of"
            f" {store.catalog.source} matches"
        )
    address = await aws.presigned(bucket, key, size, lasts_s=_LASTS_S)
    if not store.is_off:
        await _hold(store, storage.gauge, customer, upload_field(bucket, key), size)
    return address


async def _hold(store: Store, gauge: str, customer: str, upload: str, size: int) -> None:
    """Ask the limit, which holds for minutes, and hold for the hour instead.

    For an instant both hold: what is decided then may be refused too early, and is never allowed too much.
    """
    view = store.cache.get(customer)
    decided, reply = await store.decide(view, lambda view, mode: prepare_holding(view, {gauge: size}, mode))
    decision = read_decision(decided, reply)
    if not decision.allowed:
        raise UploadRefusedError(decision)
    held = decided.held.get(gauge, 0)
    if not held or reply[0] not in replies.HELD:
        return
    try:
        if decision.reason is None:  # Shadow mode presigns an upload that does not fit, and holds nothing.
            await _hold_presigned(store, gauge, customer, upload, size)
    finally:
        given_back = HeldQuantities({gauge: held}, (), reply[1] // HOLD_SLOT_MS)
        await store.acknowledged([Settlement(decided.view, held=given_back)])


async def _hold_presigned(store: Store, gauge: str, customer: str, upload: str, size: int) -> None:
    admin, keys = await store.admin(), store.keys
    names = [keys.customer(customer).levels, keys.presigned(customer, store.now_ms() // HOUR_MS)]
    reply: Any = await admin.run(store.scripts["hold_upload"], names, gauge, upload, size)
    if reply[0] != replies.ALLOWED:
        raise MeterkitError("an object's key is presigned a hundred times an hour at most; nothing is held")
