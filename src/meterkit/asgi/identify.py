"""Who asks: ready-made answers to "which customer does this request belong to?".

Each factory returns a callable ``(scope) -> str | Caller | None``, or an awaitable of it; any other callable
of that shape does as well. A `Caller` names a user or a team besides. None means that the request has no
customer, and the plans file's ``anonymous`` says what becomes of it. What a factory returns is checked by the
middleware with `is_customer`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, overload

from starlette.types import Scope

from meterkit.asgi.callers import Caller
from meterkit.asgi.key_owners import KeyLookup, KeyOwners, digest_of
from meterkit.catalog.billing import UNIX, proxy_network
from meterkit.errors import MeterkitError
from meterkit.store.arguments import SEVERAL, check_customer, check_subject_kinds, is_customer, is_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "Caller",
    "Identify",
    "KeyLookup",
    "api_key",
    "check_customer",
    "client_ip",
    "hash_key",
    "header",
    "is_customer",
    "user",
]

Identify = Callable[[Scope], str | Caller | Awaitable[str | Caller | None] | None]

_TTL: Final = timedelta(seconds=60)
HOST_CHARS_MAX: Final = 64
HOPS_MAX: Final = 32

# A field's name is a token: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST_PORT: Final = re.compile(r"\[([^\]]*)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+")


@overload
def header(name: str) -> Callable[[Scope], str | None]: ...
@overload
def header(name: str, *, subjects: Mapping[str, str]) -> Callable[[Scope], str | Caller | None]: ...
def header(name: str, *, subjects: Mapping[str, str] | None = None) -> Callable[[Scope], str | Caller | None]:
    """The customer is the value of a request header, as a trusted gateway in front of the app sets it.

    Without such a gateway any client can name any customer. A header that is empty, missing or given
    more than once names no customer. A value that is not UTF-8 names a customer that is not allowed.

    Args:
        name: of the header.
        subjects: kind to the header that names the subject, such as ``{"user": "x-user-id"}``. A request
            without the header has no subject of the kind. An empty header, and one with several values,
            in several fields or parted by commas, is an id that is not allowed.

    Raises:
        MeterkitError: a name is no name of a header, or there are more than three subjects.
    """
    wanted = _field_name(name)
    check_subject_kinds(subjects or {})
    others = [(kind, _field_name(field)) for kind, field in (subjects or {}).items()]

    def identify(scope: Scope) -> str | None:
        found: bytes | None = None
        for key, value in scope["headers"]:
            if key == wanted:
                if found is not None:
                    return None
                found = value
        if not found:
            return None
        # As _text has it, without a call: nearly every request comes here.
        return found.decode() if found.isascii() else found.decode("utf-8", "surrogateescape")

    def identify_with_subjects(scope: Scope) -> str | Caller | None:
        customer = identify(scope)
        if customer is None:
            return None
        named = ((kind, _combined(scope, field)) for kind, field in others)
        given = {kind: subject for kind, subject in named if subject is not None}
        return Caller(customer, given) if given else customer

    return identify_with_subjects if others else identify


def _text(value: bytes) -> str:
    # A lone surrogate is refused as an id, so the client hears that the id is wrong.
    return value.decode() if value.isascii() else value.decode("utf-8", "surrogateescape")


def api_key(
    lookup: KeyLookup, *, header: str = "authorization", ttl: timedelta = _TTL, hashed: bool = False
) -> Callable[[Scope], str | Caller | Awaitable[str | Caller | None] | None]:
    """The customer is the owner of the API key in a request header.

    What ``lookup`` says is remembered under the key's hash, in this process; no key is kept. Requests
    that come with the same key while it is looked up wait for the one lookup; its errors are not remembered.

    Args:
        lookup: from a key to its customer or `Caller`, or None for a key without an owner; sync or async. One
            that is not async runs in a thread, so it may block.
        header: in ``authorization`` the key follows the word ``Bearer`` (RFC 6750); in any other header
            it stands alone. A header that is missing or given more than once names no customer.
        ttl: how long an owner is remembered: a revoked key works for so long; that a key has no owner
            is remembered for 5 seconds at most. ``timedelta(0)`` looks up at every request.
        hashed: whether ``lookup`` gets `hash_key` of the key instead, for a table of hashes.

    Raises:
        MeterkitError: ``lookup`` cannot be called, ``header`` is no name of a header, or ``ttl`` no timedelta
            from 0.
    """
    if not callable(lookup):
        # An object that is no function may be a table of keys: show its type only.
        raise MeterkitError(
            f"identify.api_key: found a lookup of type {type(lookup).__name__}; allowed is a function from a"
            " key to its customer or None, such as keys.get"
        )
    if not _is_span(ttl):
        raise MeterkitError(f"ttl: found {ttl!r:.80}; allowed is a timedelta from 0, as timedelta(minutes=1)")
    wanted = _field_name(header)
    owners = KeyOwners(lookup, ttl.total_seconds(), hashed=hashed)
    bearer = wanted == b"authorization"

    def identify(scope: Scope) -> str | Caller | Awaitable[str | Caller | None] | None:
        value = _single(scope, wanted)
        if value and bearer:
            scheme, _, rest = value.partition(b" ")
            value = rest.strip() if scheme.lower() == b"bearer" else None
        return owners.of(value) if value else None

    return identify


def hash_key(key: str) -> str:
    """What `api_key(…, hashed=True)` looks up for a key: the SHA-256 of its UTF-8 bytes, in hex.

    Fast and without salt on purpose: it suits keys that were drawn at random with 128 bits or more, not
    passwords.
    """
    return digest_of(key.encode())


def user(attr: str = "identity") -> Callable[[Scope], str | None]:
    """The customer is an attribute of the user that Starlette's ``AuthenticationMiddleware`` found.

    A user that is not authenticated, or whose attribute is None or empty, names no customer. Starlette's
    ``SimpleUser`` has no ``identity``; its name is ``display_name``.

    Raises:
        MeterkitError: ``attr`` is no name; or, when called, if the middleware does not stand outside of
            this one.
    """
    if not is_text(attr):
        raise MeterkitError(
            f"identify.user: found {attr!r:.80}; allowed is an attribute's name, such as 'id'"
        )

    def identify(scope: Scope) -> str | None:
        try:
            who: Any = scope["user"]
        except KeyError:
            raise MeterkitError(
                "identify.user() found no user: AuthenticationMiddleware must see the request first; "
                "with add_middleware, add it after MeterMiddleware"
            ) from None
        if not getattr(who, "is_authenticated", True):
            return None
        value: object = getattr(who, attr)
        return None if value is None else str(value) or None

    return identify


def client_ip(*, trusted_proxies: Iterable[str] = ()) -> Callable[[Scope], str | None]:
    """The customer is the client's IP address: an IPv4 address, or the /64 network of an IPv6 address.

    Args:
        trusted_proxies: addresses and networks whose word is taken for whom they speak, and ``unix`` for
            any client of a Unix socket. If the connection comes from one of them,
            ``X-Forwarded-For`` is read from the right, up to the first address that is none of them. Empty:
            the header is never read. ``Forwarded`` (RFC 7239) never is: a proxy that writes one of the two
            lets the client's own through in the other.

    Raises:
        ValueError: one of ``trusted_proxies`` is neither an address nor a network.
        MeterkitError: ``trusted_proxies`` is not a list or the like: one text, for example.
    """
    if isinstance(trusted_proxies, str | bytes) or not hasattr(trusted_proxies, "__iter__"):
        raise MeterkitError(
            f"trusted_proxies: found {trusted_proxies!r:.80}; allowed is a list of texts, for example"
            " ['10.0.0.7', '192.168.0.0/16']"
        )
    proxies = list(trusted_proxies)
    networks = [proxy_network(text) for text in proxies if text != UNIX]
    trusts_sockets = UNIX in proxies

    @lru_cache(maxsize=4096)
    def read(host: str) -> tuple[str, bool] | None:
        address = _address(host)
        if address is None:
            return None
        return _customer(address), any(address in network for network in networks)

    def identify(scope: Scope) -> str | None:
        client = scope.get("client")
        host: str = client[0] if client else ""
        if host and not host.startswith("unix:"):
            hop = read(host)
            if hop is None or not hop[1]:
                return hop and hop[0]
        elif trusts_sockets:
            hop = None
        else:
            return None
        for host in _forwarded_for(scope):
            hop = read(host)
            if hop is None or not hop[1]:
                break
        return hop and hop[0]

    return identify


def _is_span(value: object) -> bool:
    return isinstance(value, timedelta) and value >= timedelta(0)


def _field_name(name: str) -> bytes:
    if not is_text(name) or not _TOKEN.fullmatch(name):
        raise MeterkitError(
            f"header: found {name!r:.80}; allowed is a header's name, such as 'x-customer-id'"
        )
    return name.lower().encode()


def _single(scope: Scope, wanted: bytes) -> bytes | None:
    """The value of a header that is given exactly once."""
    found: bytes | None = None
    for name, value in scope["headers"]:
        if name == wanted:
            if found is not None:
                return None
            found = value
    return found


def _combined(scope: Scope, wanted: bytes) -> str | None:
    """The value of a header; several values, of several fields or parted by commas, are joined to no id.

    Proxies may join fields of one name: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
    """
    fields = [value for name, value in scope["headers"] if name == wanted]
    if not fields:
        return None
    values = [value.strip(b" \t") for value in b",".join(fields).split(b",")]
    return _text(SEVERAL.encode().join(values))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _customer(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def _forwarded_for(scope: Scope) -> list[str]:
    """The hosts of ``X-Forwarded-For``, the nearest first; a chain too long ends in what is no host."""
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hosts = b",".join(lines).decode("latin-1").rsplit(",", HOPS_MAX) if lines else []
    # A text longer than any address is not cached either.
    return [_without_port(host.strip()) if len(host) <= HOST_CHARS_MAX else "" for host in reversed(hosts)]


def _without_port(host: str) -> str:
    found = _HOST_PORT.fullmatch(host)
    return host if found is None else found[1] or found[2]
