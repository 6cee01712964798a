"""Products, by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.registry import Registry
from meterkit.testing.emulator.replies import ApiError, JsonObject

if TYPE_CHECKING:
    from meterkit.testing.emulator.call import Params

__all__ = ["TEXTS", "Product", "Products"]

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
        for name in TEXTS:
            if name in params:
                self.texts[name] = params.text(name) or None
        active = params.boolean("active")
        self.active = self.active if active is None else active

    def to_json(self) -> JsonObject:
        """Return the product as Stripe shows it (https://docs.stripe.com/api/products/object)."""
        return {
            "id": self.id,
            "object": "product",
            "active": self.active,
            "attributes": [],
            "created": self.created,
            "default_price": self.default_price,
            "images": [],
            "livemode": self.livemode,
            "marketing_features": [],
            "metadata": dict(self.metadata),
            "name": self.name,
            "package_dimensions": None,
            "shippable": None,
            "type": "service",
            "updated": self.updated,
            **self.texts,
        }


class Products(Registry[Product]):
    """All products of the emulated account, oldest first."""

    what = "product"

    def add(self, product: Product) -> None:
        """Take over a product. Raises ApiError if its id is taken."""
        if product.id in self._by_id:
            raise ApiError("Product already exists.", code="resource_already_exists")
        self._by_id[product.id] = product

    def remove(self, product: Product) -> None:
        """Forget a product."""
        del self._by_id[product.id]
