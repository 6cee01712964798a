"""Ready-made identify functions: from an ASGI scope to the customer of a request.

Each factory returns a callable ``(scope) -> str | Caller | None``, or an awaitable of it; any other callable
of that shape does as well. A `Caller` also names a user or a team. None means that the request has no
customer, which the plans file's ``anonymous`` then handles. The middleware checks each id with `is_customer`.

API keys are cached by their SHA-256. Unknown keys have a cache of their own, so that random keys evict no
owner. ``X-Forwarded-For`` is read from the right, by the trusted proxies. ``Forwarded`` is not read: a proxy
that writes one of the two fields passes the other one on from the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from inspect import isawaitable, iscoroutinefunction
from ipaddress import IPv4Address, IPv6Address, ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

import anyio
from anyio import to_thread
from starlette.types import Scope

from meterkit.asgi.logs import tells
from meterkit.catalog.billing import UNIX, parse_proxy_network
from meterkit.errors import MeterkitError
from meterkit.safe_text import plain_text
from meterkit.store.input_checks import (
    SEVERAL,
    check_customer,
    check_subject_kinds,
    find_fault,
    is_customer,
    is_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anyio import CapacityLimiter

    from meterkit.store.script_arguments import GivenSubjects

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


@dataclass(frozen=True, slots=True)
class Caller:
    """Result of ``identify`` for a request of a customer's user, team or the like.

    Attributes:
        customer: the customer's id; None: the request has no customer, and its subjects are ignored.
        subjects: kind to id, at most three; their limits are ``subjects:`` of the customer's plan.

    Raises:
        MeterkitError: ``subjects`` is no mapping of texts, or has more than three.
    """

    customer: str | None
    subjects: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        check_subject_kinds(self.subjects)


def split_caller(found: object) -> tuple[object, GivenSubjects | None]:
    """Split the result of ``identify`` into customer and subjects; None: a subject's id is not allowed."""
    if not isinstance(found, Caller):
        return found, ()
    if not all(map(is_customer, found.subjects.values())):
        return found.customer, None
    return found.customer, tuple(
        (plain_text(kind), plain_text(subject)) for kind, subject in found.subjects.items()
    )


def find_id_fault(found: object) -> str:
    """Describe the id of ``identify`` that is not allowed, without showing it."""
    ids: list[tuple[str, object]] = [("customer", found.customer if isinstance(found, Caller) else found)]
    ids += found.subjects.items() if isinstance(found, Caller) else ()
    return next(f"found {fault} as the id of the {of:.80}" for of, one in ids if (fault := find_fault(one)))


_Found = str | Caller | Literal[False] | None
Identify = Callable[[Scope], _Found | Awaitable[_Found]]

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
    """Identify the customer by a request header that a trusted gateway in front of the app sets.

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
        # As _decode_value has it, without a call: nearly every request comes here.
        return found.decode() if found.isascii() else found.decode("utf-8", "surrogateescape")

    def identify_with_subjects(scope: Scope) -> str | Caller | None:
        customer = identify(scope)
        if customer is None:
            return None
        named = ((kind, _read_combined(scope, field)) for kind, field in others)
        given = {kind: subject for kind, subject in named if subject is not None}
        return Caller(customer, given) if given else customer

    return identify_with_subjects if others else identify


def _decode_value(value: bytes) -> str:
    # A lone surrogate is refused as an id, so the client hears that the id is wrong.
    return value.decode() if value.isascii() else value.decode("utf-8", "surrogateescape")


def api_key(
    lookup: KeyLookup, *, header: str = "authorization", ttl: timedelta = _TTL, hashed: bool = False
) -> Callable[[Scope], str | Caller | Awaitable[str | Caller | None] | None]:
    """Identify the customer as the owner of the API key in a request header.

    The result of ``lookup`` is cached under the key's hash, in this process; no key is kept. Requests
    with the same key share one lookup; its errors are not cached.

    Args:
        lookup: from a key to its customer or `Caller`, or None for a key without an owner; sync or async. One
            that is not async runs in a thread, so it may block.
        header: in ``authorization`` the key follows the word ``Bearer`` (RFC 6750); in any other header
            it stands alone. A header that is missing or given more than once names no customer.
        ttl: how long an owner is cached: a revoked key works for so long. A key without an owner is
            cached for 5 seconds at most. ``timedelta(0)`` looks up at every request.
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
        value = _read_single(scope, wanted)
        if value and bearer:
            scheme, _, rest = value.partition(b" ")
            value = rest.strip() if scheme.lower() == b"bearer" else None
        return owners.of(value) if value else None

    return identify


