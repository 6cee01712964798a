"""Allowed origins of an app: of the page that sent a request (CSRF), of redirects, and of CORS."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

from meterkit.errors import MeterkitError
from meterkit.problem_types import ProblemDocument, ProblemDocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LENGTH_MAX: Final = 2048
_PORTS: Final = {"https": 443, "http": 80}
# Characters that browsers and parsers read differently, or that no URL has: RFC 3986 section 2.
_STRANGE: Final = re.compile(r"[^\x21-\x7e]|[\\\"<>^`|]")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
# As browsers write one: https://html.spec.whatwg.org/multipage/browsers.html#ascii-serialisation-of-an-origin
_SENT_ORIGIN: Final = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#*@A-Z]+")


class Origin(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int


def origins_of(written: Iterable[str]) -> frozenset[Origin]:
    """Parse the origins that an app names.

    Raises:
        MeterkitError: there is none, or one is not an origin, such as ``https://app.example``.
    """
    if isinstance(written, str):
        raise MeterkitError(f"origins: found the text {written!r:.80}; allowed is a list of origins")
    found = [_parse_origin(origin) for origin in written]
    if not found:
        raise MeterkitError("origins: found none; name those of your app, such as 'https://app.example'")
    return frozenset(found)


def check_cors(written: object) -> None:
    """Check the origins whose scripts may read refusals, ``cors=`` of the middleware.

    Raises:
        MeterkitError: it is no list, or one is not an origin as browsers send it, nor ``*``.
    """
    if isinstance(written, str | bytes) or not isinstance(written, Iterable):
        raise MeterkitError(
            f"cors: found {written!r:.80}; allowed is a list of origins, such as ['https://app.example'], or"
            " ['*'] for all"
        )
    for origin in cast("Iterable[object]", written):
        if not isinstance(origin, str) or not _SENT_ORIGIN.fullmatch(origin):
            raise MeterkitError(
                f"cors: found {origin!r:.80}; allowed is an origin as browsers send it, in small letters and"
                " without a path, such as 'https://app.example', or '*' alone for all"
            )


def has_allowed_origin(url: str, origins: frozenset[Origin]) -> bool:
    """Whether a customer may be redirected to a URL: scheme, host and port are those of an origin.

    A URL with a user, a backslash, a control character or anything else ambiguous has no origin.
    """
    origin = _origin_in(url)
    return origin is not None and origin in origins


class SendingPage(NamedTuple):
    """The page that sent a request, as the browser names it in fields that no page can set.

    Attributes:
        site: ``Sec-Fetch-Site``, which browsers send over TLS and to localhost; None: it is missing.
        origin: ``Origin``; None: it is missing.
        host: ``Host``.
    """

    site: str | None
    origin: str | None
    host: str

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Self:
        """Read the fields of a request; their names are in lower case."""
        return cls(fields.get("sec-fetch-site"), fields.get("origin"), fields.get("host", ""))

    @property
    def is_page(self) -> bool:
        """Whether a web page has sent the request, rather than a user or another client."""
        return self.origin is not None or self.site not in {None, "none"}

    def is_allowed(self, origins: frozenset[Origin] = frozenset()) -> bool:
        """Whether the page has the origin of the request, or one of ``origins``.

        ``Sec-Fetch-Site`` decides if it is sent: it knows scheme and port, and proxies do not change it.
        """
        if self.site == "same-origin":
            return True
        if self.origin is None:
            return False
        own = {f"{scheme}://{self.host.lower()}" for scheme in _PORTS}
        return (self.site is None and self.origin.lower() in own) or has_allowed_origin(self.origin, origins)


def _parse_origin(written: object) -> Origin:
    if isinstance(written, str) and not set("?#") & set(written):
        origin = _origin_in(written)
        if origin is not None and urlsplit(written).path in {"", "/"}:
            return origin
    raise MeterkitError(
        f"origins: found {written!r:.80}; allowed are origins such as 'https://app.example' or"
        " 'http://localhost:3000': a scheme, a host, a port if it is not the usual one, nothing else"
    )


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


def check_sender(sender: SendingPage, origins: frozenset[Origin]) -> None:
    """Refuse a request of a page with another origin (CSRF).

    Args:
        sender: of the request.
        origins: allowed ones, besides the app's own.

    Raises:
        ProblemDocumentError: the page has another origin.
    """
    if not sender.is_allowed(origins):
        detail = "This request was sent by a page that is not of an allowed origin."
        raise ProblemDocumentError(ProblemDocument.of("origin-not-allowed", detail))
