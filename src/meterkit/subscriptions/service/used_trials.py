"""Used trials: customers that had a subscription, remembered for 400 days after their deletion."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import DAY_MS

if TYPE_CHECKING:
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store

_KEPT_MS: Final = 400 * DAY_MS
_PLACE: Final = "tried"
_PAGE: Final = 1_000


async def remember_trial(store: Store, customer: str, subscription: SubscriptionState | None) -> None:
    """Keep a digest of the customer for 400 days if its subscription was ever paid for, or on trial.

    Raises:
        StoreError: the store does not answer.
    """
    # After a trial without the required card, it is shown as one that never began.
    if subscription is None or not (subscription.has_begun or subscription.trial_end_ms):
        return
    shard = store.keys.customer(customer).shard
    admin, now_ms = await store.admin(), await store.clock_ms(shard)
    key = store.keys.shard(shard, _PLACE)
    pipe = admin.client.pipeline(transaction=False)
    pipe.zadd(key, {_digest(customer): now_ms + _KEPT_MS})
    pipe.pexpire(key, _KEPT_MS)
    pipe.zrangebyscore(key, "-inf", now_ms, start=0, num=_PAGE)
    *_, over = await admin.ask(pipe.execute())
    if over:
        await admin.ask(admin.client.zrem(key, *over))


async def has_used_trial(store: Store, customer: str) -> bool:
    """Whether the customer had a subscription before it was forgotten.

    Raises:
        StoreError: the store does not answer.
    """
    admin, shard = await store.admin(), store.keys.customer(customer).shard
    key = store.keys.shard(shard, _PLACE)
    until_ms: float | None = await admin.ask(admin.client.zscore(key, _digest(customer)))
    return until_ms is not None and until_ms > await store.clock_ms(shard)


def _digest(customer: str) -> str:
    return blake2b(customer.encode(), digest_size=16).hexdigest()
