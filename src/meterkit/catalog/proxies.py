"""Whose word is taken for whom they speak: proxies in front of the app."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

__all__ = ["UNIX", "proxy_network"]

UNIX: Final = "unix"
"""Whoever connects by a Unix socket, and so has no address."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def proxy_network(text: object) -> IPv4Network | IPv6Network:
    """The network that a proxy, or several, are in; an address is a network of its own.

    IPv4 addresses that are written as IPv6 ones (``::ffff:10.0.0.7``) are IPv4 addresses.

    Raises:
        ValueError: it is neither an address nor a network.
    """
    try:
        # A number would be read as an address.
        network = ip_network(str(text), strict=False)
    except ValueError:
        raise ValueError(
            f"trusted_proxies: found {text!r}; allowed are addresses and networks, "
            "for example '10.0.0.7' or '10.0.0.0/8', and 'unix'"
        ) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        address = int(network.network_address) & 0xFFFF_FFFF
        return IPv4Network((address, network.prefixlen - _MAPPED.prefixlen))
    return network
