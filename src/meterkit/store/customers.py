"""Who the customers are: plan, status, link to Stripe, overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from meterkit.catalog import override as lay_over
from meterkit.decisions.customer_state import CustomerState, Status, effective_plan
from meterkit.decisions.program import rate_numbers
from meterkit.errors import CustomerError, MeterkitError, StoreError
from meterkit.store.customer_id import check_customer
from meterkit.store.relinking import (
    minutes_taken_ms,
    pending_minutes_ms,
    remember_former,
    used_minutes_ms,
)
from meterkit.store.state_changes import States

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from meterkit.decisions.customer_state import Access
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

__all__ = ["Customer", "Customers", "customers_set_up"]

_TRIES: Final = 32
_PAGE: Final = 100
_SHARDS_AT_ONCE: Final = 16
_DONE: Final = 0
_UNDELIVERED: Final = 2
_PARKED_OR_DEAD: Final = 3
_STRIPE_CUSTOMER: Final = re.compile(r"cus_[A-Za-z0-9_]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """What is known of a customer beyond what it used.

    Attributes:
        plan: the key of the plan in force.
        missing_plan: the plan that somebody set and that the plans file no longer has, so that the default
            plan stands in for it; None where there is no such thing.
        status: what Stripe says of the subscription, or None where there is none.
        access: what the customer may do.
        stripe_customer: the linked Stripe customer, or None.
        overrides: meter to what the customer gets differently.
    """

    customer: str
    plan: str
    missing_plan: str | None
    status: Status | None
    access: Access
    stripe_customer: str | None
    overrides: Mapping[str, Mapping[str, object]]


async def customers_set_up(admin: Admin, keys: Keys) -> AsyncGenerator[str]:
    """The ids of all customers that somebody set up, in no order, a few shards at once.

    Raises:
        StoreError: the store does not answer.
    """
    for first in range(0, keys.shards, _SHARDS_AT_ONCE):
        members = admin.client.pipeline(transaction=False)
        for shard in range(first, min(first + _SHARDS_AT_ONCE, keys.shards)):
            members.smembers(keys.shard(shard, "customers"))
        for found in await admin.ask(members.execute()):
            for member in found:
                yield member.decode()


class Customers:
    """Reads and changes customers. A change binds the very next decision of every process.

    Each method raises :class:`~meterkit.errors.CustomerError` for an id that is not allowed and
    :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states = States(store)

    async def get(self, customer: str) -> Customer:
        """A customer; one that nobody set up is on the default plan."""
        _, state = await self._states.read(check_customer(customer))
        return self._view(customer, state)

    async def known(self, customer: str) -> bool:
        """Whether anything is known of a customer: that it was set up, what it used, a gauge's level."""
        keys = self._store.keys.customer(check_customer(customer))
        names = (keys.state, keys.counters, keys.totals, keys.levels)
        admin = await self._store.admin()
        return bool(await admin.ask(admin.client.exists(*names)))

    async def list(self) -> AsyncIterator[Customer]:
        """All customers that somebody set up, in no order."""
        async with aclosing(customers_set_up(await self._store.admin(), self._store.keys)) as customers:
            async for customer in customers:
                _, state = await self._states.read(customer)
                yield self._view(customer, state)

    async def set_plan(self, customer: str, plan: str) -> Customer:
        """Put a customer on a plan, at once.

        Raises:
            MeterkitError: the plans file has no such plan.
        """
        if not _is_text(plan) or plan not in self._store.catalog.plans:
            known = ", ".join(self._store.catalog.plans)
            near = get_close_matches(plan, self._store.catalog.plans, n=1) if _is_text(plan) else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise MeterkitError(f"plan: found {_shown(plan)}; the plans are {known}{hint}")
        return await self._change(customer, lambda state: replace(state, plan=plan))

    async def set_status(self, customer: str, status: Status | None) -> Customer:
        """Take what Stripe says of the customer's subscription; None: there is none.

        Raises:
            MeterkitError: Stripe has no such status.
        """
        if status is not None and status not in get_args(Status):
            words = ", ".join(get_args(Status))
            raise MeterkitError(f"status: found {_shown(status)}; allowed are {words} and None")
        now_ms = self._store.now_ms()

        def change(state: CustomerState) -> CustomerState:
            if state.status == status:
                return state
            return replace(state, status=status, status_since_ms=now_ms)

        return await self._change(customer, change)

    async def override(self, customer: str, overrides: Mapping[str, Mapping[str, object]]) -> Customer:
        """Give a customer something else than the plan does, in the notation of the plans file.

        ``{"requests": {"included": 5_000}}`` leaves all else of the plan's entitlement as it is; an empty
        mapping for a meter takes its override back.

        Raises:
            MeterkitError: the overrides are not a mapping of mappings, or hold a value that is not of YAML.
            PlansError: an override cannot be read; with all that is wrong.
        """
        given = _entitlements(overrides)
        catalog = self._store.catalog
        for plan in catalog.plans.values():
            for entitlement in lay_over(catalog, plan, given, strict=True).values():
                for rate in entitlement.rates:
                    rate_numbers(rate, entitlement.meter)
        kept: dict[str, dict[str, object]] = {meter: _plain(value, meter) for meter, value in given.items()}

        def change(state: CustomerState) -> CustomerState:
            merged = {**state.overrides, **kept}
            return replace(state, overrides={meter: value for meter, value in merged.items() if value})

        return await self._change(customer, change)

    async def link(self, customer: str, stripe_customer: str) -> Customer:
        """Link a customer to a Stripe customer: from now on its usage is delivered. Repeated: a no-op.

        Raises:
            CustomerError: the customer is linked to another Stripe customer, or that one to another customer.
        """
        check_customer(customer)
        if not _is_text(stripe_customer) or not _STRIPE_CUSTOMER.fullmatch(stripe_customer):
            raise CustomerError(
                f"Stripe customer: found {_shown(stripe_customer)}; allowed is an id like cus_123"
            )
        admin, claim = await self._store.admin(), self._store.keys.link(stripe_customer)
        taken = await self._minutes_taken(admin, customer, stripe_customer)

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
            held = await self._claim(admin, claim, customer, stripe_customer)
            if held is None:
                continue
            try:
                found = await self._change(customer, change)
            except CustomerError:
                await self._withdraw(admin, claim, customer, stripe_customer)
                raise
            # Another process that read the claim before the state changed cannot take it over any more.
            if await admin.run(self._store.scripts["claim"], [claim], held, _claim_of(customer)):
                return found
            if (
                owner_of(await self._read(admin, claim)) != customer
            ):  # Else the same link was made twice at once.
                # The claim was taken over before it was made good.
                await self._change(customer, undo)
        raise StoreError(f"Stripe customer {stripe_customer} changed hands {_TRIES} times; try again")

    async def unlink(self, customer: str) -> Customer:
        """Undo a link. Repeated: a no-op, but for what a try that failed has left undone.

        Usage that Stripe certainly knows nothing of waits for the next link, as if there had never been one.
        What was sent already, or is being sent, stays with the Stripe customer that it was addressed to.
        """
        _, state = await self._states.read(check_customer(customer))
        linked = state.stripe_customer
        admin, keys = await self._store.admin(), self._store.keys
        if linked is None:
            await self._recall(admin, customer)
            return self._view(customer, state)
        await remember_former(admin, keys, linked, customer)

        def change(state: CustomerState) -> CustomerState:
            if state.stripe_customer != linked:
                return state  # Somebody was faster.
            return replace(state, stripe_customer=None, minutes_taken_ms=())

        found = await self._change(customer, change)
        await self._recall(admin, customer)
        await self._withdraw(admin, keys.link(linked), customer, linked)
        return found

    async def _recall(self, admin: Admin, customer: str) -> None:
        """Take back what was sealed and never sent."""
        rev, state = await self._states.read(customer)
        if state.stripe_customer is not None:
            return
        keys = self._store.keys.customer(customer)
        shared = [self._store.keys.shard(keys.shard, name) for name in ("intents", "outbox")]
        names = [*shared, keys.totals, keys.counters, keys.state, keys.unlinked]
        client = admin.client
        queued: list[bytes] = await admin.ask(client.zrange(shared[1], 0, -1))
        for start in range(0, len(queued), _PAGE):
            page = queued[start : start + _PAGE]
            kept: list[bytes | None] = await admin.ask(client.hmget(shared[0], page))
            own = [
                member.decode()
                for member, data in zip(page, kept, strict=True)
                if data is not None and json.loads(data)["customer"] == customer
            ]
            if own:
                await admin.run(self._store.scripts["recall"], names, rev, customer, *own)

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

    async def delete(self, customer: str) -> None:
        """Forget a customer: state, link, counters, levels, and usage that was never linked to Stripe.

        Raises:
            CustomerError: usage of this customer is on its way to Stripe, parked or dead.
        """
        admin, keys = await self._store.admin(), self._store.keys.customer(check_customer(customer))
        names = [keys.counters, keys.state, keys.totals]
        names += [self._store.keys.shard(keys.shard, "customers"), keys.dirty, keys.unlinked]
        names += [keys.grants, keys.ledger, keys.levels, keys.marks]
        for _ in range(_TRIES):
            rev, state = await self._states.read(customer)
            (reply,) = await admin.run(self._store.scripts["forget"], names, rev, customer)
            if reply == _UNDELIVERED:
                raise CustomerError(f"customer {customer!r} has usage that is not delivered yet; flush first")
            if reply == _PARKED_OR_DEAD:
                raise CustomerError(
                    f"customer {customer!r} has usage that is parked or dead, which Stripe does not have;"
                    " meterkit flush names it and says why"
                )
            if reply == _DONE:
                linked = state.stripe_customer
                if linked is not None:
                    await self._withdraw(admin, self._store.keys.link(linked), customer, linked)
                return
        raise StoreError(f"customer {customer!r} changed {_TRIES} times while it was deleted; try again")

    async def _read(self, admin: Admin, claim: str) -> str:
        return ((await admin.ask(admin.client.get(claim))) or b"").decode()

    async def _claim(self, admin: Admin, claim: str, customer: str, stripe_customer: str) -> str | None:
        """Claim a Stripe customer that is unclaimed, or claimed by this customer or one never linked.

        Returns:
            The claim; None where somebody else was faster.

        Raises:
            CustomerError: it is linked to another customer.
        """
        found = await self._read(admin, claim)
        owner = owner_of(found)
        if owner == customer:
            return found
        if owner:
            _, other = await self._states.read(owner)
            if other.stripe_customer == stripe_customer:
                raise CustomerError(
                    f"Stripe customer {stripe_customer} is linked to customer {owner!r} already"
                )
        mine = _claim_of(customer)
        return mine if await admin.run(self._store.scripts["claim"], [claim], found, mine) else None

    async def _withdraw(self, admin: Admin, claim: str, customer: str, stripe_customer: str) -> None:
        """Withdraw a claim that no link was made from."""
        found = await self._read(admin, claim)
        _, state = await self._states.read(customer)
        if owner_of(found) == customer and state.stripe_customer != stripe_customer:
            await admin.run(self._store.scripts["claim"], [claim], found, "")

    def _view(self, customer: str, state: CustomerState) -> Customer:
        effective = effective_plan(state, self._store.catalog, self._store.now_ms())
        return Customer(
            customer=customer,
            plan=effective.plan.key,
            missing_plan=None if state.plan in self._store.catalog.plans else state.plan,
            status=state.status,
            access=effective.access,
            stripe_customer=state.stripe_customer,
            overrides=state.overrides,
        )

    async def _change(self, customer: str, change: Callable[[CustomerState], CustomerState]) -> Customer:
        return self._view(customer, await self._states.change(customer, change))