def hash_key(key: str) -> str:
    """Hash an API key as `api_key(…, hashed=True)` looks it up: SHA-256 of its UTF-8 bytes, in hex.

    Fast and without salt on purpose: it suits keys that were drawn at random with 128 bits or more, not
    passwords.
    """
    return digest_of(key.encode())


def user(attr: str = "identity") -> Callable[[Scope], str | None]:
    """Identify the customer by an attribute of the user of Starlette's ``AuthenticationMiddleware``.

    A user that is not authenticated, or whose attribute is None or empty, names no customer. Starlette's
    ``SimpleUser`` has no ``identity``; its name is ``display_name``.

    Raises:
        MeterkitError: ``attr`` is no name; or, when called, if the middleware does not stand outside of
            this one, or the attribute is of bytes or an object without a text of its own.
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
        if isinstance(value, str):
            return plain_text(value) or None
        if value is None:
            return None
        kind: Any = type(value)
        has_text = isinstance(value, int | float) or kind.__str__ is not object.__str__
        if not has_text or issubclass(kind, bool | bytes | bytearray):
            raise MeterkitError(  # Its text has its address: each request would be of another customer.
                f"identify.user({attr!r}): found a value of type {kind.__name__}; allowed is an attribute"
                " that is the customer's id, such as a text or a number"
            )
        return str(value) or None

    return identify


def client_ip(*, trusted_proxies: Iterable[str] = ()) -> Callable[[Scope], str | None]:
    """Identify the customer by the client's IP address: IPv4, or the /64 network of IPv6.

    Args:
        trusted_proxies: addresses and networks of proxies that are believed, and ``unix`` for any client
            of a Unix socket. If the connection comes from one of them,
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
    networks = [parse_proxy_network(text) for text in proxies if text != UNIX]
    trusts_sockets = UNIX in proxies

    @lru_cache(maxsize=4096)
    def read(host: str) -> tuple[str, bool] | None:
        address = _parse_address(host)
        if address is None:
            return None
        return _name_address(address), any(address in network for network in networks)

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


def _read_single(scope: Scope, wanted: bytes) -> bytes | None:
    """Read a header that is given exactly once."""
    found: bytes | None = None
    for name, value in scope["headers"]:
        if name == wanted:
            if found is not None:
                return None
            found = value
    return found


