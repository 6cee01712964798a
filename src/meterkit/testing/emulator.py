"""The Stripe emulator, with meters, products and prices from a plans file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import stripe_emulator
from meterkit.subscriptions.wanted_prices import params_of, product_params, wanted_plans
from stripe_emulator import Delivery, Event, Exchange, Fault, MeterEvent, ThinEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.wanted_prices import WantedPrice

__all__ = ["Delivery", "Event", "Exchange", "Fault", "MeterEvent", "StripeEmulator", "ThinEvent"]


@dataclass(kw_only=True, eq=False, repr=False)
class StripeEmulator(stripe_emulator.StripeEmulator):
    """A :class:`stripe_emulator.StripeEmulator` that also sells the plans of a plans file.

    Arguments and methods are those of the base class.
    """

    def add_meters(self, catalog: Catalog) -> None:
        """Add a meter for each Stripe event of a plans file.

        Raises:
            ValueError: if an active meter has one of their event names.
        """
        for meter in catalog.meters.values():
            if meter.stripe is not None:
                self.add_meter(meter.stripe.event_name)

    def add_plans(self, catalog: Catalog) -> None:
        """Sell the plans of a plans file that cost something or name a ``stripe_price``.

        The meters, products and prices are those that ``meterkit stripe sync`` makes. Prices have the ids of
        the plans file, else ``price_PLAN``, ``price_PLAN_seats`` and ``price_PLAN_METER``; products are
        ``prod_PLAN``, ``prod_PLAN_seats`` and ``prod_meter_METER``. What is there already stays as it is, and
        usage for which sync would refuse to make a price has none.
        """
        with self._account.lock:
            for meter in catalog.meters.values():
                if meter.stripe is not None and self._account.meters.active(meter.stripe.event_name) is None:
                    self.add_meter(meter.stripe.event_name)
            for plan in wanted_plans(catalog):
                for price in plan.prices:
                    self._add_plan_price(plan.plan, price)

    def _add_plan_price(self, plan: str, wanted: WantedPrice) -> None:
        """Add a price of a plan and its product, unless they are there."""
        word = {"price": "", "seat_price": "_seats"}.get(wanted.line, f"_{wanted.line}")
        price_id, product = wanted.stripe_price or f"price_{plan}{word}", f"prod_{wanted.product.word}"
        if any(price.id == price_id or price.lookup_key == wanted.key for price in self._account.prices):
            return
        if all(each.id != product for each in self._account.products):
            self.add_product(**_keywords(product_params(wanted.product)), product_id=product)
        meter = self._account.meters.active(wanted.shape.meter or "")
        params = params_of(wanted, product=product, meter=None if meter is None else meter.id)
        self.add_price(**_keywords(params), price_id=price_id)


def _keywords(params: Mapping[str, Parameter]) -> Mapping[str, Any]:
    return params
