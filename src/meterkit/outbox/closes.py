"""Closing of billing periods: which are due, and when each is tried next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import bounds_of
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import ENDED
from meterkit.decisions.subscription_periods import renewals_of
from meterkit.errors import StoreError
from meterkit.outbox.intents import count_members

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView


CLOSE_AFTER_MS: Final = 10 * 60_000
"""When a past period is first tried: by then its pending usage is sealed, sent and counted."""
_AFTER_A_RENEWAL_MS: Final = 2 * 60_000
_RENEWED_WITHIN_MS: Final = 26 * 3_600_000
_AFTER_A_ROLL_MS: Final = 2 * 3_600_000
_KEPT_MS: Final = 45 * 86_400_000
_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """One customer's period whose close is to be confirmed.

    Attributes:
        end_ms: the first instant after it, as it was known when it was noted.
    """

    shard: int
    customer: str
    end_ms: int

    @property
    def member(self) -> str:
        """What stands for it in the store."""
        return f"{self.end_ms}:{self.customer}"

    @property
    def told_end(self) -> str:
        """When the period was over, for people."""
        return f"{from_ms(self.end_ms):%Y-%m-%d %H:%M} UTC"

    @classmethod
    def read(cls, shard: int, member: bytes) -> Close:
        """What stands for it in the store, read."""
        end, _, customer = member.decode("utf-8", "surrogateescape").partition(":")
        return cls(shard=shard, customer=customer, end_ms=int(end))


def ends_to_close(views: Iterable[CustomerView], now_ms: int) -> dict[str, int]:
    """The ends of periods with sealed usage, each by its token: when it is first tried.

    For two hours after a period's beginning the one before is among them: what was pending of it is sealed
    then.

    Args:
        views: whose usage is sealed.
        now_ms: when.
    """
    found: dict[str, int] = {}
    for view in views:
        if not view.linked:
            continue
        bounds, state = view.effective.bounds, view.state
        if state.subscription is not None or not bounds.start_ms <= now_ms < bounds.end_ms:
            # By the clock: a view may be of the period before, which scripts know the end of.
            bounds = bounds_of(state, view.effective.counting, now_ms)
        ends = [bounds.end_ms]
        if bounds.start_ms <= now_ms < bounds.start_ms + _AFTER_A_ROLL_MS:
            ends.append(bounds.start_ms)
        for end_ms in ends:
            close = Close(shard=view.keys.shard, customer=view.customer, end_ms=end_ms)
            found[close.member] = end_ms + CLOSE_AFTER_MS
    return found


async def note_renewal(
    store: Store,
    customer: str,
    subscription: SubscriptionState | None,
    *,
    known: SubscriptionState | None,
) -> None:
    """Have the close of a period looked at that a subscription's renewal, end or successor has just ended.

    Nothing may have noted it: usage is noted when it is sealed, and the flusher may have been dead. The end
    of a subscription may become known days later.

    Args:
        store: where closes are noted.
        customer: whose.
        subscription: as Stripe shows it.
        known: the customer's subscription as it was known before.

    Raises:
        StoreError: the store does not answer.
    """
    sells_usage = any(meter.stripe is not None for meter in store.catalog.meters.values())
    if subscription is None or not subscription.has_begun or not sells_usage:
        return
    now_ms, ends = store.now_ms(), list[int]()
    renewals = renewals_of(subscription, now_ms)
    was_open = known is not None and known.status not in ENDED
    has_ended = was_open and subscription.status in ENDED
    if renewals is not None and (has_ended or now_ms < renewals.latest_ms + _RENEWED_WITHIN_MS):
        ends.append(renewals.latest_ms)
    if was_open and known is not None and known.id != subscription.id:
        ends.append(
            subscription.created_ms or subscription.start_ms
        )  # Which ended the period of the other one.
    await note_ends(store, customer, ends)


async def note_ends(store: Store, customer: str, ends: Iterable[int]) -> None:
    """Have the closes of periods looked at that have just ended, at these instants (ms).

    Raises:
        StoreError: the store does not answer.
    """
    shard, now_ms = store.keys.customer(customer).shard, store.now_ms()
    found = {
        Close(shard=shard, customer=customer, end_ms=end_ms).member: max(now_ms, end_ms + _AFTER_A_RENEWAL_MS)
        for end_ms in ends
    }
    closes = Closes(store, (await store.admin()).for_delivery())
    await closes.note(shard, found, sooner=True)


class Closes:
    """The closes that are to be confirmed, of all shards.

    Each method but one raises :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin

    async def note_sealed(self, shard: int, views: Iterable[CustomerView]) -> None:
        """Remember the periods of usage that is to be sealed; where that fails, it holds up no delivery."""
        try:
            await self.note(shard, ends_to_close(views, self._store.now_ms()))
        except StoreError as error:
            self._admin.say_once(f"ends of billing periods cannot be noted, and are not looked at: {error}")

    async def note(self, shard: int, ends: dict[str, int], *, sooner: bool = False) -> None:
        """Remember closes, and when each is first tried.

        A known close keeps its time, or is tried ``sooner``.
        """
        if not ends:
            return
        key = self._store.keys.shard(shard, "closes")
        pipe = self._admin.client.pipeline(transaction=False)
        pipe.zadd(key, ends, nx=not sooner, lt=sooner)
        pipe.pexpire(key, _KEPT_MS)
        await self._admin.ask(pipe.execute())

    async def due(self) -> AsyncGenerator[Close]:
        """The closes that are due; each must be confirmed, postponed or forgotten."""
        now_ms = self._store.now_ms()
        for shard, _ in await count_members(self._store, self._admin, ("closes",), limit=now_ms):
            key = self._store.keys.shard(shard, "closes")
            while True:
                members: list[bytes] = await self._admin.ask(
                    self._admin.client.zrangebyscore(key, "-inf", now_ms, start=0, num=_PAGE)
                )
                for member in members:
                    yield Close.read(shard, member)
                if len(members) < _PAGE:
                    break

    async def postpone(self, close: Close, at_ms: int) -> None:
        """Look at it again later."""
        key = self._store.keys.shard(close.shard, "closes")
        await self._admin.ask(self._admin.client.zadd(key, {close.member: at_ms}))

    async def tell(self, close: Close) -> bool:
        """Remember the alert that it is not confirmed in time; whether it is the first."""
        key = self._store.keys.shard(close.shard, "unclosed")
        pipe = self._admin.client.pipeline(transaction=False)
        pipe.zadd(key, {close.member: close.end_ms}, nx=True)
        pipe.pexpire(key, _KEPT_MS)
        added, _ = await self._admin.ask(pipe.execute())
        return bool(added)

    async def forget(self, close: Close) -> bool:
        """Forget a close; whether an alert had named it."""
        names = ("closes", "unclosed")
        pipe = self._admin.client.pipeline(transaction=False)
        for name in names:
            pipe.zrem(self._store.keys.shard(close.shard, name), close.member)
        _, was_told = await self._admin.ask(pipe.execute())
        return bool(was_told)

    async def told(self, *, most: int) -> list[Close]:
        """Those that were not confirmed in time and are not yet, the oldest first within each shard."""
        found: list[Close] = []
        for shard, _ in await count_members(self._store, self._admin, ("unclosed",), limit="+inf"):
            key = self._store.keys.shard(shard, "unclosed")
            members: list[Any] = await self._admin.ask(self._admin.client.zrange(key, 0, most - 1))
            found += [Close.read(shard, member) for member in members]
        return sorted(found, key=lambda close: close.end_ms)[:most]
