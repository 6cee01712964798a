"""How usage reaches Stripe, by the settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meterkit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.delivery.stripe_stream import StripeStreamTransport
    from meterkit.delivery.stripe_v1 import StripeV1Transport
    from meterkit.settings import Settings

__all__ = ["StripeTransport", "transport_of"]

StripeTransport: TypeAlias = "StripeV1Transport | StripeStreamTransport"
"""What delivers to Stripe."""

_TRANSPORTS: Final[Mapping[str, tuple[str, str]]] = {
    "v1": ("meterkit.delivery.stripe_v1", "StripeV1Transport"),
    "v2-stream": ("meterkit.delivery.stripe_stream", "StripeStreamTransport"),
}


def transport_of(settings: Settings) -> StripeTransport:
    """The transport that the settings name.

    Raises:
        SettingsError: no Stripe key is set, or it cannot be worked with.
    """
    if settings.stripe_api_key is None:
        message = "stripe_api_key: delivery needs a Stripe key; set METERKIT_STRIPE_API_KEY"
        raise SettingsError("stripe_api_key", message)
    name, made = _TRANSPORTS[settings.stripe_transport]
    module: Any = import_module(name)  # Only those who deliver pay for it.
    transport: StripeTransport = getattr(module, made)(
        settings.stripe_api_key.get_secret_value(),
        api_base=settings.stripe_api_base,
        events_base=settings.stripe_events_base,
    )
    return transport
