"""Notices of customers' events, in a stream for each shard: delivered again until handlers succeed.

Handlers, webhooks and mails of the app are built from them.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError
from meterkit.store.unreadable_data import is_of_the_store

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.store.store import Store

_logger = logging.getLogger("meterkit.notify")
AGAIN_AFTER_MS: Final = 60_000
"""Delay before an unacknowledged notice is delivered again."""
TIMES_MOST: Final = 10
"""Number of deliveries before a notice is given up."""
_PAGE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerNotice:
    """Event of a customer, for handlers.

    Attributes:
        shard: of the customer.
        entry: its id in the stream of the shard.
        times: number of deliveries, including this one.
        group: consumer group: its kind for handlers, otherwise a name before the kind.
        kind: kind that handlers are registered for, for example ``credits.low``.
        customer: the customer's id.
        of: target of a credit, or token of a meter.
        numbers: time of the event, start and end of the period (ms), and numbers of the kind; empty with
            ``data``.
        data: data of a kind without numbers, with an ``id``; see :mod:`meterkit.notify.events`.
    """

    shard: int
    entry: str
    times: int
    group: str
    kind: str
    customer: str
    of: str
    numbers: tuple[int, ...]
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_last(self) -> bool:
        """Whether this is its last delivery."""
        return self.times >= TIMES_MOST


async def read_notices(store: Store, shard: int, kinds: Collection[str]) -> list[CustomerNotice]:
    """Read the next notices of a shard; each is delivered again a minute later until it is acknowledged.

    Notices of another release that cannot be read are left to its processes; none is dropped. Where the key
    of a shard is damaged, its notices wait, and one warning is logged.

    Args:
        store: has the notices.
        shard: the shard.
        kinds: consumer groups: a kind, or a name before a kind as in ``messages credits.low``.

    Returns:
        Some notices; none if there are no more for now.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    try:
        reply = await admin.run(
            store.scripts["lease_notices"], [store.keys.notices(shard)], AGAIN_AFTER_MS, _PAGE, *kinds
        )
    except StoreError as error:
        if is_of_the_store(error):
            raise
        admin.warn_once(f"the notices of shard {shard} cannot be read, and wait: {error}")
        return []
    found: list[CustomerNotice] = []
    for group, entry, times, fields in reply:
        try:
            found.append(_parse_notice(shard, group, entry, times, fields))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if times >= TIMES_MOST:
                _logger.error("notice %s of shard %d is given up: it cannot be read: %r", entry, shard, error)  # noqa: TRY400 - the traceback says nothing more
                await admin.ask(admin.client.xack(store.keys.notices(shard), group, entry))
    return found


async def publish_notice(store: Store, customer: str, kind: str, data: Mapping[str, Any]) -> None:
    """Publish an event of a customer to the app's handlers of its kind.

    Args:
        store: stores it until it is acknowledged.
        customer: the customer's id.
        kind: of the event, for example ``payment.failed``.
        data: the event; its ``id`` is the same at each delivery.

    Raises:
        StoreError: the store does not answer; whether they will be delivered is unknown.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    await admin.run(store.scripts["report_notice"], [keys.notices], customer, kind, json.dumps(dict(data)))
    store.on_notice(keys.shard)


async def acknowledge_notice(store: Store, notice: CustomerNotice) -> None:
    """Acknowledge a notice: it is not delivered again.

    Raises:
        StoreError: the store does not answer.
    """
    await store.ask("xack", store.keys.notices(notice.shard), notice.group, notice.entry)


def _parse_notice(shard: int, group: bytes, entry: bytes, times: int, fields: list[Any]) -> CustomerNotice:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return CustomerNotice(
        shard=shard,
        entry=entry.decode(),
        times=times,
        group=group.decode(),
        kind=named[b"kind"].decode(),
        customer=named[b"customer"].decode(),
        of=named[b"of"].decode(),
        numbers=tuple(map(int, named[b"numbers"].split())),
        data=json.loads(named.get(b"data", b"{}")),
    )
