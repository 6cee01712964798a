"""Compares all subscriptions at Stripe with the plans file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.subscription import ENDED
from meterkit.store.customers import customers_set_up
from meterkit.store.drifts import Drifts
from meterkit.subscriptions.at_stripe.drift import LIVE, drift_of_customer, plan_in
from meterkit.subscriptions.at_stripe.items import items_of
from meterkit.subscriptions.at_stripe.live import whole
from meterkit.subscriptions.at_stripe.parts import id_in
from meterkit.subscriptions.at_stripe.price_book import PriceBook
from meterkit.subscriptions.at_stripe.reading import in_force, read_subscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from meterkit.decisions.drift import Drift
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.at_stripe.items import PlanPrices

__all__ = ["Checking"]

_PAGE: Final = 500
_EXPAND: Final = ("data.latest_invoice",)


class Checking:
    """Finds the customers whose subscriptions differ from the plans file.

    Args:
        store: where customers are kept.
        api: the way to Stripe.
        fetch: fetches a customer's subscription from Stripe into the store.
    """

    def __init__(
        self, store: Store, api: Callable[[], StripeApi], *, fetch: Callable[[str], Awaitable[object]]
    ) -> None:
        self._store = store
        self._api = api
        self._fetch = fetch
        self._book = PriceBook(store, api)

    async def run(self) -> dict[str, tuple[Drift, ...]]:
        """What differs, by customer, by one list of all subscriptions and the prices of each plan.

        A subscription that is stored otherwise than Stripe has it is fetched anew.
        """
        customers = await self._linked()
        found: dict[str, list[dict[str, Any]]] = {linked: [] for linked in customers}
        async for page in self._api().pages("/v1/subscriptions", {"status": "all", "expand": _EXPAND}):
            for one in page:
                own = found.get(id_in(one, "customer"))
                # Of those that have ended only the youngest can count: it comes first.
                if own is not None and (one.get("status") not in ENDED or not _have_ended(own)):
                    own.append(await whole(self._api(), one))
        prices = await self._book.all()
        drifts: dict[str, tuple[Drift, ...]] = {}
        for linked, (customer, known) in customers.items():
            chosen = in_force(found[linked], self._store.catalog, None if known is None else known.id)
            if self._is_behind(known, chosen):
                await self._fetch(customer)
            if drift := self._drift(found[linked], chosen, prices):
                drifts[customer] = drift
        await Drifts(self._store).replace(drifts)
        return dict(sorted(drifts.items()))

    async def _linked(self) -> dict[str, tuple[str, SubscriptionState | None]]:
        """Each Stripe customer that is linked: whose it is, and what is stored of the subscription."""
        admin, keys = await self._store.admin(), self._store.keys
        every = [customer async for customer in customers_set_up(admin, keys)]
        linked: dict[str, tuple[str, SubscriptionState | None]] = {}
        for start in range(0, len(every), _PAGE):
            batch = every[start : start + _PAGE]
            pipe = admin.client.pipeline(transaction=False)
            for customer in batch:
                pipe.hget(keys.customer(customer).state, "data")
            kept: list[bytes | None] = await admin.ask(pipe.execute())
            for customer, data in zip(batch, kept, strict=True):
                state = CustomerState.parse(data or b"")
                if state.stripe_customer is not None:
                    linked[state.stripe_customer] = customer, state.subscription
        return linked

    def _is_behind(self, known: SubscriptionState | None, chosen: Mapping[str, Any] | None) -> bool:
        """Whether what is stored is not what Stripe has."""
        if chosen is None:
            return known is not None
        try:
            read = read_subscription(chosen, self._store.catalog)
        except ValueError:
            return True
        return known is None or (known.id, known.status, known.plan, known.seats) != (
            *(read.id, read.status, read.plan, read.seats),
        )

    def _drift(
        self,
        found: Sequence[Mapping[str, Any]],
        chosen: Mapping[str, Any] | None,
        prices: Mapping[str, PlanPrices | None],
    ) -> tuple[Drift, ...]:
        catalog = self._store.catalog
        counts = chosen or next((one for one in found if one.get("status") in LIVE), None)
        plan = None if counts is None else plan_in(items_of(counts), catalog)
        return drift_of_customer(found, chosen, catalog, prices.get(plan.key) if plan else None)


def _have_ended(found: Sequence[Mapping[str, Any]]) -> bool:
    return any(one.get("status") in ENDED for one in found)
