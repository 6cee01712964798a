"""Links of customers to Stripe customers: one to one, safe against concurrent calls.

A Stripe customer may have belonged to another customer before: the new link keeps clear of the minutes
of intents that were delivered for it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from secrets import token_hex
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meterkit.customers.history import read_links
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import with_subscription
from meterkit.decisions.periods import DAY_MS, MINUTE_MS
from meterkit.errors import CustomerError, StoreError
from meterkit.outbox.intents import parse_intents, read_intents_in
from meterkit.store.input_checks import check_customer, is_text, shown
from meterkit.store.server_restarts import ServerLives

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping

    from meterkit.decisions.customer_state import CustomerState
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_DAYS_KEPT: Final = 37
_DROPPED: Final = b"dropped|"
"""Begins the name of what was dropped, which only keeps its minute; see change_state.lua."""


class StripeHooks(Protocol):
    """Stripe calls that are part of a change of a customer."""

    async def refuse_unknown_stripe_customer(self, customer: str, stripe_customer: str) -> None:
        """Refuse a link to a Stripe customer that does not exist."""
        ...

    async def sync_linked_customer(self, customer: str, *, now: bool, is_known: bool) -> None:
        """Read the subscription of a linked customer; ``is_known``: Stripe has the Stripe customer."""
        ...

    async def prepare_deletion(self, customer: str, *, cancel: bool) -> None:
        """Refuse or end a subscription before its customer is deleted."""
        ...

    async def store_override(
        self, customer: str, meters: Collection[str], change: Callable[[CustomerState], CustomerState]
    ) -> None:
        """Store an override; if it changes a price, after Stripe has that price."""
        ...


class DeliveryRecord(NamedTuple):
    """A delivery.

    Attributes:
        identifier: of the meter event.
        time_s: its timestamp in Unix seconds, a whole minute.
        value: in the meter's unit; 0: it was dropped.
    """

    identifier: str
    customer: str
    stripe_customer: str
    event_name: str
    time_s: int
    value: int


async def read_recent_deliveries(admin: Admin, keys: Keys, shard: int) -> AsyncGenerator[DeliveryRecord]:
    """Quantities delivered or dropped.

    Raises:
        StoreError: the store does not answer.
    """
    for day in range(_DAYS_KEPT + 1):
        key = keys.delivered(shard, admin.now_ms() + DAY_MS - day * DAY_MS)
        for name, line in (await admin.ask(admin.client.hgetall(key))).items():
            customer, stripe_customer, event_name, time_s, value = json.loads(line)
            units = 0 if name.startswith(_DROPPED) else int(value)
            yield DeliveryRecord(name.decode(), customer, stripe_customer, event_name, int(time_s), units)


_FORMERS_MS: Final = 40 * DAY_MS
_DELETED: Final = "\n"
"""Begins what stands for a customer who is deleted: a shard, and not its id, which is to be erased."""


def minutes_taken_ms(used: set[int], closing: Iterable[int], now_ms: int) -> tuple[int, ...]:
    """Of the minutes that are used, those that the next customer's intents could come to lie in. Pure.

    Args:
        used: minutes that intents of the Stripe customer have (ms).
        closing: the minutes that usage of closed periods would be stamped with (ms).
        now_ms: from when on usage of open periods is stamped.
    """
    taken = {minute for minute in used if minute >= now_ms - MINUTE_MS}
    for minute in closing:
        while minute in used:  # A seal goes back from there to the first that is free.
            taken.add(minute)
            minute -= MINUTE_MS  # noqa: PLW2901 - it is walked back
    return tuple(sorted(taken))


def pending_minutes_ms(totals: Mapping[str, str]) -> set[int]:
    """The last whole minutes of closed periods that have usage to seal. Pure."""
    pending = {
        name.partition("|")[0] for name, value in totals.items() if name.endswith("p") and value != "0"
    }
    ends = {period: totals.get(f"{period}|e") for period in pending}
    return {(int(end) // MINUTE_MS - 1) * MINUTE_MS for end in ends.values() if end is not None}


async def remember_former(admin: Admin, keys: Keys, stripe_customer: str, customer: str) -> None:
    """Remember the former customer of a Stripe customer. Raises StoreError if the store does not answer."""
    client = admin.client
    formers = keys.formers(stripe_customer)
    await admin.ask(client.hset(formers, customer, admin.now_ms()))
    await admin.ask(client.pexpire(formers, _FORMERS_MS))


async def remember_deleted(admin: Admin, keys: Keys, stripe_customer: str, customer: str) -> None:
    """Remember the shard of a Stripe customer's intents, without the customer's id.

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
        for intent in parse_intents(
            admin.for_delivery(), shard, [name.decode() for name in kept], [*kept.values()]
        ):
            if intent and intent["stripe"] == stripe_customer:
                used.add(int(intent["time"]) * 1000)
        async for one in read_recent_deliveries(admin, keys, shard):
            if one.stripe_customer == stripe_customer:
                used.add(one.time_s * 1000)
    return used


