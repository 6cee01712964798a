"""The content hash of a catalog: what it means, not how it is spelled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from meterkit.catalog.models import Catalog

# Where the file lies, how a route's match is spaced and what there is to note change nothing.
_SPELLING: Final = frozenset({"source", "content_hash", "match", "notes"})


def digest(catalog: Catalog) -> Catalog:
    """The catalog with its ``content_hash``."""
    # What JSON does not know are sets of words.
    meaning = json.dumps(
        asdict(catalog, dict_factory=_meaningful), sort_keys=True, separators=(",", ":"), default=sorted
    )
    return replace(catalog, content_hash=hashlib.blake2b(meaning.encode(), digest_size=8).hexdigest())


def _meaningful(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in _SPELLING}
