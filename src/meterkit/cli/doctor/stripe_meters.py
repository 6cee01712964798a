"""Asks Stripe for its meters, for what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.cli.doctor import stripe_findings
from meterkit.cli.doctor.examined import UnseenError
from meterkit.delivery.meter_differences import meter_differences
from meterkit.errors import StripeError
from meterkit.stripe.api import StripeApi

if TYPE_CHECKING:
    from meterkit import MeterKit
    from meterkit.cli.doctor.findings import Finding

__all__ = ["look_at_meters"]


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
        refused = stripe_findings.refused_by_stripe(error)
        if isinstance(refused, str):
            raise UnseenError(refused) from None
        return "", [refused]
    finally:
        await api.close()
    found = stripe_findings.meters_at_stripe(meter_differences(kit.catalog, meters))
    is_told = kit.settings.stripe_transport == "v1" or bool(kit.settings.stripe_webhook_secret)
    return f"{len(meters):,} meters", found if is_told else [*found, stripe_findings.UNTOLD]
