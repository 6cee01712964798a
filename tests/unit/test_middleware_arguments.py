"""What the middleware and ways to identify customers are given is checked where they are made."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from drivers.app import PLANS, hello
from meterkit import MeterKit, MeterkitError, MeterMiddleware, identify
from meterkit.catalog import loads

ORIGIN = "allowed is an origin as browsers send it, in small letters and without a path"
KIT = MeterKit(loads(PLANS), redis_url="memory://", flush=False)
BY_HEADER = identify.header("x-customer-id")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kit": None}, "kit: found None; allowed is a MeterKit"),
        ({"kit": "plans.yaml"}, "kit: found a value of type str; allowed is a MeterKit"),
        ({"kit": MeterKit}, "kit: found the class MeterKit; allowed is a MeterKit"),
        ({"identify": "x"}, "identify: found a value of type str; allowed is a function from an ASGI scope"),
        ({"identify": identify}, "identify: found a value of type module; allowed is a function"),
        ({"identify": {"sk_live_1": "acme"}}, "identify: found a value of type dict; allowed is a function"),
        (
            {"identify": identify.user},
            "identify: found user itself, which each request would call; allowed",
        ),
        ({"identify": str}, "identify: found str itself, which each request would call; allowed is the"),
        ({"on_denied": "no"}, "on_denied: found a value of type str; allowed is a function"),
        ({"cors": "https://*.x"}, "cors: found 'https://*.x'; allowed is a list of origins"),
        ({"cors": None}, "cors: found None; allowed is a list of origins"),
        ({"cors": ["https://*.x"]}, f"cors: found 'https://*.x'; {ORIGIN}"),
        ({"cors": ["https://App.example"]}, f"cors: found 'https://App.example'; {ORIGIN}"),
        ({"cors": [b"https://app.example"]}, f"cors: found b'https://app.example'; {ORIGIN}"),
    ],
)
def test_what_it_cannot_work_with_is_refused_with_words(given: dict[str, Any], said: str) -> None:
    """F-69: it was taken, and failed at the first request or never."""
    arguments: dict[str, Any] = {"kit": KIT, "identify": BY_HEADER} | given
    with pytest.raises(MeterkitError) as refused:
        MeterMiddleware(hello, **arguments)
    assert str(refused.value).startswith(said)
    assert "sk_live" not in str(refused.value)


@pytest.mark.parametrize("name", [None, b"x-customer", "", "x customer", "x-customer:", "kunde-nr-ß", "a\n"])
def test_an_impossible_header_name_is_refused_at_the_start(name: Any) -> None:
    makers: list[Callable[[Any], object]] = [identify.header, lambda name: identify.api_key(str, header=name)]
    for made in makers:
        with pytest.raises(MeterkitError, match=r"^header: found .*; allowed is a header's name, such as"):
            made(name)


def test_a_table_of_keys_is_no_lookup_and_is_not_shown() -> None:
    keys: Any = {"hidden": "acme"}
    with pytest.raises(MeterkitError) as caught:
        identify.api_key(keys)
    assert str(caught.value) == (
        "identify.api_key: found a lookup of type dict; allowed is a function from a key to its"
        " customer or None, such as keys.get"
    )


def test_attributes_and_proxies_that_cannot_be_are_refused() -> None:
    nothing: Any = None
    with pytest.raises(MeterkitError, match=r"^identify\.user: found None; allowed is an attribute's name"):
        identify.user(nothing)
    one: Any
    for one in ("10.0.0.0/8", b"10.0.0.1", None, 5):
        with pytest.raises(MeterkitError, match=r"^trusted_proxies: found .*; allowed is a list of texts"):
            identify.client_ip(trusted_proxies=one)
    for one in (167772161, None, "ten"):
        with pytest.raises(ValueError, match=r"^trusted_proxies: found .*; allowed are addresses"):
            identify.client_ip(trusted_proxies=[one])
    networks: Any = [ip_network("10.0.0.0/8")]
    scope = {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", b"192.0.2.7")]}
    assert identify.client_ip(trusted_proxies=networks)(scope) == "192.0.2.7"
