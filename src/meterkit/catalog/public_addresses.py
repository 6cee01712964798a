"""Public and private IP addresses: the check against server-side request forgery (SSRF). Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final

_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Of translators to IPv4, which is in the last 32 bits: https://www.rfc-editor.org/rfc/rfc6052."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and does not hide one that is not.

    Raises:
        ValueError: it is no IP address.
    """
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip in _NAT64:
        return is_public(str(IPv4Address(int(ip) & 0xFFFF_FFFF)))
    return ip in _UNICAST and ip.is_global and ip.sixtofour is None


def names_private_host(host: str) -> bool:
    """Whether a host is written as a private address: ``10.0.0.7``, ``::1`` or ``localhost``."""
    if host == "localhost":
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False
