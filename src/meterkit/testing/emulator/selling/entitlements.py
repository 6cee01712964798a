"""Features of products, and the active entitlements that subscriptions to them give a customer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.testing.emulator.protocol import ApiError, JsonObject, no_such
from meterkit.testing.emulator.registry import Registry

if TYPE_CHECKING:
    from meterkit.testing.emulator.webhooks.events import Emit

__all__ = ["Entitlements", "Feature", "Features", "entitlement_to_json"]

# A paused one keeps them, by word of Stripe (https://lune.dev/questions/3882).
ENTITLED: Final = frozenset({"active", "trialing", "past_due", "paused"})
# As many of them are in the event as in the first page of a list.
SHOWN_MAX: Final = 10


@dataclass(slots=True, kw_only=True)
class Feature:
    """A feature that products may have."""

    id: str
    lookup_key: str
    name: str
    livemode: bool = False
    active: bool = True
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the feature as Stripe shows it (https://docs.stripe.com/api/entitlements/feature/object)."""
        return {
            "id": self.id,
            "object": "entitlements.feature",
            "active": self.active,
            "livemode": self.livemode,
            "lookup_key": self.lookup_key,
            "metadata": dict(self.metadata),
            "name": self.name,
        }


class Features(Registry[Feature]):
    """All features of the emulated account, and which products have them."""

    what = "entitlement feature"

    def __init__(self) -> None:
        super().__init__()
        self._of_products: dict[str, dict[str, str]] = {}

    def add(self, feature: Feature) -> None:
        """Take over a feature. Raises ApiError where an active one has its lookup key."""
        if any(other.active and other.lookup_key == feature.lookup_key for other in self):
            message = f"An active feature already uses the lookup key {feature.lookup_key}."
            raise ApiError(message, param="lookup_key")
        self._by_id[feature.id] = feature

    def attach(self, product: str, feature: Feature, *, attachment: str) -> None:
        """Give a product a feature. Raises ApiError where it has it, or the feature is archived."""
        if not feature.active:
            raise ApiError(
                "An archived feature cannot be attached to a product.", param="entitlement_feature"
            )
        attached = self._of_products.setdefault(product, {})
        if feature.id in attached.values():
            message = "This feature is already attached to this product."
            raise ApiError(message, param="entitlement_feature")
        attached[attachment] = feature.id

    def detach(self, product: str, attachment: str) -> None:
        """Take a feature from a product. Raises ApiError, 404, if it is not attached."""
        self.attached(product, attachment)
        del self._of_products[product][attachment]

    def attached(self, product: str, attachment: str) -> Feature:
        """Return the feature of an attachment. Raises ApiError, 404, if there is none."""
        found = self._of_products.get(product, {}).get(attachment)
        if found is None:
            raise no_such("product feature", attachment)
        return self._by_id[found]

    def of(self, product: str) -> dict[str, Feature]:
        """Return a product's features by the ids of their attachments."""
        attached = self._of_products.get(product, {})
        return {attachment: self._by_id[feature] for attachment, feature in attached.items()}


class Entitlements:
    """What customers are entitled to: the features that the products of their subscriptions had.

    They are settled when a subscription begins, when its status, items or period change, and when it ends; a
    feature that a product gets meanwhile comes with the next period
    (https://docs.stripe.com/billing/entitlements).
    """

    def __init__(self, features: Features, emit: Emit) -> None:
        self._features = features
        self._emit = emit
        self._of_subscriptions: dict[str, tuple[str, list[str]]] = {}

    @property
    def customers(self) -> list[str]:
        """Those who have or had a subscription."""
        return list(dict.fromkeys(owner for owner, _ in self._of_subscriptions.values()))

    def active(self, customer: str) -> list[Feature]:
        """Return the features that a customer is entitled to, each once."""
        ids = [
            feature
            for owner, features in self._of_subscriptions.values()
            if owner == customer
            for feature in features
        ]
        return [self._features.find(feature) for feature in dict.fromkeys(ids)]

    def observe(self, event_type: str, obj: JsonObject, *, changed: JsonObject | None, at_s: float) -> None:
        """Settle a customer's entitlements where an event is of a subscription, and tell of the change."""
        if not event_type.startswith("customer.subscription.") or not {"id", "customer"} <= obj.keys():
            return
        if changed is not None and not changed.keys() & {"items", "status", "current_period_start"}:
            return
        customer = str(obj["customer"])
        before = self._summary(customer, livemode=obj.get("livemode") is True)
        entitled = event_type != "customer.subscription.deleted" and obj.get("status") in ENTITLED
        granted = [
            feature.id for product in _products(obj) for feature in self._features.of(product).values()
        ]
        self._of_subscriptions[str(obj["id"])] = (customer, granted if entitled else [])
        after = self._summary(customer, livemode=obj.get("livemode") is True)
        self._emit("entitlements.active_entitlement_summary.updated", after, previous=before, at_s=at_s)

    def _summary(self, customer: str, *, livemode: bool) -> JsonObject:
        features = self.active(customer)
        shown = [entitlement_to_json(customer, feature) for feature in features[:SHOWN_MAX]]
        return {
            "object": "entitlements.active_entitlement_summary",
            "customer": customer,
            "entitlements": {
                "object": "list",
                "data": shown,
                "has_more": len(features) > SHOWN_MAX,
                "url": f"/v1/customer/{customer}/entitlements",
            },
            "livemode": livemode,
        }


def entitlement_to_json(customer: str, feature: Feature) -> JsonObject:
    """Return an entitlement as Stripe shows it."""
    name = hashlib.blake2b(f"{customer}:{feature.id}".encode(), digest_size=12).hexdigest()
    return {
        "id": f"ent_test_{name}",
        "object": "entitlements.active_entitlement",
        "feature": feature.id,
        "livemode": feature.livemode,
        "lookup_key": feature.lookup_key,
    }


def _products(subscription: JsonObject) -> list[str]:
    items = cast("dict[str, Any]", subscription.get("items") or {})
    return [str(item["price"]["product"]) for item in items.get("data", [])]
