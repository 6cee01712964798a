"""The content hash of a catalog: what it means, not how it is spelled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.models import Catalog

# Where the file lies, how a route's match is spaced and what there is to note change nothing.
_SPELLING: Final = frozenset({"source", "content_hash", "match", "notes"})


def digest(catalog: Catalog) -> Catalog:
    """The catalog with its ``content_hash``."""
    meaning = json.dumps(_plain(catalog), sort_keys=True, separators=(",", ":"))
    return replace(catalog, content_hash=hashlib.blake2b(meaning.encode(), digest_size=8).hexdigest())


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in fields(value)
            if field.name not in _SPELLING
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, frozenset):
        return sorted(cast("frozenset[str]", value))
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value