def _read_combined(scope: Scope, wanted: bytes) -> str | None:
    """Read a header; several values, in fields or separated by commas, are joined to an invalid id.

    Proxies may join fields of one name: https://www.rfc-editor.org/rfc/rfc9110#section-5.3
    """
    fields = [value for name, value in scope["headers"] if name == wanted]
    if not fields:
        return None
    values = [value.strip(b" \t") for value in b",".join(fields).split(b",")]
    return _decode_value(SEVERAL.encode().join(values))


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _name_address(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def _forwarded_for(scope: Scope) -> list[str]:
    """List the hosts of ``X-Forwarded-For``, the nearest first; too long a chain ends in an invalid host."""
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hosts = b",".join(lines).decode("latin-1").rsplit(",", HOPS_MAX) if lines else []
    # A text longer than any address is not cached either.
    return [_without_port(host.strip()) if len(host) <= HOST_CHARS_MAX else "" for host in reversed(hosts)]


def _without_port(host: str) -> str:
    found = _HOST_PORT.fullmatch(host)
    return host if found is None else found[1] or found[2]


Owner = str | Caller
KeyLookup = Callable[[str], Owner | Awaitable[Owner | None] | None]
T = TypeVar("T")

_KEYS_KEPT_MAX: Final = 10_000
_THREADS_MAX: Final = 16
_UNOWNED_S_MAX: Final = 5.0
"""Short, so that a new key that was tried too early works soon."""
_FAILED_LOGGED: Final = 5
_logger = logging.getLogger("meterkit.asgi")


class KeyOwners:
    """Cache of the owners of API keys, by the hash of the key.

    Concurrent requests with the same key share one lookup and its error; errors are not cached. The cache is
    bounded: of 10,000 owners the oldest half is dropped. Keys without an owner are kept apart, so that no
    number of them displaces an owner.

    Args:
        lookup: from a key to its customer, or None; one that is not async runs in a thread.
        ttl_s: how long an owner is cached, in seconds; a key without one, 5 seconds at most.
        hashed: whether the lookup gets a key's hash.
    """

    def __init__(self, lookup: KeyLookup, ttl_s: float, *, hashed: bool) -> None:
        self._lookup = lookup
        self._hashed = hashed
        self._failed = 0
        self._runs_on_the_loop = iscoroutinefunction(lookup) or iscoroutinefunction(
            getattr(lookup, "__call__", None)  # noqa: B004 - an object whose call is async
        )
        self._ttl_s = ttl_s
        self._owned: dict[str, tuple[Owner, float]] = {}
        self._unowned: dict[str, float] = {}
        self._pending: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[Owner | None]] = {}
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bool, CapacityLimiter]] = (
            WeakKeyDictionary()
        )

    def of(self, key: bytes) -> Owner | Awaitable[Owner | None] | None:
        """Find the owner of a key; without waiting if it is cached."""
        key_hash = digest_of(key)
        owned = self._owned.get(key_hash)
        if owned is not None and monotonic() < owned[1]:
            return owned[0]
        if monotonic() < self._unowned.get(key_hash, 0.0):
            return None
        if self._hashed:
            return self._fetch_once(key_hash, key_hash)
        try:
            return self._fetch_once(key_hash, key.decode())
        except UnicodeDecodeError:
            return None  # Keys are texts.

    async def _fetch_once(self, key_hash: str, asked_for: str) -> Owner | None:
        loop = asyncio.get_running_loop()
        while (asked := self._pending.get((loop, key_hash))) is not None:
            await asyncio.wait([asked])
            if not asked.cancelled():
                return asked.result()
            # The task that did the lookup was cancelled; another one does it.
        asked = self._pending[loop, key_hash] = loop.create_future()
        try:
            owner = await self._fetch_owner(asked_for, is_known=key_hash in self._owned)
        except Exception as error:
            asked.set_exception(error)
            asked.exception()  # It is raised here, whether or not anybody else waits for it.
            raise
        except BaseException:
            asked.cancel()
            raise
        else:
            self._cache_owner(key_hash, owner)
            asked.set_result(owner)
            return owner
        finally:
            del self._pending[loop, key_hash]

    async def _fetch_owner(self, asked_for: str, *, is_known: bool) -> Owner | None:
        try:
            if self._runs_on_the_loop:
                found = self._lookup(asked_for)
            else:
                found = await to_thread.run_sync(self._lookup, asked_for, limiter=self._limiter(is_known))
            return await found if isawaitable(found) else found
        except Exception as error:
            if not tells(error, asked_for):
                raise
            # Such as a KeyError of the key, or one that led to the error: the log must not have it.
            hidden = MeterkitError(f"the lookup of an API key raised {type(error).__name__}")
            raise hidden.with_traceback(error.__traceback__) from None

    def _limiter(self, is_known: bool) -> CapacityLimiter:
        """Own thread limiters: made-up keys use up neither the app's threads nor those of known keys."""
        limiters = self._limiters.setdefault(asyncio.get_running_loop(), {})
        if is_known not in limiters:
            limiters[is_known] = anyio.CapacityLimiter(_THREADS_MAX)
        return limiters[is_known]

    def _cache_owner(self, key_hash: str, owner: object) -> None:
        now = monotonic()
        self._count_unowned(is_found=owner is not None)
        self._owned.pop(key_hash, None)  # Inserting it again makes it the newest.
        self._unowned.pop(key_hash, None)
        if isinstance(owner, str | Caller):
            _put_bounded(self._owned, key_hash, (owner, now + self._ttl_s))
        elif owner is None:
            _put_bounded(self._unowned, key_hash, now + min(self._ttl_s, _UNOWNED_S_MAX))

    def _count_unowned(self, *, is_found: bool) -> None:
        """Warn once if no key has an owner: the lookup may expect another form of the key."""
        if is_found:
            self._failed = _FAILED_LOGGED  # It works.
        elif self._failed < _FAILED_LOGGED:
            self._failed += 1
            if self._failed == _FAILED_LOGGED:
                gets = "the SHA-256 of the key, in hex" if self._hashed else "the key as the client sent it"
                _logger.warning(
                    "identify.api_key: the first %d keys had no owner; the lookup gets %s (hashed=%s)",
                    _FAILED_LOGGED,
                    gets,
                    self._hashed,
                )


def _put_bounded(kept: dict[str, T], key_hash: str, value: T) -> None:
    if len(kept) >= _KEYS_KEPT_MAX:
        for oldest in list(kept)[: _KEYS_KEPT_MAX // 2]:
            kept.pop(oldest, None)  # Another thread may be doing the same.
    kept[key_hash] = value


def digest_of(key: bytes) -> str:
    """Hash a key: SHA-256, in hex."""
    return hashlib.sha256(key).hexdigest()
