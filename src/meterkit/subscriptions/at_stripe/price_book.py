"""The prices of all plans at Stripe, asked for once an hour."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.errors import StripeError, UnknownPlanError
from meterkit.subscriptions.at_stripe.plan_prices import prices_of
from meterkit.subscriptions.rules.sold import is_sold

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.catalog import Plan
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.at_stripe.items import PlanPrices

__all__ = ["PriceBook"]

_LASTS_MS: Final = 3_600_000


class PriceBook:
    """Remembers what the plans cost at Stripe, for looks at many customers.

    Args:
        store: whose plans file is meant.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api
        self._known: dict[str, tuple[Plan, int, PlanPrices | None]] = {}

    async def of(self, plan: Plan, *, within_ms: int = _LASTS_MS) -> PlanPrices | None:
        """The prices of a plan; None: Stripe does not have its base price.

        Args:
            plan: a plan that is sold.
            within_ms: how old what is remembered may be.

        Raises:
            StripeError: Stripe refuses, or does not answer.
        """
        now_ms = self._store.now_ms()
        known, at_ms, prices = self._known.get(plan.key, (None, 0, None))
        if known is not plan or not at_ms <= now_ms < at_ms + within_ms:
            prices = await self._asked(plan)
            self._known[plan.key] = plan, now_ms, prices
        return prices

    async def all(self) -> dict[str, PlanPrices | None]:
        """The prices of each plan that is sold, by its key, as they are now. Raises StripeError."""
        sold = filter(is_sold, self._store.catalog.plans.values())
        return {plan.key: await self.of(plan, within_ms=0) for plan in sold}

    async def _asked(self, plan: Plan) -> PlanPrices | None:
        try:
            return await prices_of(self._api(), self._store.catalog, plan)
        except UnknownPlanError:
            return None
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
