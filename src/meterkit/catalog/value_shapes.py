"""The shapes that values of a plans file may have: each reads a node and describes itself to editors.

A shape returns what it read, or None where there is nothing to go on with: the value was absent,
null where null is allowed, or refused, and then the problem is noted. The JSON Schema is made from
the same shapes, so the two cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar, cast, overload

from meterkit.catalog.errors import RefusedError, listed, quoted, suggestion
from meterkit.catalog.yaml_tree import Fields, Items, Node, Text, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Self

    from meterkit.catalog.errors import FilePlace, Problems

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
W_co = TypeVar("W_co", bound=str, covariant=True)
R_co = TypeVar("R_co", covariant=True)

Json = dict[str, object]

_TEXT_MAX: Final = 1024


class ValueShape(Protocol[T_co]):
    """Reader of one kind of value, which also describes it as JSON Schema."""

    def read(self, node: Node, problems: Problems) -> T_co | None:
        """Read a node; None where it was refused or null."""
        ...

    def schema(self) -> Json:
        """JSON Schema of such values."""
        ...


@dataclass(frozen=True, slots=True)
class Scalar(Generic[T_co]):
    """A text that ``parse`` turns into a value, raising RefusedError where it cannot."""

    parse: Callable[[str], T_co]
    allowed: str
    json: Mapping[str, object]

    def read(self, node: Node, problems: Problems) -> T_co | None:
        """The parsed value."""
        if not isinstance(node, Text) or node.is_null:
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: {self.allowed}")
        elif len(node.text) > _TEXT_MAX:
            problems.refuse(
                node.place, f"found a text of {len(node.text)} characters; allowed: {self.allowed}"
            )
        else:
            try:
                return self.parse(node.text)
            except RefusedError as error:
                problems.refuse(node.place, f"found {quoted(node.text)}; {error}")
        return None

    def schema(self) -> Json:
        """The scalar's own description."""
        return dict(self.json)


class WordChoice(Generic[W_co]):
    """One of a few words; ``others`` tells of what else may stand in their place."""

    def __init__(self, words: Sequence[W_co], *, others: str = "") -> None:
        self._words = {str(word): word for word in words}
        self._allowed = listed(self._words) + others

    def read(self, node: Node, problems: Problems) -> W_co | None:
        """The word."""
        if isinstance(node, Text) and node.text in self._words:
            return self._words[node.text]
        near = suggestion(node.text, self._words) if isinstance(node, Text) else ""
        problems.refuse(node.place, f"found {kind_of(node)}; allowed: {self._allowed}{near}")
        return None

    def schema(self) -> Json:
        """An enumeration."""
        numbers = [int(word) for word in self._words if word.isdigit()]
        return {"enum": [*numbers, *self._words]}


