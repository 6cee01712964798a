"""Requests of the billing routes: bodies as models, and the return addresses that are allowed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from meterkit.errors import MeterkitError
from meterkit.store.arguments import is_text
from meterkit.subscriptions.change_rules import SEATS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
        """Whether a page has sent the request, not a person or a client that is no browser."""
        return self.origin is not None or self.site not in {None, "none"}

    def is_allowed(self, origins: frozenset[Origin] = frozenset()) -> bool:
        """Whether the page is of the requested origin itself, or of one of ``origins``.

        ``Sec-Fetch-Site`` decides where it is sent: it knows scheme and port, and proxies do not change it.
        """
        if self.site == "same-origin":
            return True
        if self.origin is None:
            return False
        own = {f"{scheme}://{self.host.lower()}" for scheme in _PORTS}
        return (self.site is None and self.origin.lower() in own) or is_of(self.origin, origins)


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


_Plan = Annotated[str, Field(min_length=1, max_length=128, description="The key of a plan.")]
_Seats = Annotated[int, Field(ge=1, le=SEATS_MAX, description="Seats in all.")]
_Url = Annotated[str, Field(min_length=1, max_length=2048, description="An address of an allowed origin.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class CreateBody(_Body):
    """A subscription that is to begin."""

    plan: _Plan
    seats: _Seats = 1


class PlanBody(_Body):
    """The plan that a subscription is to have."""

    plan: _Plan


class SeatsBody(_Body):
    """The seats that a subscription is to have."""

    seats: _Seats


class CancelBody(_Body):
    """When a subscription is to end: now, or with its period."""

    immediately: bool = False


class CheckoutBody(CreateBody):
    """A subscription that is to begin on a page of Stripe's."""

    success_url: _Url
    cancel_url: _Url


class TopUpBody(_Body):
    """A balance that is to be topped up on a page of Stripe's."""

    amount_cents: Annotated[int, Field(ge=1, description="One of the amounts that are sold.")]
    success_url: _Url
    cancel_url: _Url


class PortalBody(_Body):
    """Where Stripe's portal sends its visitor back to."""

    return_url: _Url


class UsageAnswer(BaseModel):
    """What a customer has used in a billing period, meter by meter."""

    customer: str
    plan: str
    status: str | None
    access: str
    period: dict[str, Any]
    features: list[str]
    balance: dict[str, int]
    meters: dict[str, dict[str, Any]]
