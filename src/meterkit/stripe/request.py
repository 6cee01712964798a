"""What every request to Stripe has in common: where it goes, its head, its form."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast
from urllib.parse import urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meterkit.stripe.http import HttpClient

__all__ = ["API_BASE", "API_VERSION", "Parameter", "client_of", "encode", "headers_of", "origin_of"]

API_BASE: Final = "https://api.stripe.com"
API_VERSION: Final = "2026-10-28.endive"

Parameter: TypeAlias = "str | int | bool | Mapping[str, Parameter] | Sequence[Parameter] | None"
"""The value of a parameter; None: it is left out. An empty text unsets what Stripe has."""


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


def encode(params: Mapping[str, Parameter]) -> str:
    """Parameters as Stripe takes them, in a body or behind a path: ``items[0][price]=price_1``.

    Raises:
        TypeError: a value is of another kind, such as a float: money is whole cents, a time whole seconds.
    """
    return urlencode(list(_pairs("", params)))


def _pairs(name: str, value: object) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if isinstance(value, bool):
        yield name, "true" if value else "false"
    elif isinstance(value, str | int):
        yield name, str(value)
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[str, object]", value).items():
            yield from _pairs(f"{name}[{key}]" if name else key, inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(cast("list[object]", value)):
            yield from _pairs(f"{name}[{place}]", inner)
    else:
        kind = type(value).__name__
        raise TypeError(f"{name}: found a value of type {kind}; allowed are texts, integers, lists and dicts")


def origin_of(address: str) -> str:
    """An address without what may be a secret in it."""
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