@dataclass(frozen=True, slots=True)
class Nullable(Generic[T_co]):
    """The inner shape, or null for "none"."""

    inner: ValueShape[T_co]

    def read(self, node: Node, problems: Problems) -> T_co | None:
        """The inner shape's value, or None for null."""
        return None if isinstance(node, Text) and node.is_null else self.inner.read(node, problems)

    def schema(self) -> Json:
        """Either of the two."""
        return {"anyOf": [self.inner.schema(), {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class ListOf(Generic[T_co]):
    """A list of one shape; what is refused is left out."""

    inner: ValueShape[T_co]
    of: str
    at_least: int = 0

    def read(self, node: Node, problems: Problems) -> tuple[T_co, ...] | None:
        """The items."""
        if not isinstance(node, Items):
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: a list of {self.of}")
            return None
        if len(node.items) < self.at_least:
            problems.refuse(node.place, f"found an empty list; allowed: a list of {self.of}, at least one")
        read = (self.inner.read(item, problems) for item in node.items)
        return tuple(item for item in read if item is not None)

    def schema(self) -> Json:
        """An array."""
        least: Json = {"minItems": self.at_least} if self.at_least else {}
        return {"type": "array", "items": self.inner.schema(), **least}


@dataclass(frozen=True, slots=True)
class MapOf(Generic[T_co]):
    """A map from names to one shape; a refused value is kept as None, so that its name is known."""

    name: ValueShape[str]
    inner: ValueShape[T_co]
    of: str
    at_least: int = 0

    def read(self, node: Node, problems: Problems) -> dict[str, T_co | None] | None:
        """The entries in the file's order."""
        if not isinstance(node, Fields):
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: a map of {self.of}")
            return None
        if len(node.values) < self.at_least:
            problems.refuse(node.place, f"found an empty map; allowed: a map of {self.of}, at least one")
        for name, place in node.places.items():
            self.name.read(Text(place, name, quoted=True), problems)
        return {name: self.inner.read(value, problems) for name, value in node.values.items()}

    def schema(self) -> Json:
        """An object with free keys."""
        least: Json = {"minProperties": self.at_least} if self.at_least else {}
        names = self.name.schema()
        return {
            "type": "object",
            "propertyNames": names,
            "additionalProperties": self.inner.schema(),
            **least,
        }


def drop_refused(read: Mapping[str, T | None] | None) -> dict[str, T]:
    """The valid values of a map that was read."""
    return {name: value for name, value in (read or {}).items() if value is not None}


@dataclass(slots=True, eq=False)
class Key(Generic[T]):
    """One key of a table: an attribute of the table that was read, None where it says nothing to go on with.

    Attributes:
        doc: one line for editors.
        name: as the file writes it; by default as the attribute is called.
        required: whether the table is refused without it.
    """

    shape: ValueShape[T]
    doc: str
    name: str = ""
    required: bool = False

    def __set_name__(self, owner: object, attribute: str) -> None:
        self.name = self.name or attribute

    @overload
    def __get__(self, table: None, owner: object) -> Key[T]: ...
    @overload
    def __get__(self, table: Table, owner: object) -> T | None: ...
    def __get__(self, table: Table | None, owner: object) -> Key[T] | T | None:
        return self if table is None else cast("T | None", table.values.get(self.name))


_NO_HINTS: Final[Mapping[str, str]] = {}


class Table:
    """A map with known keys: a subclass declares them, and an instance is one that was read.

    Args:
        node: what was read.
        values: what it says, by the names of the keys.
        problems: what is found wrong with the file.
    """

    _what: ClassVar[str]
    _inheritable: ClassVar[bool]
    _meant: ClassVar[Mapping[str, str]]
    _keys: ClassVar[dict[str, Key[Any]]]

    def __init_subclass__(
        cls, *, what: str, inheritable: bool = False, meant: Mapping[str, str] = _NO_HINTS
    ) -> None:
        """Note the keys; one that is required in an ``inheritable`` table may come from an extended plan.

        Args:
            what: the table, in words.
            inheritable: see above.
            meant: for keys of other products, what they are here, in words.
        """
        cls._what, cls._inheritable, cls._meant = what, inheritable, meant
        cls._keys = {name: key for name, key in vars(cls).items() if isinstance(key, Key)}

    def __init__(self, node: Fields, values: Mapping[str, object], problems: Problems) -> None:
        self.node = node
        self.values = values
        self.problems = problems

    @classmethod
    def read(cls, node: Node, problems: Problems) -> Self | None:
        """The table; unknown and missing keys are noted."""
        keys = {key.name: key for key in cls._keys.values()}
        if not isinstance(node, Fields):
            message = f"found {kind_of(node)}; allowed: a map for {cls._what}, with {listed(keys)}"
            problems.refuse(node.place, message)
            return None
        for name, place in node.places.items():
            if name not in keys:
                problems.refuse(place, cls._unknown_key_message(name, keys))
        for key in keys.values():
            if key.required and key.name not in node.values:
                missing = replace(node.place, path=node.place.child(key.name).path)
                problems.refuse(missing, f"{cls._what} needs this key: {key.doc}")
        values = {
            name: key.shape.read(node.values[name], problems)
            for name, key in keys.items()
            if name in node.values
        }
        return cls(node, values, problems)

    @classmethod
    def _unknown_key_message(cls, name: str, known: Iterable[str]) -> str:
        if name == "<<":
            return "merge keys are not read; use `extends`, or write the keys out"
        allowed = f"allowed in {cls._what}: {listed(known)}"
        if name.isdecimal():
            return f"unknown key {quoted(name)}; within {{ }} a comma ends a number: write 10_000, not 10,000"
        hint = f"; {cls._meant[name]}" if name in cls._meant else suggestion(name, known)
        return f"unknown key {quoted(name)}; {allowed}{hint}"

    @classmethod
    def schema(cls) -> Json:
        """An object with these keys only."""
        keys = cls._keys.values()
        properties = {key.name: {"description": key.doc, **key.shape.schema()} for key in keys}
        required = [key.name for key in keys if key.required and not cls._inheritable]
        needs: Json = {"required": required} if required else {}
        return {"type": "object", "properties": properties, "additionalProperties": False, **needs}

    def given(self, *attributes: str) -> dict[str, Any]:
        """Accepted values of these attributes, or of all, as keyword arguments of a model."""
        names = [name for name in attributes or self._keys if self.has(name) and not self.is_refused(name)]
        return {name: getattr(self, name) for name in names}

    def has(self, *attributes: str) -> bool:
        """Whether the file says anything under one of these keys."""
        return any(self._keys[attribute].name in self.node.values for attribute in attributes)

    def is_refused(self, attribute: str) -> bool:
        """Whether the file says something under the key, and it was refused."""
        node = self._node(attribute)
        may_be_null = isinstance(self._keys[attribute].shape, Nullable)
        is_null = may_be_null and isinstance(node, Text) and node.is_null
        return node is not None and not is_null and getattr(self, attribute) is None

    def place(self, attribute: str) -> FilePlace:
        """FilePlace of the key; the table's own if the key is absent."""
        return self.node.places.get(self._keys[attribute].name, self.node.place)

    def refuse(self, attribute: str, message: str) -> None:
        """Note that what stands under the key is wrong."""
        self.problems.refuse(self.place(attribute), message)

    def text(self, attribute: str) -> str | None:
        """The scalar under the key as written; None where there is none."""
        node = self._node(attribute)
        return node.text if isinstance(node, Text) else None

    def nodes(self, *attributes: str) -> list[Node]:
        """Nodes under these keys, as written."""
        return [node for attribute in attributes if (node := self._node(attribute)) is not None]

    def places(self, attribute: str) -> Mapping[str, FilePlace]:
        """Places of the entries of the map under the key."""
        node = self._node(attribute)
        return node.places if isinstance(node, Fields) else {}

    def texts(self, attribute: str) -> list[Text]:
        """The scalars of the list under the key, as written."""
        node = self._node(attribute)
        return [item for item in node.items if isinstance(item, Text)] if isinstance(node, Items) else []

    def _node(self, attribute: str) -> Node | None:
        return self.node.values.get(self._keys[attribute].name)


@dataclass(frozen=True, slots=True)
class MappedShape(Generic[T, R_co]):
    """A shape whose value is made from another's."""

    inner: ValueShape[T]
    build: Callable[[T], R_co | None]

    def read(self, node: Node, problems: Problems) -> R_co | None:
        """The made value."""
        value = self.inner.read(node, problems)
        return None if value is None else self.build(value)

    def schema(self) -> Json:
        """The inner shape's."""
        return self.inner.schema()


@dataclass(frozen=True, slots=True)
class AnyForm(Generic[T_co]):
    """A value that may be written as a scalar, as a list or as a map."""

    allowed: str
    scalar: ValueShape[T_co] | None = None
    items: ValueShape[T_co] | None = None
    fields: ValueShape[T_co] | None = None

    def read(self, node: Node, problems: Problems) -> T_co | None:
        """Value of the form that the file uses."""
        shape = {Text: self.scalar, Items: self.items, Fields: self.fields}[type(node)]
        if shape is None or (isinstance(node, Text) and node.is_null):
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: {self.allowed}")
            return None
        return shape.read(node, problems)

    def schema(self) -> Json:
        """Any of the forms."""
        forms = (self.scalar, self.items, self.fields)
        return {"anyOf": [form.schema() for form in forms if form is not None]}
