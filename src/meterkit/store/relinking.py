"""A Stripe customer that belonged to another customer before: which minutes its intents have already."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from meterkit.store.delivered import delivered_lately

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

__all__ = ["minutes_taken_ms", "pending_minutes_ms", "remember_former", "used_minutes_ms"]

_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_FORMERS_MS: Final = 40 * _DAY_MS


def minutes_taken_ms(used: set[int], closing: Iterable[int], now_ms: int) -> tuple[int, ...]:
    """Of the minutes that are used, those that the next customer's intents could come to lie in. Pure.

    Args:
        used: minutes that intents of the Stripe customer have (ms).
        closing: the minutes that usage of closed periods would be stamped with (ms).
        now_ms: from when on usage of open periods is stamped.
    """
    taken = {minute for minute in used if minute >= now_ms - _MINUTE_MS}
    for minute in closing:
        while minute in used:  # A seal goes back from there to the first that is free.
            taken.add(minute)
            minute -= _MINUTE_MS  # noqa: PLW2901 - it is walked back
    return tuple(sorted(taken))


def pending_minutes_ms(totals: Mapping[str, str]) -> set[int]:
    """The last whole minutes of closed periods that have usage to seal. Pure."""
    pending = {
        name.partition("|")[0] for name, value in totals.items() if name.endswith("p") and value != "0"
    }
    ends = {period: totals.get(f"{period}|e") for period in pending}
    return {(int(end) // _MINUTE_MS - 1) * _MINUTE_MS for end in ends.values() if end is not None}


async def remember_former(admin: Admin, keys: Keys, stripe_customer: str, customer: str) -> None:
    """Have the store remember whose a Stripe customer was. Raises StoreError where it does not answer."""
    client = admin.client
    formers = keys.formers(stripe_customer)
    await admin.ask(client.hset(formers, customer, admin.now_ms()))
    await admin.ask(client.pexpire(formers, _FORMERS_MS))


async def used_minutes_ms(admin: Admin, keys: Keys, stripe_customer: str) -> set[int]:
    """The minutes of all intents that a Stripe customer had through earlier customers, of 36 days.

    Raises:
        StoreError: the store does not answer.
    """
    client = admin.client
    formers: list[bytes] = await admin.ask(client.hkeys(keys.formers(stripe_customer)))
    used = set[int]()
    for shard in {keys.customer(former.decode()).shard for former in formers}:
        for data in await admin.ask(client.hvals(keys.shard(shard, "intents"))):
            intent = json.loads(data)
            if intent["stripe"] == stripe_customer:
                used.add(int(intent["time"]) * 1000)
        async for one in delivered_lately(admin, keys, shard):
            if one.stripe_customer == stripe_customer:
                used.add(one.time_s * 1000)
    return used
