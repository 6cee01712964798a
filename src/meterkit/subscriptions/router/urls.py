"""Which addresses a client may have a customer sent to: those of the app's own origins. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from meterkit.errors import MeterkitError
from meterkit.store.arguments import is_text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Origin", "is_of", "origins_of"]

_LENGTH_MAX: Final = 2048
_PORTS: Final = {"https": 443, "http": 80}
# What browsers take for something else than the parser does, or that no address has: RFC 3986 section 2.
_STRANGE: Final = re.compile(r"[^\x21-\x7e]|[\\\"<>^`|]")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


class Origin(NamedTuple):
    """Scheme, host and port of an address."""

    scheme: str
    host: str
    port: int


def origins_of(written: Iterable[str]) -> frozenset[Origin]:
    """The origins that an app names.

    Raises:
        MeterkitError: there is none, or one is not an origin, such as ``https://app.example``.
    """
    if isinstance(written, str):
        raise MeterkitError(f"origins: found the text {written!r:.80}; allowed is a list of origins")
    found = [_origin(origin) for origin in written]
    if not found:
        raise MeterkitError("origins: found none; name those of your app, such as 'https://app.example'")
    return frozenset(found)


def is_of(url: str, origins: frozenset[Origin]) -> bool:
    """Whether a customer may be sent to an address: scheme, host and port are those of an origin.

    An address with a user, a backslash, a control character or anything else that is read in two ways is
    none.
    """
    origin = _origin_in(url)
    return origin is not None and origin in origins


def _origin(written: str) -> Origin:
    origin = _origin_in(written) if is_text(written) else None
    if origin is None or urlsplit(written).path not in {"", "/"} or set("?#") & set(written):
        raise MeterkitError(
            f"origins: found {written!r:.80}; allowed are origins such as 'https://app.example' or"
            " 'http://localhost:3000': a scheme, a host, a port where it is another than usual, nothing else"
        )
    return origin


def _origin_in(url: str) -> Origin | None:
    if len(url) > _LENGTH_MAX or _STRANGE.search(url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme, place = parts.scheme.lower(), parts.netloc.lower()
    if scheme not in _PORTS or "@" in place or port == 0 or not url[len(scheme) :].startswith("://"):
        return None
    host = place if port is None else place.rpartition(":")[0]
    return Origin(scheme, host, port or _PORTS[scheme]) if _HOST.fullmatch(host) else None
