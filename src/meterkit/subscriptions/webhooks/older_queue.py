"""The sync queue of older releases, which have all entries in one shard: a second lock, and its backlog.

Processes of two releases run side by side while they are replaced one by one. For a day after the first
process of this release, a worker locks a Stripe customer under the keys of both. Later it does so while
anything is left under the older keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.subscriptions.webhooks.hint_scripts import LEASE_MS, older_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.store.store import Store
    from meterkit.subscriptions.webhooks.hint_scripts import Entry, HintScripts, Place

SIDE_BY_SIDE_MS: Final = 86_400_000
"""For how long processes of an older release may run beside those of this one."""
_SINCE: Final = "hints"  # A field of the store's metadata.
_PAGE: Final = 100
_ANNOUNCED_MS: Final = 60_000


class OlderQueue:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer.

    Args:
        store: where the queue is.
        scripts: work on its entries.
    """

    def __init__(self, store: Store, scripts: HintScripts) -> None:
        self._store = store
        self._scripts = scripts
        self._since_ms: int | None = None
        self._is_closed = False

    @property
    def place(self) -> Place:
        """Where its entries are."""
        return older_place(self._store.keys)

    async def is_open(self) -> bool:
        """Whether a process of an older release may use it, or it has entries; once not, never again."""
        if self._is_closed:
            return False
        admin, now_ms = await self._store.admin(), self._store.now_ms()
        if self._since_ms is None:
            pipe, meta = admin.client.pipeline(transaction=False), self._store.keys.meta
            pipe.hsetnx(meta, _SINCE, now_ms)
            pipe.hget(meta, _SINCE)
            self._since_ms = int((await admin.ask(pipe.execute()))[1])
        if now_ms < self._since_ms + SIDE_BY_SIDE_MS:
            return True
        pipe = admin.client.pipeline(transaction=False)
        pipe.zcount(self.place.key("due"), "-inf", "+inf")
        pipe.hlen(self.place.key("dead"))
        self._is_closed = not any(await admin.ask(pipe.execute()))
        return not self._is_closed

    async def announce(self) -> list[tuple[str, str]]:
        """Find Stripe customers whose entries are due here, each with its cause; they are not taken.

        Each is found again a minute later, unless a worker takes it before.
        """
        admin, now_ms = await self._store.admin(), self._store.now_ms()
        due = self.place.key("due")
        names: list[bytes] = await admin.ask(
            admin.client.zrangebyscore(due, "-inf", now_ms, start=0, num=_PAGE)
        )
        if not names:
            return []
        kept: list[bytes | None] = await admin.ask(admin.client.hmget(self.place.key("entries"), names))
        entries = {name: json.loads(data) for name, data in zip(names, kept, strict=True) if data}
        # Not those with a token: their time is the end of the lease of a worker that is gone. A worker that
        # took one meanwhile has it for longer, or is done with it.
        later = {name: now_ms + _ANNOUNCED_MS for name, entry in entries.items() if not entry["token"]}
        if later:
            await admin.ask(admin.client.zadd(due, later, xx=True, gt=True))
        return [(name.decode(), entry["cause"]) for name, entry in entries.items()]

    async def lock(self, stripe_customer: str, cause: str) -> Entry | None:
        """Take the entry of a Stripe customer, made where there is none; None: another worker has it."""
        # Not due until it is taken: a worker that looks meanwhile would announce it.
        await self._scripts.hint(self.place, stripe_customer, cause, delay_ms=LEASE_MS)
        found = await self._scripts.take(self.place, stripe_customer=stripe_customer)
        return found[0] if found else None

    async def seen(self, events: Sequence[str]) -> set[str]:
        """Those of some events that a process of an older release has queued, within 35 days."""
        if not events or not await self.is_open():
            return set()
        admin = await self._store.admin()
        pipe = admin.client.pipeline(transaction=False)
        for event in events:
            pipe.exists(self.place.key(f"event:{event}"))
        found: list[int] = await admin.ask(pipe.execute())
        return {event for event, is_seen in zip(events, found, strict=True) if is_seen}
