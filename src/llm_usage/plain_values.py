"""Foreign objects as plain values, at a bounded cost and without running code of theirs.

Only values that an object holds already are read: members of mappings, instance dictionaries, slots. No
property is read, since it may do anything: ``httpx.Response.read()`` waits for a network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from itertools import chain, islice
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

from llm_usage.json_values import table

if TYPE_CHECKING:
    from llm_usage.json_values import Table

MEMBERS_MAX: Final = 2_048
ITEMS_MAX: Final = 256
_PLAIN: Final = (str, int, float, bytes)
_EXACT: Final = frozenset({*_PLAIN, bool, type(None)})
_NOTHING: Final[Mapping[str, Any]] = {}


def table_of(obj: object) -> Table | None:
    """Copy an object to dicts, lists and scalars; None where it has no members. Never raises.

    Of a large object the outer members come first, and those of its usage before all others: no more than
    2,048 members are read, and 256 items of each list. An object that is met again is not read again.
    """
    try:
        copied = _Copy().start(obj)
    except Exception:  # noqa: BLE001 - Foreign code; an unreadable object has no figures.
        return None
    return table(copied)


def kind_of(value: object) -> Any:
    """The type of an object, whatever its own ``__class__`` says."""
    return type(value)


def is_body(value: object) -> TypeGuard[bytes | bytearray | str]:
    """Whether it is bytes or text; asks the object itself nothing."""
    return issubclass(kind_of(value), bytes | bytearray | str)


def instance_members(obj: object) -> Mapping[str, Any]:
    """The members that an object holds itself, private ones included; none where it has no dictionary."""
    try:
        return cast("Mapping[str, Any]", object.__getattribute__(obj, "__dict__"))
    except AttributeError:
        return _NOTHING


def body_of(obj: object) -> bytes | None:
    """The body of an HTTP response, if it is one that has been read.

    Args:
        obj: a response of httpx, httpx2 or requests, what ``with_raw_response`` of an SDK gives around one,
            or a body itself.
    """
    if is_body(obj):
        return obj.encode("utf-8", "surrogatepass") if isinstance(obj, str) else bytes(obj)
    held = instance_members(obj)
    inner = held.get("http_response")
    if inner is not None:
        held = instance_members(inner)
    # The public properties read from the network, or decode and keep the text.
    content = held.get("_content")
    return content if isinstance(content, bytes) and "status_code" in held else None


class _Copy:
    """Copies from the outside to the inside, so that the bound cuts off what lies deepest."""

    __slots__ = ("_ahead", "_known", "_left")

    def __init__(self) -> None:
        self._left = MEMBERS_MAX
        self._ahead: deque[tuple[Any, Any, bool]] = deque()
        # The originals are kept: the id of a collected one could be that of the next one.
        self._known: dict[int, tuple[object, object]] = {}

    def start(self, obj: object) -> object:
        copied = self._copy_value(_dump_object(obj), urgent=False)
        while self._ahead and self._left > 0:
            with suppress(Exception):  # A foreign mapping may refuse to be read.
                self._fill_copy(*self._ahead.popleft())
        return copied

    def _copy_value(self, value: Any, *, urgent: bool) -> object:
        """The value, or a copy that is filled when its turn comes."""
        if issubclass(kind_of(value), _PLAIN):
            return value
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        copied: object = []
        source: Any = value
        if not issubclass(kind_of(value), list | tuple):
            copied, source = {}, _members(value)
            if source is None:
                return None
        self._known[id(value)] = (value, copied)
        (self._ahead.appendleft if urgent else self._ahead.append)((source, copied, urgent))
        return copied

    def _fill_copy(self, source: Any, copied: Any, urgent: bool) -> None:
        if isinstance(copied, list):
            items = cast("list[object]", copied)
            for value in islice(source, min(ITEMS_MAX, self._left)):
                items.append(value if type(value) in _EXACT else self._copy_value(value, urgent=urgent))
            self._left -= len(items)
            return
        self._left -= len(source)
        for name, value in islice(source.items(), self._left + len(source)):
            if type(value) in _EXACT:
                copied[name] = value
            elif isinstance(name, str):
                copied[name] = self._copy_value(value, urgent=urgent or _has_figures(name))


def _has_figures(name: str) -> bool:
    return "usage" in name or name == "statistics"  # Of a vector, with Vertex AI.


def _members(value: Any) -> Any:
    """The members as a mapping, None where there are none."""
    kind = kind_of(value)
    if issubclass(kind, dict):
        return value
    held = instance_members(value)
    if "__pydantic_fields__" in kind.__dict__:
        # Fields that the model does not know stand beside those that it does.
        extra = getattr(value, "__pydantic_extra__", None)
        return {**held, **extra} if extra else held
    if issubclass(kind, type):
        return None
    if issubclass(kind, Mapping):
        return value
    shown = {name: inner for name, inner in held.items() if name[:1] != "_"}
    if is_dataclass(kind):
        fields = (name for name in kind.__dataclass_fields__ if name[:1] != "_")
        return {**shown, **{name: _field_value(value, kind, held, name) for name in fields}}
    if shown:
        return shown
    return _slot_values(value, kind)


def _field_value(value: Any, kind: Any, held: Mapping[str, Any], name: str) -> object:
    if name in held:
        return held[name]
    # In a slot, or the default, which stands in the class.
    default = getattr(kind, name, None)
    if isinstance(default, MemberDescriptorType):
        return default.__get__(value, kind)
    return default if isinstance(default, _PLAIN) else None


def _slot_values(value: Any, kind: Any) -> Mapping[str, Any] | None:
    found: dict[str, Any] = {}
    bases: tuple[Any, ...] = kind.__mro__
    for name, member in chain.from_iterable(base.__dict__.items() for base in bases):
        if isinstance(member, MemberDescriptorType) and name[:1] != "_":
            try:
                found[name] = member.__get__(value, kind)
            except AttributeError:
                continue  # It was never set.
    return found or None


def _dump_object(obj: Any) -> Any:
    """Dump of an object without readable members that has a ``to_dict()``, as Vertex AI's do."""
    kind = kind_of(obj)
    if (
        issubclass(kind, type)
        or "__pydantic_fields__" in kind.__dict__
        or not callable(getattr(kind, "to_dict", None))
    ):
        return obj
    with suppress(Exception):  # Foreign code; an object that cannot be dumped may have members.
        dumped: Any = obj.to_dict()
        return dumped if issubclass(kind_of(dumped), Mapping) else obj
    return obj
