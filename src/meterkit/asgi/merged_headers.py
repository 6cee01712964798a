"""Merge our headers with those of the app's response."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


EXPOSE: Final = b"access-control-expose-headers"

# Fields that are read together: with one of ours, none of the app's may stay.
_FAMILIES: Final = (
    frozenset({b"ratelimit-policy", b"ratelimit"}),
    frozenset({b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}),
)


def merge_headers(
    headers: Iterable[tuple[bytes, bytes]], ours: Sequence[tuple[bytes, bytes]], *, expose: bool
) -> list[tuple[bytes, bytes]]:
    """Replace the app's headers of the same names and families by ours, in a new list.

    Args:
        headers: what the app sent; what cannot be compared is passed on as it is.
        ours: lower-cased names and their values.
        expose: whether scripts of other origins are to be shown our fields.
    """
    items = list(headers)
    names = dict(ours)
    replaced = _replaced_names(tuple(names))
    try:
        kept = [pair for pair in items if pair[0].lower() not in replaced]
        if expose and names:
            kept = _expose(kept, names)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        kept = items
    kept += ours
    return kept


@lru_cache(maxsize=64)  # Few sets of fields are sent, each with most responses.
def _replaced_names(names: tuple[bytes, ...]) -> frozenset[bytes]:
    """Find the names that none of the app's headers may keep beside ours."""
    return frozenset(names).union(*(family for family in _FAMILIES if family.intersection(names)))


def _expose(headers: list[tuple[bytes, bytes]], names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Join the lists of exposed names into one, at the place of the app's first."""
    rest: list[tuple[bytes, bytes]] = []
    shown = b""
    place = None
    for pair in headers:
        if pair[0].lower() == EXPOSE:
            place = len(rest) if place is None else place
            shown = join_names(shown, pair[1])
        else:
            rest.append(pair)
    rest.insert(len(rest) if place is None else place, (EXPOSE, join_names(shown, b",".join(names))))
    return rest


def join_names(first: bytes, second: bytes) -> bytes:
    """Join two lists of names; each name once, in the case in which it stands first."""
    found: dict[bytes, bytes] = {}
    for token in (*first.split(b","), *second.split(b",")):
        name = token.strip()
        if name:
            found.setdefault(name.lower(), name)
    return b", ".join(found.values())