def _shard_of(former: str, keys: Keys) -> int:
    """Shard of a former customer's intents."""
    return int(former) if former.startswith(_DELETED) else keys.customer(former).shard


_TRIES: Final = 32
_PAGE: Final = 100
_RETIRED: Final = "\nretired"
_TOMBSTONE: Final = f"\n{_RETIRED}"
_STRIPE_CUSTOMER: Final = re.compile(r"cus_[A-Za-z0-9_]{1,200}")


def check_stripe_customer(stripe_customer: str) -> None:
    """Refuse what cannot be the id of a Stripe customer. Raises CustomerError."""
    if not is_text(stripe_customer) or not _STRIPE_CUSTOMER.fullmatch(stripe_customer):
        raise CustomerError(f"Stripe customer: found {shown(stripe_customer)}; allowed is an id like cus_123")


class StripeLinker:
    """Links customers to Stripe customers and unlinks them; see :class:`meterkit.Customers`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states = CustomerStates(store)

    async def find_owner(self, stripe_customer: str) -> str | None:
        """Return the customer that a Stripe customer is linked to; None: to none. Raises StoreError."""
        claim = await self._read_claim(await self._store.admin(), self._store.keys.link(stripe_customer))
        customer = claim_owner(claim)
        if not customer:
            return None
        # A claim without a link has no owner yet.
        _, state = await self._states.read(customer)
        return customer if state.stripe_customer == stripe_customer else None

    async def make(self, customer: str, stripe_customer: str, *, cause: str = "operator") -> None:
        """Link a customer to a Stripe customer: from now on its usage is delivered. Repeated: a no-op.

        Args:
            customer: the customer's id.
            stripe_customer: ``cus_…``.
            cause: for the history.

        Raises:
            CustomerError: the customer is linked to another Stripe customer, or that one to another customer.
        """
        customer = check_customer(customer)
        check_stripe_customer(stripe_customer)
        admin, claim = await self._store.admin(), self._store.keys.link(stripe_customer)
        taken = await self._minutes_taken(admin, customer, stripe_customer)
        await ServerLives(self._store).mark_link_doubted(customer)

        def change(state: CustomerState) -> CustomerState:
            if state.stripe_customer not in {None, stripe_customer}:
                raise CustomerError(
                    f"customer {customer!r} is linked to Stripe customer {state.stripe_customer} already"
                )
            return replace(state, stripe_customer=stripe_customer, minutes_taken_ms=taken)

        def undo(state: CustomerState) -> CustomerState:
            linked = state.stripe_customer == stripe_customer
            return replace(state, stripe_customer=None) if linked else state

        for _ in range(_TRIES):
            held = await self._take_claim(admin, claim, customer, stripe_customer)
            if held is None:
                continue
            try:
                await self._states.change(customer, change, cause=cause)
            except CustomerError:
                await self.withdraw(customer, stripe_customer)
                raise
            # Another process that read the claim before the state changed cannot take it over any more.
            if await admin.run(self._store.scripts["change_claim"], [claim], held, _new_claim(customer)):
                return
            # Else the same link was made twice at once.
            if claim_owner(await self._read_claim(admin, claim)) != customer:
                # The claim was taken over before it was made good.
                await self._states.change(customer, undo)
        raise StoreError(f"Stripe customer {stripe_customer} changed hands {_TRIES} times; try again")

    async def undo(self, customer: str) -> None:
        """Undo a link. Idempotent: a repeat finishes a try that failed.

        Usage that Stripe certainly knows nothing of waits for the next link, as if there had never been one.
        Usage that was sent, or is being sent, stays with the Stripe customer that it was addressed to.
        """
        customer = check_customer(customer)
        _, state = await self._states.read(customer)
        linked = state.stripe_customer
        admin, keys = await self._store.admin(), self._store.keys
        if linked is None:
            await self._recall_unsent_intents(admin, customer)
            for former in await read_links(self._store, customer):
                await self.withdraw(customer, former)
            return
        await remember_former(admin, keys, linked, customer)

        def change(state: CustomerState) -> CustomerState:
            if state.stripe_customer != linked:
                return state  # Another process was faster.
            # The subscription and the currency are those of the Stripe customer.
            gone = with_subscription(state, None)
            return replace(gone, stripe_customer=None, minutes_taken_ms=(), currency="")

        await self._states.change(customer, change)
        await self._recall_unsent_intents(admin, customer)
        await self.withdraw(customer, linked)

    async def _recall_unsent_intents(self, admin: Admin, customer: str) -> None:
        """Return sealed intents that were never sent to pending usage."""
        rev, state = await self._states.read(customer)
        if state.stripe_customer is not None:
            return
        keys = self._store.keys.customer(customer)
        names = [self._store.keys.shard(keys.shard, name) for name in ("intents", "outbox")]
        names += [keys.totals, keys.counters, keys.state, keys.unlinked]
        async for page in read_intents_in(
            self._store, admin.for_delivery(), keys.shard, "outbox", most=_PAGE
        ):
            own = [kept.identifier for kept in page if kept.customer == customer]
            if own:
                await admin.run(self._store.scripts["recall_intents"], names, rev, customer, *own)

    async def _minutes_taken(self, admin: Admin, customer: str, stripe_customer: str) -> tuple[int, ...]:
        """The minutes that intents may not have because the Stripe customer was another's before."""
        used = await used_minutes_ms(admin, self._store.keys, stripe_customer)
        if not used:
            return ()
        client = admin.client
        found: dict[bytes, bytes] = await admin.ask(
            client.hgetall(self._store.keys.customer(customer).totals)
        )
        totals = {name.decode(): value.decode() for name, value in found.items()}
        return minutes_taken_ms(used, pending_minutes_ms(totals), self._store.now_ms())

    async def _read_claim(self, admin: Admin, claim: str) -> str:
        return ((await admin.ask(admin.client.get(claim))) or b"").decode()

    async def _take_claim(self, admin: Admin, claim: str, customer: str, stripe_customer: str) -> str | None:
        """Claim a Stripe customer that is unclaimed, or claimed by this customer or one never linked.

        Returns:
            The claim; None if another process was faster.

        Raises:
            CustomerError: it is linked to another customer.
        """
        found = await self._read_claim(admin, claim)
        owner = claim_owner(found)
        if owner == customer:
            return found
        if owner:
            _, other = await self._states.read(owner)
            if other.stripe_customer == stripe_customer:
                raise CustomerError(
                    f"Stripe customer {stripe_customer} is linked to customer {owner!r} already"
                )
        mine = _new_claim(customer)
        return mine if await admin.run(self._store.scripts["change_claim"], [claim], found, mine) else None

    async def retire(self, customer: str, stripe_customer: str, *, done: bool = False) -> None:
        """Put a tombstone in place of a claim, so that no event of Stripe links the Stripe customer again.

        It takes effect when the customer is not linked any more. A link that is made by hand replaces it.

        Args:
            customer: whose claim it is.
            stripe_customer: the Stripe customer.
            done: the link is undone: the tombstone is kept without the customer's id.
        """
        admin, claim = await self._store.admin(), self._store.keys.link(stripe_customer)
        for _ in range(_TRIES):
            found = await self._read_claim(admin, claim)
            if claim_owner(found) not in {"", customer}:
                return  # Linked to another customer meanwhile.
            tombstone = _TOMBSTONE if done else f"{_new_claim(customer)}{_RETIRED}"
            if await admin.run(self._store.scripts["change_claim"], [claim], found, tombstone):
                return
        raise StoreError(f"Stripe customer {stripe_customer} changed hands {_TRIES} times; try again")

    async def has_tombstone(self, customer: str, stripe_customer: str) -> bool:
        """Whether there is a tombstone that still has the customer's id. Raises StoreError."""
        claim = await self._read_claim(await self._store.admin(), self._store.keys.link(stripe_customer))
        return claim_owner(claim) == customer and is_tombstone(claim)

    async def is_retired(self, stripe_customer: str) -> bool:
        """Check whether the claim is a tombstone. Raises StoreError if the store does not answer."""
        admin = await self._store.admin()
        return is_tombstone(await self._read_claim(admin, self._store.keys.link(stripe_customer)))

    async def withdraw(self, customer: str, stripe_customer: str) -> None:
        """Withdraw a claim that no link was made from, or none that is left."""
        admin, claim = await self._store.admin(), self._store.keys.link(stripe_customer)
        found = await self._read_claim(admin, claim)
        _, state = await self._states.read(customer)
        is_claim = claim_owner(found) == customer and not is_tombstone(found)
        if is_claim and state.stripe_customer != stripe_customer:
            await admin.run(self._store.scripts["change_claim"], [claim], found, "")


def _new_claim(customer: str) -> str:
    """Make a unique claim, so that an equal claim read later is known to be unchanged."""
    return f"{customer}\n{token_hex(8)}"  # No customer's id has a line feed.


def is_tombstone(claim: str) -> bool:
    """Whether a deletion has put this claim; it has an owner until the deletion is complete."""
    return claim.endswith(_RETIRED)


def claim_owner(claim: str) -> str:
    """The customer that holds a claim on a Stripe customer; empty: none."""
    return claim.partition("\n")[0]
