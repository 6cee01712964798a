"""A Stripe customer that belonged to another customer before: which minutes its intents have already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.store.delivered import delivered_lately
from meterkit.store.kept_intents import intents_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

__all__ = [
    "minutes_taken_ms",
    "pending_minutes_ms",
    "remember_deleted",
    "remember_former",
    "used_minutes_ms",
]

_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_FORMERS_MS: Final = 40 * _DAY_MS
_DELETED: Final = "\n"
"""Begins what stands for a customer who is deleted: a shard, and not its id, which is to be erased."""


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


async def remember_deleted(admin: Admin, keys: Keys, stripe_customer: str, customer: str) -> None:
    """Have the store remember where intents of a Stripe customer are, without the customer's id.

    Raises:
        StoreError: the store does not answer.
    """
    shard = f"{_DELETED}{keys.customer(customer).shard}"
    await admin.ask(admin.client.hdel(keys.formers(stripe_customer), customer))
    await remember_former(admin, keys, stripe_customer, shard)


async def used_minutes_ms(admin: Admin, keys: Keys, stripe_customer: str) -> set[int]:
    """The minutes of all intents that a Stripe customer had through earlier customers, of 36 days.

    Raises:
        StoreError: the store does not answer.
    """
    client = admin.client
    formers: list[bytes] = await admin.ask(client.hkeys(keys.formers(stripe_customer)))
    used = set[int]()
    for shard in {_shard_of(former.decode(), keys) for former in formers}:
        kept: dict[bytes, bytes] = await admin.ask(client.hgetall(keys.shard(shard, "intents")))
        for intent in intents_of(
            admin.for_delivery(), shard, [name.decode() for name in kept], [*kept.values()]
        ):
            if intent and intent["stripe"] == stripe_customer:
                used.add(int(intent["time"]) * 1000)
        async for one in delivered_lately(admin, keys, shard):
            if one.stripe_customer == stripe_customer:
                used.add(one.time_s * 1000)
    return used


def _shard_of(former: str, keys: Keys) -> int:
    """Where the intents of a former customer are."""
    return int(former) if former.startswith(_DELETED) else keys.customer(former).shard
