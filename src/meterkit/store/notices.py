"""What has happened to customers, as the store keeps it for the handlers of the app."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.store.store import Store

__all__ = ["Notice", "acknowledge", "next_notices", "tell"]

_logger = logging.getLogger("meterkit.notify")

AGAIN_AFTER_MS: Final = 60_000
"""After how long a notice that nobody has acknowledged is given again."""

TIMES_MOST: Final = 10
"""How often a notice is given; then it is given up."""

_PAGE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that has happened to a customer.

    Attributes:
        shard: of the customer.
        entry: its name in the stream of the shard.
        times: how often it has been given, this time included.
        group: who reads it: its kind for handlers, else a name before the kind.
        kind: what handlers are registered for, for example ``credits.low``.
        customer: the customer's id.
        of: the target of a credit, or the token of a meter.
        numbers: when it happened, the first instant of the period, the first one after it (ms), and what
            belongs to the kind; none where it has ``data``.
        data: what belongs to a kind that has no numbers, its ``id`` among it; see
            :mod:`meterkit.notify.events`.
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
        """Whether it is given up unless it is taken now."""
        return self.times >= TIMES_MOST


async def next_notices(store: Store, shard: int, kinds: Collection[str]) -> list[Notice]:
    """Take what is to be told next in a shard; each is given again a minute later until it is acknowledged.

    What cannot be read, as another release wrote it, is left to others; nobody's is given up.

    Args:
        store: where they are.
        shard: which of its shards.
        kinds: of notices; a word before a kind, as in ``messages credits.low``, names readers of their own.

    Returns:
        Some of them; none where there are no more for now.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    reply = await admin.run(
        store.scripts["notices"], [store.keys.notices(shard)], AGAIN_AFTER_MS, _PAGE, *kinds
    )
    found: list[Notice] = []
    for group, entry, times, fields in reply:
        try:
            found.append(_notice(shard, group, entry, times, fields))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if times >= TIMES_MOST:
                _logger.error("notice %s of shard %d is given up: it cannot be read: %r", entry, shard, error)  # noqa: TRY400 - where it was tells nothing
                await admin.ask(admin.client.xack(store.keys.notices(shard), group, entry))
    return found


async def tell(store: Store, customer: str, kind: str, data: Mapping[str, Any]) -> None:
    """Have the app's handlers of a kind told of something that has happened to a customer.

    Args:
        store: where it is kept until they were.
        customer: the customer's id.
        kind: of the event, for example ``payment.failed``.
        data: what the event says; its ``id`` is the same whenever this is told.

    Raises:
        StoreError: the store does not answer; whether they will be told is not known.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    await admin.run(store.scripts["tell"], [keys.notices], customer, kind, json.dumps(dict(data)))
    store.on_notice(keys.shard)


async def acknowledge(store: Store, notice: Notice) -> None:
    """Have a notice not given again.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    await admin.ask(admin.client.xack(store.keys.notices(notice.shard), notice.group, notice.entry))


def _notice(shard: int, group: bytes, entry: bytes, times: int, fields: list[Any]) -> Notice:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return Notice(
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
