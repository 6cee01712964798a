"""Prices, products and their price schemes: what a quantity costs, exact until it is rounded once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.currency_amounts import decimal_text
from stripe_emulator.protocol import ApiError, JsonObject, shown_fields
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.call import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingTier:
    """One tier of a price.

    Attributes:
        up_to: the last unit of it; None: no end.
        unit_amount: minor units of the currency for each unit in it; None: it was given no such amount.
        flat_amount: minor units for reaching it; likewise.
    """

    up_to: int | None
    unit_amount: Decimal | None = None
    flat_amount: Decimal | None = None

    @property
    def unit(self) -> Decimal:
        """The charge for each unit in it."""
        return self.unit_amount or Decimal(0)

    @property
    def flat(self) -> Decimal:
        """The charge for reaching it."""
        return self.flat_amount or Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceScheme:
    """A pricing scheme: per unit, by packages or by tiers.

    Attributes:
        unit_amount: minor units of the currency per unit or package; None where it has tiers.
        tiers_mode: ``graduated`` or ``volume``; None where it has none.
        divide_by: units in a package; None: units are priced singly.
        round_up: whether a package begun counts as a whole.
    """

    unit_amount: Decimal | None = None
    tiers: tuple[PricingTier, ...] = ()
    tiers_mode: str | None = None
    divide_by: int | None = None
    round_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyOption:
    """A price in another of its currencies.

    Attributes:
        tax_behavior: None: that of the price, which is assumed.
    """

    pricing: PriceScheme
    tax_behavior: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCharge:
    """The charge of a quantity at one tier, which is a line of an invoice.

    Attributes:
        amount: minor units of the currency, not rounded yet.
        tier: its number, from 1; None where the price has one amount for all units.
    """

    quantity: Decimal
    amount: Fraction
    unit_amount: Decimal
    tier: int | None = None


def to_cents(amount: Fraction) -> int:
    """Round to whole minor units, half away from zero, so that a credit mirrors its charge.

    Stripe's own examples: a third of 20 USD is 6.67, of 10 USD 3.33, and half of 8.34 USD is credited as
    4.17 (https://docs.stripe.com/billing/subscriptions/prorations).
    """
    exact = abs(amount)
    cents = int((2 * exact + 1) // 2)
    return cents if amount >= 0 else -cents


def price_quantity(pricing: PriceScheme, quantity: Decimal) -> Fraction:
    """Return the price of a quantity for a whole interval, in minor units, not rounded."""
    return sum((charge.amount for charge in charges_by_tier(pricing, quantity)), Fraction(0))


def charges_by_tier(pricing: PriceScheme, quantity: Decimal) -> list[TierCharge]:
    """Return the charges of a quantity for a whole interval: with graduated tiers, one for each tier.

    ``transform_quantity`` divides the quantity and rounds it before it is multiplied
    (https://docs.stripe.com/api/prices/object#price_object-transform_quantity). Graduated tiers charge each
    unit at its own tier, volume tiers all units at the tier of the last
    (https://docs.stripe.com/products-prices/pricing-models#tiered-pricing).
    """
    if pricing.tiers_mode == "graduated":
        return _graduated_charges(pricing.tiers, quantity)
    if pricing.tiers_mode == "volume":
        return _volume_charge(pricing.tiers, quantity)
    unit_amount = pricing.unit_amount or Decimal(0)
    packages = quantity
    if pricing.divide_by is not None:
        rounding = ROUND_CEILING if pricing.round_up else ROUND_FLOOR
        packages = (quantity / pricing.divide_by).to_integral_value(rounding=rounding)
    amount = Fraction(packages) * Fraction(unit_amount)
    return [TierCharge(quantity=quantity, amount=amount, unit_amount=unit_amount)]


def _graduated_charges(tiers: Sequence[PricingTier], quantity: Decimal) -> list[TierCharge]:
    charges: list[TierCharge] = []
    below = Decimal(0)
    for number, tier in enumerate(tiers, 1):
        end = quantity if tier.up_to is None else min(quantity, Decimal(tier.up_to))
        inside = end - below
        if inside > 0 or number == 1:
            amount = Fraction(inside) * Fraction(tier.unit) + Fraction(tier.flat)
            charges.append(TierCharge(quantity=inside, amount=amount, unit_amount=tier.unit, tier=number))
        below = max(below, end)
    return charges


def _volume_charge(tiers: Sequence[PricingTier], quantity: Decimal) -> list[TierCharge]:
    number, tier = next(
        (number, tier) for number, tier in enumerate(tiers, 1) if tier.up_to is None or quantity <= tier.up_to
    )
    amount = Fraction(quantity) * Fraction(tier.unit) + Fraction(tier.flat)
    return [TierCharge(quantity=quantity, amount=amount, unit_amount=tier.unit, tier=number)]


PRODUCT_TEXTS: Final = ("description", "statement_descriptor", "tax_code", "unit_label", "url")


@dataclass(slots=True, kw_only=True)
class Product:
    """A product. ``created`` and ``updated`` are in Unix seconds; ``default_price`` is the id of a price."""

    id: str
    name: str
    created: int
    updated: int
    livemode: bool = False
    active: bool = True
    default_price: str | None = None
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(PRODUCT_TEXTS))
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def apply(self, params: Params) -> None:
        """Apply the parameters of a call, except name and default price."""
        params.update_metadata("metadata", self.metadata)
        self.texts = {name: params.text_or(name, known) for name, known in self.texts.items()}
        self.active = params.boolean("active", default=self.active)

    def to_json(self) -> JsonObject:
        """Return the product as Stripe shows it (https://docs.stripe.com/api/products/object)."""
        return {
            **shown_fields(self, "texts"),
            "object": "product",
            "attributes": [],
            "images": [],
            "marketing_features": [],
            "package_dimensions": None,
            "shippable": None,
            "type": "service",
            **self.texts,
        }


class Products(ObjectRegistry[Product]):
    """All products of the emulated account, oldest first."""

    def add(self, added: Product) -> None:
        """Add a product. Raises ApiError if its id is taken."""
        if added.id in self:
            raise ApiError("Product already exists.", code="resource_already_exists")
        super().add(added)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceInterval:
    """The interval at which a price is charged, and its meter.

    Attributes:
        interval: ``day``, ``week``, ``month`` or ``year``.
        meter: id of the meter whose usage is charged; None: a quantity is charged in advance.
    """

    interval: str
    interval_count: int = 1
    meter: str | None = None

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        usage_type = "licensed" if self.meter is None else "metered"
        return {**shown_fields(self), "trial_period_days": None, "usage_type": usage_type}


@dataclass(slots=True, kw_only=True)
class Price:
    """A price.

    Attributes:
        product: its id.
        inline: whether it was described where it is used: nothing else can use it, and no list shows it.
        pricing: what a quantity costs.
        options: what it costs in its other currencies (``currency_options``).
        recurring: None: it is charged once.
        shown_as: the price itself, where this is :meth:`in_currency`; None: this is the price.
    """

    id: str
    product: str
    currency: str
    created: int
    pricing: PriceScheme
    livemode: bool = False
    active: bool = True
    inline: bool = False
    recurring: PriceInterval | None = None
    lookup_key: str | None = None
    nickname: str | None = None
    tax_behavior: str = "unspecified"
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    options: dict[str, CurrencyOption] = field(default_factory=dict[str, CurrencyOption])
    shown_as: Price | None = None

    @property
    def currencies(self) -> tuple[str, ...]:
        """Its currencies, the default one first."""
        price = self.shown_as or self
        return (price.currency, *price.options)

    def in_currency(self, currency: str) -> Price:
        """Return the price as it is charged in one of its currencies. It is shown in its default one.

        An amount that is changed later is for new uses: Stripe's pages do not say that it changes what is
        subscribed to.

        Raises:
            KeyError: it has no such currency.
        """
        price = self.shown_as or self
        if currency == price.currency:
            return price
        option = price.options[currency]
        tax = option.tax_behavior or price.tax_behavior
        return replace(price, currency=currency, pricing=option.pricing, tax_behavior=tax, shown_as=price)

    @property
    def is_metered(self) -> bool:
        """True if it is charged by a meter's usage, after the period."""
        return self.recurring is not None and self.recurring.meter is not None

    @property
    def cycle(self) -> PriceInterval:
        """The interval of a recurring price. Raises ValueError if it is charged once."""
        if self.recurring is None:
            raise ValueError(f"{self.id} is charged once and has no cycle")
        return self.recurring

    def to_json(self) -> JsonObject:
        """Return the price as Stripe shows it, in its default currency (https://docs.stripe.com/api/prices/object)."""
        if self.shown_as is not None:
            return self.shown_as.to_json()
        pricing = self.pricing
        return {
            **shown_fields(self, "pricing inline options shown_as"),
            "object": "price",
            "billing_scheme": "tiered" if pricing.tiers else "per_unit",
            "custom_unit_amount": None,
            "recurring": None if self.recurring is None else self.recurring.to_json(),
            "tiers_mode": pricing.tiers_mode,
            "transform_quantity": None
            if pricing.divide_by is None
            else {"divide_by": pricing.divide_by, "round": "up" if pricing.round_up else "down"},
            "type": "one_time" if self.recurring is None else "recurring",
            **_unit_amount_to_json(pricing),
        }

    def tiers_to_json(self) -> list[JsonObject]:
        """Return the tiers, which Stripe shows only where they are expanded."""
        return [
            {
                **_amount_to_json("flat_amount", tier.flat_amount),
                **_amount_to_json("unit_amount", tier.unit_amount),
                "up_to": tier.up_to,
            }
            for tier in self.pricing.tiers
        ]

    def options_to_json(self) -> dict[str, JsonObject]:
        """Return the amounts of all currencies, which Stripe shows only where they are expanded.

        https://docs.stripe.com/api/prices/object#price_object-currency_options: without tiers, which are
        expanded by themselves.
        """
        return {
            currency: {
                "custom_unit_amount": None,
                "tax_behavior": priced.tax_behavior,
                **_unit_amount_to_json(priced.pricing),
            }
            for currency in self.currencies
            for priced in (self.in_currency(currency),)
        }


class Prices(ObjectRegistry[Price]):
    """All prices of the emulated account, oldest first."""

    def add(self, added: Price, *, transfer_lookup_key: bool = False) -> None:
        """Add a price.

        Raises:
            ApiError: its lookup key is another's.
            ValueError: its id is taken.
        """
        if added.id in self:
            raise ValueError(f"there is already a price {added.id}: choose another id")
        self.claim_lookup_key(added, transfer=transfer_lookup_key)
        super().add(added)

    def find_active(self, params: Params) -> Price:
        """Return the ``price`` that parameters name. Raises ApiError if there is none that is active."""
        price = self.find(params.required("price"), param=params.path("price"))
        if not price.active:
            message = "The price specified is inactive. This field only accepts active prices."
            raise ApiError(message, param=params.path("price"))
        return price

    def claim_lookup_key(self, price: Price, *, transfer: bool) -> None:
        """Claim a price's lookup key for it alone.

        ``transfer`` takes the key from the other price, else that is refused
        (https://docs.stripe.com/products-prices/manage-prices#lookup-keys).
        """
        for other in self:
            if other is price or price.lookup_key is None or other.lookup_key != price.lookup_key:
                continue
            if not transfer:
                raise ApiError(f"A price (`{other.id}`) already uses that lookup key.", param="lookup_key")
            other.lookup_key = None


def _unit_amount_to_json(pricing: PriceScheme) -> JsonObject:
    return _amount_to_json("unit_amount", pricing.unit_amount)


def _amount_to_json(name: str, amount: Decimal | None) -> JsonObject:
    """Return an amount as Stripe shows it; one that was not given is null."""
    return {
        name: None if amount is None else _integer_or_none(amount),
        f"{name}_decimal": None if amount is None else decimal_text(amount),
    }


def _integer_or_none(amount: Decimal) -> int | None:
    return int(amount) if amount == int(amount) else None
