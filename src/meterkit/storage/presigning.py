"""Presigned uploads: ask the plan's limit, and hold the bytes until the event of the object arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.argument_checks import check_quantity
from meterkit.decisions.periods import HOLD_SLOT_MS, HOUR_MS
from meterkit.errors import MeterkitError
from meterkit.storage.records import bucket_of, upload_field
from meterkit.store import replies
from meterkit.store.hold import Held
from meterkit.store.read_reply import decision_of
from meterkit.store.settlement import Settlement

if TYPE_CHECKING:
    from meterkit.catalog import Storage
    from meterkit.decisions.decision import Decision
    from meterkit.storage.aws import Aws
    from meterkit.store.store import Store

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
    decided, reply = await store.decide(view, lambda view, mode: view.prepare_holding({gauge: size}, mode))
    decision = decision_of(decided, reply)
    if not decision.allowed:
        raise UploadRefusedError(decision)
    held = decided.held.get(gauge, 0)
    if not held or reply[0] not in replies.HELD:
        return
    try:
        if decision.reason is None:  # Shadow mode presigns an upload that does not fit, and holds nothing.
            await _hold_presigned(store, gauge, customer, upload, size)
    finally:
        given_back = Held({gauge: held}, (), reply[1] // HOLD_SLOT_MS)
        await store.acknowledged([Settlement(decided.view, held=given_back)])


async def _hold_presigned(store: Store, gauge: str, customer: str, upload: str, size: int) -> None:
    admin, keys = await store.admin(), store.keys
    names = [keys.customer(customer).levels, keys.presigned(customer, store.now_ms() // HOUR_MS)]
    reply: Any = await admin.run(store.scripts["presign"], names, gauge, upload, size)
    if reply[0] != replies.ALLOWED:
        raise MeterkitError("an object's key is presigned a hundred times an hour at most; nothing is held")
