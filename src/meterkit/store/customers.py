"""Who the customers are: plan, status, link to Stripe, overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Final, get_args

from meterkit.catalog import override as lay_over
from meterkit.errors import CustomerError, MeterkitError, StoreError
from meterkit.store.customer_id import check_customer
from meterkit.store.keys import FORMAT
from meterkit.store.program import rate_numbers
from meterkit.store.state import NO_STATE, CustomerState, Status, standing_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from meterkit.store.admin import Admin
    from meterkit.store.state import Access
    from meterkit.store.store import Store

__all__ = ["Customer", "Customers"]

_TRIES: Final = 32
_DONE: Final = 0
_UNDELIVERED: Final = 2
_STRIPE_CUSTOMER: Final = re.compile(r"cus_[A-Za-z0-9_]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """What is known of a customer beyond what it used.

    Attributes:
        plan: the key of the plan in force.
        status: what Stripe says of the subscription, or None where there is none.
        access: what the customer may do.
        stripe_customer: the linked Stripe customer, or None.
        overrides: meter to what the customer gets differently.
    """

    customer: str
    plan: str
    status: Status | None
    access: Access
    stripe_customer: str | None
    overrides: Mapping[str, Mapping[str, object]]


class Customers:
    """Reads and changes customers. A change binds the very next decision of every process.

    Each method raises :class:`~meterkit.errors.CustomerError` for an id that is not allowed and
    :class:`~meterkit.errors.StoreError` where the store does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, customer: str) -> Customer:
        """A customer; one that nobody set up is on the default plan."""
        _, state = await self._read(await self._store.admin(), check_customer(customer))
        return self._view(customer, state)

    async def list(self) -> AsyncIterator[Customer]:
        """All customers that somebody set up, in no order."""
        admin = await self._store.admin()
        keys = self._store.keys
        for shard in range(keys.shards):
            for member in await admin.ask(admin.client.smembers(keys.shard(shard, "customers"))):
                customer = member.decode()
                _, state = await self._read(admin, customer)
                yield self._view(customer, state)

    async def set_plan(self, customer: str, plan: str) -> Customer:
        """Put a customer on a plan, at once.

        Raises:
            MeterkitError: the plans file has no such plan.
        """
        if plan not in self._store.catalog.plans:
            known = ", ".join(self._store.catalog.plans)
            raise MeterkitError(f"plan: found {plan!r:.80}; the plans are {known}")
        return await self._change(customer, lambda state: replace(state, plan=plan))

    async def set_status(self, customer: str, status: Status | None) -> Customer:
        """Take what Stripe says of the customer's subscription; None: there is none.

        Raises:
            MeterkitError: Stripe has no such status.
        """
        if status is not None and status not in get_args(Status):
            raise MeterkitError(f"status: found {status!r:.80}; allowed are {', '.join(get_args(Status))}")
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
            PlansError: an override cannot be read; with all that is wrong.
        """
        catalog = self._store.catalog
        for plan in catalog.plans.values():
            for entitlement in lay_over(catalog, plan, overrides, strict=True).values():
                for rate in entitlement.rates:
                    rate_numbers(rate, entitlement.meter)

        def change(state: CustomerState) -> CustomerState:
            merged = {**state.overrides, **{meter: dict(given) for meter, given in overrides.items()}}
            return replace(state, overrides={meter: given for meter, given in merged.items() if given})

        return await self._change(customer, change)

    async def link(self, customer: str, stripe_customer: str) -> Customer:
        """Link a customer to a Stripe customer: from now on its usage is delivered. Repeated: a no-op.

        Raises:
            CustomerError: the customer is linked to another Stripe customer, or that one to another customer.
        """
        check_customer(customer)
        if not _STRIPE_CUSTOMER.fullmatch(stripe_customer):
            raise CustomerError(
                f"Stripe customer: found {stripe_customer!r:.80}; allowed is an id like cus_123"
            )
        admin, claim = await self._store.admin(), self._store.keys.link(stripe_customer)

        def change(state: CustomerState) -> CustomerState:
            if state.stripe_customer not in {None, stripe_customer}:
                raise CustomerError(
                    f"customer {customer!r} is linked to Stripe customer {state.stripe_customer} already"
                )
            return replace(state, stripe_customer=stripe_customer)

        def undo(state: CustomerState) -> CustomerState:
            linked = state.stripe_customer == stripe_customer
            return replace(state, stripe_customer=None) if linked else state

        for _ in range(_TRIES):
            owner = await self._owner(admin, claim)
            if owner != customer and not await self._take(admin, claim, owner, customer, stripe_customer):
                continue
            try:
                found = await self._change(customer, change)
            except CustomerError:
                await self._give_up(admin, claim, customer, stripe_customer)
                raise
            if await self._owner(admin, claim) == customer:
                return found
            # The claim was taken over before it was made good.
            await self._change(customer, undo)
        raise StoreError(f"Stripe customer {stripe_customer} changed hands {_TRIES} times; try again")

    async def delete(self, customer: str) -> None:
        """Forget a customer: state, link, counters, and usage that was never linked to a Stripe customer.

        Raises:
            CustomerError: usage of this customer is on its way to Stripe; flush first.
        """
        admin, keys = await self._store.admin(), self._store.keys.customer(check_customer(customer))
        names = [keys.counters, keys.state, keys.totals]
        names += [self._store.keys.shard(keys.shard, "customers"), keys.dirty, keys.unlinked]
        for _ in range(_TRIES):
            rev, state = await self._read(admin, customer)
            (reply,) = await admin.run(self._store.scripts["forget"], names, rev, customer)
            if reply == _UNDELIVERED:
                raise CustomerError(f"customer {customer!r} has usage that is not delivered yet; flush first")
            if reply == _DONE:
                linked = state.stripe_customer
                if linked is not None:
                    await self._give_up(admin, self._store.keys.link(linked), customer, linked)
                return
        raise StoreError(f"customer {customer!r} changed {_TRIES} times while it was deleted; try again")

    async def _owner(self, admin: Admin, claim: str) -> str:
        return ((await admin.ask(admin.client.get(claim))) or b"").decode()

    async def _take(self, admin: Admin, claim: str, owner: str, customer: str, stripe_customer: str) -> bool:
        """Claim a Stripe customer that is nobody's, or of somebody who never made good of it."""
        if owner:
            _, other = await self._read(admin, owner)
            if other.stripe_customer == stripe_customer:
                raise CustomerError(
                    f"Stripe customer {stripe_customer} is linked to customer {owner!r} already"
                )
        return bool(await admin.run(self._store.scripts["claim"], [claim], owner, customer))

    async def _give_up(self, admin: Admin, claim: str, customer: str, stripe_customer: str) -> None:
        """Withdraw a claim that came to nothing."""
        _, state = await self._read(admin, customer)
        if state.stripe_customer != stripe_customer:
            await admin.run(self._store.scripts["claim"], [claim], customer, "")

    def _view(self, customer: str, state: CustomerState) -> Customer:
        standing = standing_at(state, self._store.catalog, self._store.now_ms())
        return Customer(
            customer=customer,
            plan=standing.plan.key,
            status=state.status,
            access=standing.access,
            stripe_customer=state.stripe_customer,
            overrides=state.overrides,
        )

    async def _read(self, admin: Admin, customer: str) -> tuple[str, CustomerState]:
        key = self._store.keys.customer(customer).state
        rev, data = await admin.ask(admin.client.hmget(key, ["rev", "data"]))
        return (rev or NO_STATE.encode()).decode(), CustomerState.parse(data or b"")

    async def _change(self, customer: str, change: Callable[[CustomerState], CustomerState]) -> Customer:
        check_customer(customer)
        admin, keys = await self._store.admin(), self._store.keys.customer(customer)
        names = [
            keys.counters,
            keys.state,
            self._store.keys.shard(keys.shard, "customers"),
            keys.dirty,
            keys.unlinked,
        ]
        for _ in range(_TRIES):
            rev, state = await self._read(admin, customer)
            changed = change(state)
            if changed == state and rev != NO_STATE:
                return self._view(customer, state)
            reply = await admin.run(
                self._store.scripts["amend"],
                names,
                rev,
                f"{FORMAT}:{token_hex(8)}",
                changed.dump(),
                customer,
                int(changed.stripe_customer is not None),
                self._store.now_ms(),
            )
            if reply[0] == 0:
                return self._view(customer, changed)
        raise StoreError(
            f"customer {customer!r} changed {_TRIES} times while it was being changed; try again"
        )
