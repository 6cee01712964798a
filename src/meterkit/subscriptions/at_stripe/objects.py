"""Parts of Stripe's objects, lookup keys of prices, and what a browser must confirm. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog

CUSTOMER: Final = "meterkit_customer"
"""The key of the metadata at Stripe under which the app's own id of a customer stands."""


def part_of(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part that is an object; an empty one where it is none, or only its id."""
    inner: object = found.get(name)
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}


def text_in(found: Mapping[str, Any], name: str) -> str:
    """A text; empty where there is none."""
    inner: object = found.get(name)
    return inner if isinstance(inner, str) else ""


def id_in(found: Mapping[str, Any], name: str) -> str:
    """The id of a part, expanded or not; empty where there is none."""
    return text_in(found, name) or text_in(part_of(found, name), "id")


MARK: Final = "meterkit"
"""The key of the metadata of prices and products under which their lookup key stands."""
_METER: Final = "meter"


def base_key(plan: str) -> str:
    """The lookup key of a plan's base price."""
    return f"{MARK}:{plan}:base"


def seat_key(plan: str) -> str:
    """The lookup key of the price of a plan's seats."""
    return f"{MARK}:{plan}:seats"


def meter_key(plan: str, meter: str) -> str:
    """The lookup key of a plan's price on a meter."""
    return f"{MARK}:{plan}:{_METER}:{meter}"


def is_metered_key(key: str, plan: str) -> bool:
    """Whether a key is that of one of the plan's prices on a meter."""
    return key.startswith(meter_key(plan, ""))


def key_in(price: Mapping[str, Any]) -> str:
    """The key of a price as Stripe shows it, of one that was replaced too; empty: it was made by hand."""
    key = text_in(price, "lookup_key")
    return key if key.startswith(f"{MARK}:") else text_in(part_of(price, "metadata"), MARK)


def plan_of_price(price: str, key: str, catalog: Catalog) -> str | None:
    """The plan whose base price this is; None: of none. An id in the plans file wins over a key."""
    named = (plan.key for plan in catalog.plans.values() if plan.price.stripe_price == price)
    keyed = (plan.key for plan in catalog.plans.values() if key == base_key(plan.key))
    return next(named, None) or next(keyed, None)


SECRETS: Final = ("latest_invoice.confirmation_secret", "pending_setup_intent")
"""What of a subscription Stripe is to expand, so that the secret is there."""


def secret_of(found: Mapping[str, Any]) -> str | None:
    """The client secret of what a browser is to confirm; None: nothing is to be."""
    payment = part_of(part_of(found, "latest_invoice"), "confirmation_secret")
    later = part_of(found, "pending_setup_intent")
    return text_in(payment, "client_secret") or text_in(later, "client_secret") or None
