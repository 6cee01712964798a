"""Requests to Stripe: addresses, headers, and the client of HTTP that carries them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.stripe.http import HttpClient

API_BASE: Final = "https://api.stripe.com"
API_VERSION: Final = "2026-10-28.endive"

Parameter: TypeAlias = "str | int | float | bool | Mapping[str, Parameter] | Sequence[Parameter] | None"
"""The value of a parameter; None: it is left out. An empty text unsets what Stripe has."""

ENDED_HERE: Final = "ended by meterkit: the last invoice is to be collected"
"""The comment of the ``cancellation_details`` of a subscription that we ended at once."""


def headers_of(api_key: str) -> dict[str, str]:
    """The head of a request."""
    return {
        "Authorization": f"Bearer {api_key}",
        "Stripe-Version": API_VERSION,
        "User-Agent": "meterkit",
        "Content-Type": "application/x-www-form-urlencoded",
    }


def client_of(base: str, *, timeout_s: float) -> HttpClient:
    """A client of the running event loop, which is to be closed in it."""
    # Imported late: TLS and HTTP cost an app without a Stripe key nothing.
    module: Any = import_module("meterkit.stripe.http")
    return cast("HttpClient", module.HttpClient(base, timeout_s=timeout_s))


def origin_of(address: str) -> str:
    """An address without what may be a secret in it."""
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
