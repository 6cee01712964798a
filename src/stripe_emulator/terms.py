"""Billing terms that subscriptions, schedule phases, default settings and items share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, cast

from stripe_emulator.protocol import ApiError, JsonObject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripe_emulator.call import Params

    Shape: TypeAlias = "type[bool | int | float | str] | Mapping[str, Shape] | list[Shape]"

ACCOUNT: Final[Mapping[str, Shape]] = {"account": str, "type": str}
INVOICE_SETTINGS: Final[Mapping[str, Shape]] = {
    "account_tax_ids": [str],
    "custom_fields": [{"name": str, "value": str}],
    "description": str,
    "footer": str,
    "issuer": ACCOUNT,
}
# The terms of a subscription that are not fields of their own
# (https://docs.stripe.com/api/subscriptions/update).
SUBSCRIPTION_TERMS: Final[Mapping[str, Shape]] = {
    "application_fee_percent": float,
    "billing_thresholds": {"amount_gte": int, "reset_billing_cycle_anchor": bool},
    "default_tax_rates": [str],
    "invoice_settings": INVOICE_SETTINGS,
    "on_behalf_of": str,
    "transfer_data": {"amount_percent": float, "destination": str},
}
# Terms of a subscription that no phase of a schedule has; they are shown, and change no amount here.
SHOWN_TERMS: Final[Mapping[str, Shape]] = {
    "default_source": str,
    "pending_invoice_item_interval": {"interval": str, "interval_count": int},
}
# https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-default_settings.
DEFAULT_SETTINGS: Final[Mapping[str, Shape]] = {
    **{name: shape for name, shape in SUBSCRIPTION_TERMS.items() if name != "default_tax_rates"},
    "automatic_tax": {"enabled": bool, "liability": ACCOUNT},
    "billing_cycle_anchor": str,
    "collection_method": str,
    "default_payment_method": str,
    "description": str,
    "invoice_settings": {**INVOICE_SETTINGS, "days_until_due": int},
}
# https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases.
PHASE_TERMS: Final[Mapping[str, Shape]] = {**DEFAULT_SETTINGS, "default_tax_rates": [str]}
# https://docs.stripe.com/api/subscriptions/update#update_subscription-items.
ITEM_TERMS: Final[Mapping[str, Shape]] = {"billing_thresholds": {"usage_gte": int}, "tax_rates": [str]}
EDGE: Final[Mapping[str, Shape]] = {"timestamp": int, "type": str}
# https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-add_invoice_items.
ADDED_TERMS: Final[Mapping[str, Shape]] = {
    "discountable": bool,
    "period": {"end": EDGE, "start": EDGE},
    "tax_rates": [str],
}
DEFAULT_PERIOD: Final = {
    "end": {"timestamp": None, "type": "min_item_period_end"},
    "start": {"timestamp": None, "type": "max_item_period_start"},
}
CHOICES: Final = {
    "billing_cycle_anchor": ("automatic", "phase_start"),
    "collection_method": ("charge_automatically", "send_invoice"),
}
PERCENT_MAX: Final = 100


def read_terms(params: Params, shapes: Mapping[str, Shape]) -> JsonObject:
    """Return the terms that a call gives; None: an empty text unsets one.

    Raises:
        ApiError: a term is not what it must be, or has a part that Stripe does not know.
    """
    return {name: _read_part(params, name, shape) for name, shape in shapes.items() if name in params}


def _read_part(params: Params, name: str, shape: Shape) -> object:
    if isinstance(shape, type):
        return _read_value(params, name, shape)
    if not params.is_hash(name):
        if params.text(name) == "":
            return None
        message = "Invalid array" if isinstance(shape, list) else "Invalid object"
        raise ApiError(message, param=params.path(name))
    if not isinstance(shape, list):
        hashed = params.hash(name)
        return None if hashed is None else read_hash(hashed, shape)
    (inner,) = shape
    if isinstance(inner, type):
        return params.listed(name)
    return [read_hash(each, cast("Mapping[str, Shape]", inner)) for each in params.hashes(name)]


def _read_value(params: Params, name: str, kind: type[object]) -> object:
    if kind is bool:
        return params.boolean(name)
    if kind is int:
        return params.integer(name)
    if name in CHOICES:
        return params.choice(name, CHOICES[name])
    text = params.text(name) or None
    return _read_percent(params, name) if kind is float and text is not None else text


def read_hash(params: Params, shapes: Mapping[str, Shape]) -> JsonObject:
    """Return the terms of a hash that has no other parameters. Raises ApiError as :func:`read_terms`."""
    params.only(*shapes)
    return read_terms(params, shapes)


def _read_percent(params: Params, name: str) -> float:
    value = float(params.decimal(name) or 0)
    if not 0 <= value <= PERCENT_MAX:
        raise ApiError(f"Invalid {name}: must be between 0 and {PERCENT_MAX}", param=params.path(name))
    return value


def terms_to_json(terms: JsonObject, shapes: Mapping[str, Shape]) -> JsonObject:
    """Return terms as Stripe shows them: each part, null where it is not set, and tax rates as objects."""
    return {name: _part_to_json(name, terms.get(name), shape) for name, shape in shapes.items()}


def _part_to_json(name: str, value: object, shape: Shape) -> object:
    if name.endswith("tax_rates"):
        ids = cast("list[str]", value or [])
        return [{"id": each, "object": "tax_rate"} for each in ids]
    if isinstance(shape, type | list) or value is None:
        return value
    given = cast("JsonObject", value)
    if shape == ACCOUNT:
        return dict(given)
    shown = {part: _part_to_json(part, given.get(part), inner) for part, inner in shape.items()}
    return {"disabled_reason": None, **shown} if name == "automatic_tax" else shown
