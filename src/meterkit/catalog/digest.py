"""The content hash of a catalog: what it means, not how it is spelled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.catalog.models import Catalog, Route

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where the file lies, how a route's match is spaced and what there is to note change nothing.
_SPELLING: Final[Mapping[type, tuple[str, ...]]] = {
    Catalog: ("source", "content_hash", "notes"),
    Route: ("match",),
}


def digest(catalog: Catalog) -> Catalog:
    """The catalog with its ``content_hash``."""
    meaning = json.dumps(catalog, default=_plain, sort_keys=True, separators=(",", ":"))
    return replace(catalog, content_hash=hashlib.blake2b(meaning.encode(), digest_size=8).hexdigest())


def _plain(value: Any) -> object:
    """What JSON does not know by itself: sets of words, and the values of :mod:`meterkit.catalog.models`."""
    if isinstance(value, frozenset):
        return sorted(cast("frozenset[str]", value))
    spelling = next((names for kind, names in _SPELLING.items() if isinstance(value, kind)), ())
    return {one.name: getattr(value, one.name) for one in fields(value) if one.name not in spelling}
