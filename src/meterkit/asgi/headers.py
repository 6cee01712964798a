"""The fields that tell a client of its limits, and their way into an answer.

``RateLimit-Policy`` and ``RateLimit`` follow draft-ietf-httpapi-ratelimit-headers-11 and are written as
Structured Fields (RFC 9651).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meterkit.catalog.models import Headers
    from meterkit.decisions.decision import Policy

__all__ = ["fields", "join", "limit_field", "merge", "policy_field", "quoted", "x_fields"]

INTEGER_MAX: Final = 10**15 - 1
EXPOSE: Final = b"access-control-expose-headers"

_UNWRITABLE: Final = re.compile(r"[^\x20-\x7e]")


def policy_field(policies: Sequence[Policy]) -> bytes:
    """The value of ``RateLimit-Policy``; empty where there are no policies: then the field is left out."""
    return b", ".join(map(_policy, policies))


def limit_field(name: str, remaining: int, reset_s: int | None) -> bytes:
    """The value of ``RateLimit`` for the policy of that name; ``reset_s`` in seconds from now."""
    if reset_s is None:
        return b"%b;r=%d" % (quoted(name), _integer(remaining))
    return b"%b;r=%d;t=%d" % (quoted(name), _integer(remaining), _integer(reset_s))


def x_fields(quota: int, remaining: int, reset_at_s: int | None) -> list[tuple[bytes, bytes]]:
    """The ``X-RateLimit-*`` fields; ``reset_at_s`` in seconds since the epoch."""
    found = [
        (b"x-ratelimit-limit", b"%d" % _integer(quota)),
        (b"x-ratelimit-remaining", b"%d" % _integer(remaining)),
    ]
    if reset_at_s is not None:
        found.append((b"x-ratelimit-reset", b"%d" % _integer(reset_at_s)))
    return found


def fields(
    mode: Headers,
    *,
    policies: bytes,
    limit: Policy | None,
    remaining: int | None,
    reset_s: int | None,
    now_s: int,
) -> list[tuple[bytes, bytes]]:
    """All fields of one answer.

    Args:
        mode: which family of fields the route sends.
        policies: the value of ``RateLimit-Policy``, made once per plan by `policy_field`.
        limit: the policy nearest to exhaustion, or None where none applies.
        remaining: units left under ``limit``.
        reset_s: seconds until ``limit`` is whole again, or None where that is not known.
        now_s: seconds since the epoch.
    """
    found: list[tuple[bytes, bytes]] = []
    if mode == "none":
        return found
    ietf = mode != "x-ratelimit"
    if ietf and policies:
        found.append((b"ratelimit-policy", policies))
    if limit is None or remaining is None:
        return found
    if ietf:
        found.append((b"ratelimit", limit_field(limit.name, remaining, reset_s)))
    if mode != "ietf":
        found += x_fields(limit.quota, remaining, None if reset_s is None else now_s + reset_s)
    return found


def merge(
    headers: Iterable[tuple[bytes, bytes]], ours: Sequence[tuple[bytes, bytes]], *, expose: bool
) -> list[tuple[bytes, bytes]]:
    """The app's headers with ours in place of any of the same name, as a new list.

    Args:
        headers: what the app sent; what cannot be compared is passed on as it is.
        ours: lower-cased names and their values.
        expose: whether scripts of other origins are to be shown our fields.
    """
    items = list(headers)
    names = dict(ours)
    try:
        kept = [pair for pair in items if pair[0].lower() not in names]
        if expose and names:
            kept = _exposed(kept, names)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        kept = items
    kept += ours
    return kept


def _exposed(headers: list[tuple[bytes, bytes]], names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers with one list of exposed names, at the place of the app's first."""
    rest: list[tuple[bytes, bytes]] = []
    shown = b""
    place = None
    for pair in headers:
        if pair[0].lower() == EXPOSE:
            place = len(rest) if place is None else place
            shown = join(shown, pair[1])
        else:
            rest.append(pair)
    rest.insert(len(rest) if place is None else place, (EXPOSE, join(shown, b",".join(names))))
    return rest


def join(first: bytes, second: bytes) -> bytes:
    """One list of names from two, each name once, in whatever case it was written first."""
    found: dict[bytes, bytes] = {}
    for token in (*first.split(b","), *second.split(b",")):
        name = token.strip()
        if name:
            found.setdefault(name.lower(), name)
    return b", ".join(found.values())


def _policy(policy: Policy) -> bytes:
    text = b"%b;q=%d" % (quoted(policy.name), _integer(policy.quota))
    if policy.quota_unit is not None:
        text += b";qu=%b" % quoted(policy.quota_unit)
    if policy.window_s is not None:
        text += b";w=%d" % _integer(policy.window_s)
    return text


@lru_cache(maxsize=1024)
def quoted(text: str) -> bytes:
    """A Structured Field String (RFC 9651 section 3.3.3), which has no way to write what is not ASCII."""
    printable = _UNWRITABLE.sub("?", text)
    return b'"%b"' % printable.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")


def _integer(value: int) -> int:
    """The nearest Structured Field Integer that is not negative: 15 digits at most."""
    if 0 <= value <= INTEGER_MAX:
        return value
    return 0 if value < 0 else INTEGER_MAX
