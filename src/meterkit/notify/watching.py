"""What watches share: a lease, a loop, and idempotent events that survive the kill of a process."""

from __future__ import annotations

import asyncio
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.keys import HOOKS_SHARD
from meterkit.store.notices import tell
from meterkit.store.task_lease import TaskLease

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.store.store import Store

__all__ = ["UNREADABLE", "Lookout", "digest_of", "note_unreadable", "tell_once"]

UNREADABLE: Final = (ValueError, TypeError, AttributeError, LookupError)
"""What reading a damaged value raises, or one of another release."""

_EVERY_S: Final = 300.0
_LEASE_MS: Final = 600_000
_KEPT_MS: Final = 2 * 86_400_000
_TOLD: Final = b"told "


class Lookout:
    """One process looks every five minutes, where its event is wanted.

    Args:
        store: where the lease is.
        event: what is looked for.
        is_wanted: whether a channel or a handler wants the event.
    """

    def __init__(self, store: Store, event: str, is_wanted: Callable[[str], bool]) -> None:
        self._event = event
        self._is_wanted = is_wanted
        self.lease = TaskLease(store, store.keys.shard(HOOKS_SHARD, f"{event}:lease"), lasts_ms=_LEASE_MS)

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look until cancelled; raises what looking does.

        Raises:
            StoreError: the store does not answer.
        """
        while True:
            await self.turn(look)
            await asyncio.sleep(_EVERY_S)

    async def turn(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look unless the event is unwanted or another process looks; raises as :meth:`run` does."""
        if self._is_wanted(self._event) and await self.lease.take():
            await look()


async def note_unreadable(store: Store, customer: str, event: str, error: Exception) -> None:
    """Log once that a customer is passed over: one damaged value must not keep events from all others."""
    (await store.admin()).say_once(
        f"no {event} for customer {customer!r}: what is kept cannot be read: {error!r}"
    )


def digest_of(*parts: str | int) -> str:
    """The id of an event that is made of its cause."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


async def tell_once(
    store: Store,
    customer: str,
    event: str,
    digest: str,
    make: Callable[[], Awaitable[Mapping[str, Any] | None]],
) -> None:
    """Tell of an event, unless this was called for it in the last two days.

    Args:
        store: where events are kept.
        customer: the customer's id.
        event: for example ``usage.spike``.
        digest: the idempotency key.
        make: the event's attributes; None: there is nothing to tell.

    Raises:
        StoreError: the store does not answer; handlers may or may not get the event.
    """
    key, admin, now_ms = store.keys.watched(customer, digest), await store.admin(), store.now_ms()
    known: bytes = await admin.ask(admin.client.get(key)) or b""
    is_told = known.startswith(_TOLD)
    if is_told and now_ms - int(known.removeprefix(_TOLD)) > _KEPT_MS:
        known, is_told = b"", False
    if not known:
        made = await make()
        if made is None:
            return
        known = json.dumps(dict(made)).encode()
        # Kept before the event is entered: a repeat after a kill is the same event.
        await admin.ask(admin.client.set(key, known, px=_KEPT_MS))
    if not is_told:
        await tell(store, customer, event, json.loads(known))
    await admin.ask(admin.client.set(key, b"%b%d" % (_TOLD, now_ms), px=_KEPT_MS))
