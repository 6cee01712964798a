"""Findings about the meters at Stripe: missing, inactive, or with other settings."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.cli.doctor.examined import UnseenError
from meterkit.cli.doctor.findings import Finding
from meterkit.delivery.stripe_v1 import CUSTOMER_KEY, VALUE_KEY
from meterkit.errors import StripeError
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit import MeterKit
    from meterkit.catalog import Catalog

_ACTIVE: Final = "active"
_FORMULA: Final = "sum"


def meter_differences(catalog: Catalog, at_stripe: Iterable[Mapping[str, Any]]) -> list[str]:
    """What keeps Stripe from taking the usage of a plans file's meters, a line each; none where all is well.

    Args:
        catalog: whose meters are delivered.
        at_stripe: the meters as ``GET /v1/billing/meters`` lists them.
    """
    active = {meter["event_name"]: meter for meter in at_stripe if meter["status"] == _ACTIVE}
    found: list[str] = []
    for meter in catalog.meters.values():
        if meter.stripe is None:
            continue
        event_name = meter.stripe.event_name
        there = active.get(event_name)
        if there is None:
            found.append(f"meter {meter.name}: Stripe has no active meter with the event name {event_name}")
            continue
        formula, window = there["default_aggregation"]["formula"], there.get("event_time_window")
        if formula != _FORMULA or window is not None:
            counts = formula if window is None else f"{formula} per {window}"
            found.append(
                f"meter {meter.name}: the meter {there['id']} at Stripe aggregates by {counts}, and what"
                f" is sent is to be added up: make a meter with formula {_FORMULA} and no event_time_window,"
                " and deactivate this one"
            )
        for setting, sent in (("customer_mapping", CUSTOMER_KEY), ("value_settings", VALUE_KEY)):
            wanted = there[setting]["event_payload_key"]
            if wanted != sent:
                found.append(
                    f"meter {meter.name}: the meter {there['id']} at Stripe has {setting}.event_payload_key"
                    f" {wanted}; what is sent has {sent}: make a meter with {sent} and deactivate this one"
                )
    return found


UNTOLD: Final = Finding(
    check="stripe",
    problem="usage goes by meter event streams, and no process receives Stripe's error reports: no webhook"
    " secret is set",
    cure="have Stripe post its thin events about meters to the webhook endpoint, and set"
    " METERKIT_STRIPE_WEBHOOK_SECRET",
)


def meters_at_stripe(differences: Iterable[str]) -> list[Finding]:
    """What keeps Stripe's meters from taking what is sent; as :func:`meter_differences` says it."""
    found: list[Finding] = []
    for difference in differences:
        problem, separator, cure = difference.rpartition(": ")
        if not separator or not cure.startswith("make a meter"):
            problem, cure = difference, "make one at Stripe, or mend the event name in the plans file"
        found.append(Finding(check="stripe", problem=problem, cure=cure))
    return found


def refused_by_stripe(error: StripeError) -> Finding | str:
    """The finding for a refusal to list meters; a text if it only prevents the check."""
    message = str(error).partition(": ")[2]
    if error.status == HTTPStatus.FORBIDDEN:
        return f"the Stripe key may not list meters: {message}"
    if error.status == HTTPStatus.UNAUTHORIZED:
        return Finding(
            check="stripe",
            problem=f"Stripe refuses the key: {message}",
            cure="set METERKIT_STRIPE_API_KEY to a secret or restricted key of the account",
        )
    return Finding(
        check="stripe",
        problem=f"the meters at Stripe cannot be read: {message}",
        cure="see that this host reaches METERKIT_STRIPE_API_BASE, by default https://api.stripe.com",
    )


async def look_at_meters(kit: MeterKit) -> tuple[str, list[Finding]]:
    """How many meters Stripe has, and what is wrong with those of the plans file.

    Raises:
        UnseenError: no key is set, or it may not ask.
    """
    if kit.settings.stripe_api_key is None:
        raise UnseenError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api = StripeApi(kit.settings)
    try:
        meters = await api.list("/v1/billing/meters")
    except StripeError as error:
        refused = refused_by_stripe(error)
        if isinstance(refused, str):
            raise UnseenError(refused) from None
        return "", [refused]
    finally:
        await api.close()
    found = meters_at_stripe(meter_differences(kit.catalog, meters))
    is_told = kit.settings.stripe_transport == "v1" or bool(kit.settings.stripe_webhook_secret)
    return f"{len(meters):,} meters", found if is_told else [*found, UNTOLD]
