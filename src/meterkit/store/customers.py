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
from meterkit.store.state import NO_STATE, CustomerState, Status, standing_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from meterkit.store.admin import Admin
    from meterkit.store.state import Access
    from meterkit.store.store import Store

__all__ = ["Customer", "Customers"]

_TRIES: Final = 32
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
            lay_over(catalog, plan, overrides, strict=True)

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
        admin = await self._store.admin()
        claim = self._store.keys.link(stripe_customer)
        await admin.ask(admin.client.set(claim, customer, nx=True))
        owner = (await admin.ask(admin.client.get(claim))).decode()
        if owner != customer:
            raise CustomerError(f"Stripe customer {stripe_customer} is linked to customer {owner!r} already")

        def change(state: CustomerState) -> CustomerState:
            if state.stripe_customer not in {None, stripe_customer}:
                raise CustomerError(
                    f"customer {customer!r} is linked to Stripe customer {state.stripe_customer} already"
                )
            return replace(state, stripe_customer=stripe_customer)

        try:
            return await self._change(customer, change)
        except CustomerError:
            await admin.ask(admin.client.delete(claim))
            raise

    async def delete(self, customer: str) -> None:
        """Forget a customer: state, link and counters.

        Raises:
            CustomerError: usage of this customer is not delivered yet; flush first.
        """
        admin, keys = await self._store.admin(), self._store.keys.customer(check_customer(customer))
        _, state = await self._read(admin, customer)
        if await admin.ask(admin.client.zscore(keys.dirty, customer)) is not None:
            raise CustomerError(f"customer {customer!r} has usage that is not delivered yet; flush first")
        await self._change(customer, lambda _: None)
        gone = [keys.counters, keys.totals]
        if state.stripe_customer is not None:
            await admin.ask(admin.client.delete(self._store.keys.link(state.stripe_customer)))
        await admin.ask(admin.client.zrem(keys.unlinked, customer))
        await admin.ask(admin.client.delete(*gone))

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

    async def _change(
        self, customer: str, change: Callable[[CustomerState], CustomerState | None]
    ) -> Customer:
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
                NO_STATE if changed is None else f"{FORMAT}:{token_hex(8)}",
                "" if changed is None else changed.dump(),
                customer,
                int(changed is not None and changed.stripe_customer is not None),
                self._store.now_ms(),
            )
            if reply[0] == 0:
                return self._view(customer, changed or CustomerState())
        raise StoreError(
            f"customer {customer!r} changed {_TRIES} times while it was being changed; try again"
        )
