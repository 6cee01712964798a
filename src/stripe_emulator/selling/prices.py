"""Products and prices, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import ApiError, JsonObject, fields_of
from stripe_emulator.registry import Registry

if TYPE_CHECKING:
    from decimal import Decimal

    from stripe_emulator.call import Params
    from stripe_emulator.selling.amounts import Pricing

TEXTS: Final = ("description", "statement_descriptor", "tax_code", "unit_label", "url")


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
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(TEXTS))
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def apply(self, params: Params) -> None:
        """Take over what a call gives of it; its name and default price aside."""
        params.amend("metadata", self.metadata)
        self.texts = {name: params.text_or(name, known) for name, known in self.texts.items()}
        self.active = params.boolean("active", default=self.active)

    def to_json(self) -> JsonObject:
        """Return the product as Stripe shows it (https://docs.stripe.com/api/products/object)."""
        return {
            **fields_of(self, "texts"),
            "object": "product",
            "attributes": [],
            "images": [],
            "marketing_features": [],
            "package_dimensions": None,
            "shippable": None,
            "type": "service",
            **self.texts,
        }


class Products(Registry[Product]):
    """All products of the emulated account, oldest first."""

    def __init__(self) -> None:
        super().__init__("product")

    def add(self, added: Product) -> None:
        """Add a product. Raises ApiError if its id is taken."""
        if added.id in self:
            raise ApiError("Product already exists.", code="resource_already_exists")
        super().add(added)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring:
    """How often a price is charged.

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
        return {**fields_of(self), "trial_period_days": None, "usage_type": usage_type}


@dataclass(slots=True, kw_only=True)
class Price:
    """A price.

    Attributes:
        product: its id.
        inline: whether it was described where it is used: nothing else can use it, and no list shows it.
        pricing: what a quantity costs.
        recurring: None: it is charged once.
    """

    id: str
    product: str
    currency: str
    created: int
    pricing: Pricing
    livemode: bool = False
    active: bool = True
    inline: bool = False
    recurring: Recurring | None = None
    lookup_key: str | None = None
    nickname: str | None = None
    tax_behavior: str = "unspecified"
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_metered(self) -> bool:
        """Whether it is charged by the usage of a meter, after the period."""
        return self.recurring is not None and self.recurring.meter is not None

    @property
    def cycle(self) -> Recurring:
        """How often it is charged. Raises ValueError if that is once."""
        if self.recurring is None:
            raise ValueError(f"{self.id} is charged once and has no cycle")
        return self.recurring

    def to_json(self) -> JsonObject:
        """Return the price as Stripe shows it (https://docs.stripe.com/api/prices/object)."""
        pricing, unit = self.pricing, self.pricing.unit_amount
        return {
            **fields_of(self, "pricing", "inline"),
            "object": "price",
            "billing_scheme": "tiered" if pricing.tiers else "per_unit",
            "custom_unit_amount": None,
            "recurring": None if self.recurring is None else self.recurring.to_json(),
            "tiers_mode": pricing.tiers_mode,
            "transform_quantity": None
            if pricing.divide_by is None
            else {"divide_by": pricing.divide_by, "round": "up" if pricing.round_up else "down"},
            "type": "one_time" if self.recurring is None else "recurring",
            "unit_amount": None if unit is None else _whole(unit),
            "unit_amount_decimal": None if unit is None else shown(unit),
        }

    def tiers_to_json(self) -> list[JsonObject]:
        """Return the tiers, which Stripe shows only where they are expanded."""
        return [
            {
                "flat_amount": _whole(tier.flat_amount) if tier.flat_amount else None,
                "flat_amount_decimal": shown(tier.flat_amount) if tier.flat_amount else None,
                "unit_amount": _whole(tier.unit_amount),
                "unit_amount_decimal": shown(tier.unit_amount),
                "up_to": tier.up_to,
            }
            for tier in self.pricing.tiers
        ]


class Prices(Registry[Price]):
    """All prices of the emulated account, oldest first."""

    def __init__(self) -> None:
        super().__init__("price")

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

    def claim_lookup_key(self, price: Price, *, transfer: bool) -> None:
        """Make sure that a price's lookup key names it alone.

        ``transfer`` takes the key from the other price, else that is refused
        (https://docs.stripe.com/products-prices/manage-prices#lookup-keys).
        """
        for other in self:
            if other is price or price.lookup_key is None or other.lookup_key != price.lookup_key:
                continue
            if not transfer:
                message = f"A price (`{other.id}`) already uses that lookup key."
                raise ApiError(message, param="lookup_key")
            other.lookup_key = None


def shown(amount: Decimal) -> str:
    """Return a decimal as Stripe writes it: ``0.12``, ``2900``."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole(amount: Decimal) -> int | None:
    return int(amount) if amount == int(amount) else None
