"""How usage reaches Stripe, by the settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from meterkit.delivery.stripe_v1 import StripeV1Transport
    from meterkit.settings import Settings

__all__ = ["transport_of"]


def transport_of(settings: Settings) -> StripeV1Transport:
    """The transport that the settings name.

    Raises:
        SettingsError: no Stripe key is set, or it cannot be worked with.
    """
    if settings.stripe_api_key is None:
        message = "stripe_api_key: delivery needs a Stripe key; set METERKIT_STRIPE_API_KEY"
        raise SettingsError("stripe_api_key", message)
    if settings.stripe_transport != "v1":
        message = "stripe_transport: v2-stream is not in this release; use v1"
        raise SettingsError("stripe_transport", message)
    key = settings.stripe_api_key.get_secret_value()
    module: Any = import_module("meterkit.delivery.stripe_v1")  # Only those who deliver pay for it.
    transport: StripeV1Transport = module.StripeV1Transport(
        key, api_base=settings.stripe_api_base, events_base=settings.stripe_events_base
    )
    return transport
