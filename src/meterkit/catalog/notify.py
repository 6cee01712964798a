"""The block ``notify:``: which events go out by webhook and by e-mail, and to which addresses (SSRF)."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from meterkit.catalog.errors import RefusedError
from meterkit.catalog.notify_values import MESSAGE_EVENTS, EmailChannel, Notify, WebhookChannel
from meterkit.catalog.value_parsers import scalar
from meterkit.catalog.value_shapes import Key, ListOf, Table, WordChoice

_URL_ALLOWED: Final = (
    "an address that starts with https://, without a user, a password or a fragment; http:// only with a"
    " private IP address, or localhost"
)
_FROM_ALLOWED: Final = "an e-mail address, such as billing@example.com"
_ADDRESS: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*"
)
_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""Of translators to IPv4, which is in the last 32 bits: https://www.rfc-editor.org/rfc/rfc6052."""


def is_address(text: str) -> bool:
    """Whether a text is one e-mail address and nothing else.

    An encoded word (RFC 2047) is none: Python decodes it, and sends the mail to the decoded address.
    """
    return _ADDRESS.fullmatch(text) is not None and "=?" not in text


def _parse_url(text: str) -> str:
    refused = RefusedError(f"allowed: {_URL_ALLOWED}")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise refused from None
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if not is_plain or not host or port == 0 or "@" in url.netloc or url.fragment:
        raise refused
    if url.scheme != "https" and not (url.scheme == "http" and names_private_host(host)):
        raise refused
    return text


def _parse_from(text: str) -> str:
    if not is_address(text):
        raise RefusedError(f"allowed: {_FROM_ALLOWED}")
    return text


_EVENTS: Final = ListOf(WordChoice(MESSAGE_EVENTS), "events", 1)


class WebhookTable(Table, what="webhook"):
    """``webhook:`` in ``notify:``."""

    url = Key(
        scalar(_parse_url, _URL_ALLOWED, pattern="^https?://[^@#]+$"),
        "Where events are posted.",
        required=True,
    )
    events = Key(_EVENTS, "Events that are posted.", required=True)


class EmailTable(Table, what="email"):
    """``email:`` in ``notify:``."""

    sender = Key(
        scalar(_parse_from, _FROM_ALLOWED, pattern="^[^@ ]+@[^@ ]+$"),
        "The address that e-mails are from.",
        name="from",
        required=True,
    )
    events = Key(_EVENTS, "Events that customers are sent by e-mail.", required=True)


class NotifyTable(Table, what="notify"):
    """``notify:`` at the top level."""

    webhook = Key(WebhookTable, "Events that are posted to an address.")
    email = Key(EmailTable, "Events that customers are sent by e-mail.")


def build_notify(table: NotifyTable | None) -> Notify:
    """Build the message channels; a refused channel is left out."""
    webhook = email = None
    if table is not None and table.webhook is not None:
        url, events = table.webhook.url, table.webhook.events
        if url is not None and events:
            webhook = WebhookChannel(url=url, events=tuple(dict.fromkeys(events)))
    if table is not None and table.email is not None:
        sender, events = table.email.sender, table.email.events
        if sender is not None and events:
            email = EmailChannel(sender=sender, events=tuple(dict.fromkeys(events)))
    return Notify(webhook=webhook, email=email)


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