def _claim_of(customer: str) -> str:
    """A claim of a customer's: no two are the same, so that one that was read is known to be unchanged."""
    return f"{customer}\n{token_hex(8)}"  # No customer's id has a line feed.


def owner_of(claim: str) -> str:
    """Whose a claim on a Stripe customer is; empty: nobody's."""
    return claim.partition("\n")[0]


def _is_text(value: object) -> bool:
    # Callers without a type checker may hand over anything.
    return isinstance(value, str)


def _shown(value: object) -> str:
    return f"{value!r:.80}" if isinstance(value, str) else f"a value of type {type(value).__name__}"


def _entitlements(overrides: object) -> dict[str, Mapping[str, object]]:
    """Meter to what is given of it, whatever was handed over."""
    if not isinstance(overrides, Mapping):
        raise MeterkitError(
            f"override: found {_shown(overrides)}; allowed is a mapping of meters to entitlements, such as"
            " {'requests': {'included': 5_000}}"
        )
    found: dict[str, Mapping[str, object]] = {}
    for meter, given in cast("Mapping[object, object]", overrides).items():
        if not isinstance(meter, str):
            raise MeterkitError(f"override: found {_shown(meter)} as a meter; name it by a text")
        if not isinstance(given, Mapping):
            raise MeterkitError(
                f"override of {meter:.80}: found {_shown(given)}; allowed is a mapping, such as"
                " {'included': 5_000}, or {} to take it back"
            )
        found[meter] = cast("Mapping[str, object]", given)
    return found


def _plain(value: object, path: str) -> Any:
    """A value as JSON keeps it."""
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {str(key): _plain(item, f"{path}.{key}") for key, item in entries.items()}
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return [_plain(item, path) for item in items]
    if value is None or isinstance(value, str | int | float):
        return value
    raise MeterkitError(
        f"override of {path:.80}: found {_shown(value)}; allowed are texts, numbers, lists and mappings"
    )
