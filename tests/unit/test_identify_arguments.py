from __future__ import annotations

from ipaddress import ip_network
from typing import Any, cast

import pytest

from meterkit import identify
from meterkit.errors import MeterkitError

ANYTHING = cast("Any", None)


@pytest.mark.parametrize(
    "name", [None, 5, b"x-customer", "", "x customer", "x-customer:", "kunde-nr-ß", "a\n"]
)
def test_an_impossible_header_name_is_refused_at_the_start(name: Any) -> None:
    with pytest.raises(MeterkitError, match=r"^header: found .*; allowed is a header's name, such as"):
        identify.header(name)
    with pytest.raises(MeterkitError, match=r"^header: found .*; allowed is a header's name, such as"):
        identify.api_key(str, header=name)


def test_a_table_of_keys_is_no_lookup_and_is_not_shown() -> None:
    with pytest.raises(MeterkitError) as caught:
        identify.api_key(cast("Any", {"hidden": "acme"}))
    assert str(caught.value) == (
        "identify.api_key: found a lookup of type dict; allowed is a function from a key to its"
        " customer or None, such as keys.get"
    )


def test_an_attribute_is_named_by_a_text() -> None:
    with pytest.raises(MeterkitError, match=r"^identify\.user: found None; allowed is an attribute's name"):
        identify.user(ANYTHING)


@pytest.mark.parametrize("proxies", ["10.0.0.0/8", b"10.0.0.1", None, 5])
def test_trusted_proxies_are_several(proxies: Any) -> None:
    with pytest.raises(MeterkitError, match=r"^trusted_proxies: found .*; allowed is a list of texts"):
        identify.client_ip(trusted_proxies=proxies)


@pytest.mark.parametrize("proxy", [167772161, None, "ten"])
def test_a_trusted_proxy_is_an_address(proxy: Any) -> None:
    with pytest.raises(ValueError, match=r"^trusted_proxies: found .*; allowed are addresses and networks"):
        identify.client_ip(trusted_proxies=[proxy])


def test_a_network_object_is_a_trusted_proxy_too() -> None:
    networks: Any = [ip_network("10.0.0.0/8")]
    scope = {"client": ("10.0.0.1", 1), "headers": [(b"x-forwarded-for", b"192.0.2.7")]}
    assert identify.client_ip(trusted_proxies=networks)(scope) == "192.0.2.7"
