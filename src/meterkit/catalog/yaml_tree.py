"""Tree of a plans file, in which every value knows its place, and nothing is guessed.

Scalars stay text; whether ``1_000`` is a number is the schema's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from meterkit.catalog.errors import FilePlace, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE_MAX: Final = 1024 * 1024
DEPTH_MAX: Final = 32

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar, exactly as written."""

    place: FilePlace
    text: str
    quoted: bool

    @property
    def is_null(self) -> bool:
        """Whether it is YAML's nothing: empty, ``null`` or ``~``, without quotes."""
        return not self.quoted and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: FilePlace
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """A map. A value's own place is that of its key; ``places`` differs from it for aliases."""

    place: FilePlace
    values: Mapping[str, Node]
    places: Mapping[str, FilePlace]


Node: TypeAlias = "Text | Items | Fields"


def kind_of(node: Node) -> str:
    """Description of a node for messages."""
    if isinstance(node, Text):
        null = "null" if node.text else "nothing"
        return null if node.is_null else quoted(node.text)
    return "a list" if isinstance(node, Items) else "a map"
