"""The Stripe emulator, with meters, products and prices from a plans file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import stripe_emulator
from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.subscriptions.stripe_objects import pack_key
from meterkit.subscriptions.wanted_prices import (
    pack_params,
    pack_product,
    params_of,
    product_params,
    wanted_addons,
    wanted_plans,
)
from stripe_emulator import Delivery, Event, Exchange, Fault, MeterEvent, ThinEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.wanted_prices import WantedPrice, WantedProduct

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
        """Sell what a plans file sells: plans that cost something or name a price, add-ons and top-ups.

        The meters, products and prices are those that ``meterkit stripe sync`` makes. Prices have the ids of
        the plans file, else ``price_PLAN``, ``price_PLAN_seats``, ``price_PLAN_METER``, ``price_addon_ADDON``
        and ``price_top_up_CREDIT_CENTS``; products are ``prod_PLAN``, ``prod_PLAN_seats``,
        ``prod_meter_METER``, ``prod_addon_ADDON`` and ``prod_top_up_CREDIT``. What is there already stays as
        it is, and usage for which sync would refuse to make a price has none. With
        ``billing: {usage: lines}`` there are no meters and no metered prices; the products of lines are made
        with the first lines.
        """
        with self._account.lock:
            for meter in () if catalog.billing.is_by_lines else catalog.meters.values():
                if meter.stripe is not None and self._account.meters.active(meter.stripe.event_name) is None:
                    self.add_meter(meter.stripe.event_name)
            for plan in wanted_plans(catalog):
                for price in plan.prices:
                    word = {"price": "", "seat_price": "_seats"}.get(price.line, f"_{price.line}")
                    self._add_price(price, f"price_{plan.plan}{word}")
            for addon in wanted_addons(catalog):
                for price in addon.prices:
                    self._add_price(price, f"price_{price.product.word}")
            if (sold := find_top_ups(catalog.credits)) is not None:
                credit, top_ups = sold
                for amount_cents in top_ups.amounts:
                    self._add_pack(credit, amount_cents)

    def _add_price(self, wanted: WantedPrice, default_id: str) -> None:
        """Add a price and its product, unless they are there."""
        price_id, product = wanted.stripe_price or default_id, f"prod_{wanted.product.word}"
        if self._has_price(price_id, wanted.key if wanted.has_lookup_key else price_id):
            return
        self._add_product_once(wanted.product, product)
        meter = self._account.meters.active(wanted.shape.meter or "")
        params = params_of(wanted, product=product, meter=None if meter is None else meter.id)
        self.add_price(**_keywords(params), price_id=price_id)

    def _add_pack(self, credit: str, amount_cents: int) -> None:
        """Add the price of a top-up and its product, unless they are there."""
        wanted = pack_product(credit)
        price_id, product = f"price_{wanted.word}_{amount_cents}", f"prod_{wanted.word}"
        if self._has_price(price_id, pack_key(credit, amount_cents)):
            return
        self._add_product_once(wanted, product)
        params = pack_params(credit, amount_cents, product=product, currency=BALANCE_CURRENCY)
        self.add_price(**_keywords(params), interval=None, price_id=price_id)

    def _has_price(self, price_id: str, lookup_key: str) -> bool:
        return any(price.id == price_id or price.lookup_key == lookup_key for price in self._account.prices)

    def _add_product_once(self, wanted: WantedProduct, product_id: str) -> None:
        if all(each.id != product_id for each in self._account.products):
            self.add_product(**_keywords(product_params(wanted)), product_id=product_id)


def _keywords(params: Mapping[str, Parameter]) -> Mapping[str, Any]:
    return params
