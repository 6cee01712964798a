"""Sample parameters for every field of a parameter type of the official Stripe SDK."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

# A field of this list is not sampled; each with the reason.
LEFT_OUT: Final[Mapping[str, str]] = {
    "expand": "of the call",
    "price_data": "makes a price",
    "plan": "the old name of the price",
    "clear_usage": "refused in the flexible billing mode",
    "deleted": "a change",
}
VALUES: Final[Mapping[str, Any]] = {
    "account": "acct_1",
    "account_tax_ids": "txi_1",
    "amount_gte": 5_000,
    "amount_percent": 40.5,
    "application_fee_percent": 12.5,
    "billing_cycle_anchor": "automatic",
    "collection_method": "send_invoice",
    "coupon": "HALF",
    "discount": "di_1",
    "promotion_code": "promo_1",
    "currency": "usd",
    "days_until_due": 30,
    "default_payment_method": "pm_card_visa",
    "default_source": "card_1",
    "default_tax_rates": "txr_default",
    "description": "Terms of 2031",
    "destination": "acct_2",
    "discountable": True,
    "enabled": True,
    "footer": "Thank you",
    "interval": "week",
    "interval_count": 2,
    "metadata": {"kept": "yes", "object": "no object"},
    "name": "Purchase order",
    "on_behalf_of": "acct_3",
    "price": "price_once",
    "proration_behavior": "create_prorations",
    "quantity": 2,
    "reset_billing_cycle_anchor": False,
    "tax_rates": "txr_item",
    "usage_gte": 900,
    "value": "PO-17",
}
# Where the values of one field depend on where it is.
BY_PLACE: Final[Mapping[tuple[str, str], Any]] = {
    ("liability", "type"): "account",
    ("issuer", "type"): "account",
    ("start", "type"): "timestamp",
    ("end", "type"): "timestamp",
    ("start", "timestamp"): 1_938_211_200,
    ("end", "timestamp"): 1_940_803_200,
}


def fields(kind: object) -> dict[str, Any]:
    module = sys.modules[str(getattr(kind, "__module__", ""))]
    hints = get_type_hints(kind, globalns=vars(module), localns=_Names(vars(module)))
    own: Mapping[str, object] = getattr(kind, "__annotations__", {})
    return {name: hint for name, hint in hints.items() if name in own and not name.startswith("_")}


class _Unknown:
    """A type that the SDK imports for type checkers only."""

    def __class_getitem__(cls, _: object) -> type[_Unknown]:
        return cls


class _Names(dict[str, Any]):
    """The names of a module, with those that it imports for type checkers only."""

    def __missing__(self, name: str) -> Any:
        return vars(builtins).get(name, _Unknown)


def sample(kind: object, *, without: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A value for every field of a type but those of ``LEFT_OUT`` and ``without``.

    KeyError: the SDK has a field that there is no value for.
    """
    skipped = {**LEFT_OUT, **(without or {})}
    return {
        name: _value(hint, name, place=str(getattr(kind, "__name__", "")))
        for name, hint in fields(kind).items()
        if name not in skipped
    }


def _value(hint: object, name: str, *, place: str) -> Any:
    if _is_object(hint):
        return _discount(sample(hint)) if name == "discounts" else sample(hint)
    if get_origin(hint) is list:
        return [_value(get_args(hint)[0], name, place=place)]
    parts = cast("tuple[object, ...]", get_args(hint)) if name not in VALUES or name.endswith("s") else ()
    for part in parts:
        if _is_object(part) or get_origin(part) is list:
            return _value(part, name, place=place)
    for (parent, own), value in BY_PLACE.items():
        if own == name and place.lower().endswith(parent):
            return value
    return VALUES[name]


def _is_object(hint: object) -> bool:
    """Whether a type is a TypedDict, of ``typing_extensions`` too."""
    return hasattr(hint, "__required_keys__")


def _discount(every: dict[str, Any]) -> dict[str, Any]:
    return {"coupon": every["coupon"]}
