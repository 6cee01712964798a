"""Frozen values of the block ``storage:``: a gauge, and the stored objects that count for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OTHER_TYPE: Final = "other"
"""The type of stored objects whose key names none of the plans file's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPattern:
    """A bucket, and how its objects' keys name customer and type, such as ``{customer}/{path:path}``."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Stored objects that count for a gauge.

    Attributes:
        gauge: the meter that holds the bytes of all objects of a customer.
        objects: the first that matches an object's bucket and key says whose it is.
        types: that usage shows apart; any other is ``other``.
    """

    gauge: str
    objects: tuple[ObjectPattern, ...]
    types: tuple[str, ...] = ()
