"""What goes into the emulator: a request, with its parameters in Stripe's form encoding."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qsl

from meterkit.testing.emulator.replies import ApiError, missing_parameter, unknown_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["PAGING", "Call", "Params"]

PAGING: Final = ("limit", "starting_after", "ending_before")
Form: TypeAlias = "dict[str, str | Form]"
KEY: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
PART: Final = re.compile(r"\[([^\[\]]*)\]")
INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
BOUNDS: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 10


@dataclass(init=False, repr=False)
class Params:
    """The parameters of one request: ``payload[value]=3&expand[0]=data``.

    Args:
        encoded: a query string or a form body.

    Raises:
        ApiError: from here and from every method, where a parameter is not what it must be.
    """

    _form: Form

    def __init__(self, encoded: str) -> None:
        self._form = {}
        for key, value in parse_qsl(encoded, keep_blank_values=True):
            _insert(self._form, key=key, value=value)

    def only(self, *allowed: str, expandable: Collection[str] = ()) -> None:
        """Refuse parameters that are not named, and to expand what cannot be; else that has no effect."""
        for name in self._form.keys() - {*allowed, "expand"}:
            raise unknown_parameter(name)
        for wanted in self.texts("expand").values():
            if wanted.removeprefix("data.") not in expandable:
                raise ApiError(f"This property cannot be expanded ({wanted}).", param="expand")

    def given(self, name: str, *, length_max: int = 5000) -> str | None:
        """Return a text that must not be empty where it is given."""
        value = self.text(name, length_max=length_max)
        if value == "":
            raise ApiError(
                f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{name}' cannot be unset.",
                code="parameter_invalid_empty",
                param=name,
            )
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._form

    def text(self, name: str, *, length_max: int = 5000) -> str | None:
        """Return a text, or None where it is absent. ``a[b]`` names a parameter inside another."""
        value = self._find(name)
        if isinstance(value, dict):
            raise ApiError(f"Invalid string: {name} is a hash", param=name)
        if value is not None and len(value) > length_max:
            raise ApiError(f"Invalid string: {value}; must be at most {length_max} characters", param=name)
        return value

    def required(self, name: str, *, length_max: int = 5000) -> str:
        """Return a text that must be given and not be empty."""
        value = self.text(name, length_max=length_max)
        if not value:
            raise missing_parameter(name)
        return value

    def integer(self, name: str) -> int | None:
        """Return an integer, or None where it is absent."""
        value = self.text(name)
        if value is None:
            return None
        if not INTEGER.fullmatch(value):
            raise ApiError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        return int(value)

    def boolean(self, name: str) -> bool | None:
        """Return true or false, or None where it is absent."""
        value = self.text(name)
        if value not in {None, "true", "false"}:
            raise ApiError(f"Invalid boolean: {value}", param=name)
        return None if value is None else value == "true"

    def span(self, name: str) -> Callable[[int], bool]:
        """Return whether an instant is one that is asked for: ``created=1`` or ``created[gte]=1``."""
        if name not in self:
            return lambda _: True
        if not self.is_hash(name):
            at = self.integer(name)
            return lambda instant: instant == at
        for bound in self.texts(name).keys() - BOUNDS.keys():
            raise unknown_parameter(f"{name}[{bound}]")
        bounds = {bound: self.integer(f"{name}[{bound}]") or 0 for bound in self.texts(name)}
        return lambda instant: all(BOUNDS[bound](instant, at) for bound, at in bounds.items())

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """Return one of ``allowed``, or None where it is absent."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise ApiError(f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return value

    def is_hash(self, name: str) -> bool:
        """Tell whether a parameter has parts in brackets."""
        return isinstance(self._form.get(name), dict)

    def texts(self, name: str) -> dict[str, str]:
        """Return a hash of texts, empty where it is absent."""
        value = self._form.get(name, {})
        if not isinstance(value, dict):
            raise ApiError("Invalid object", param=name)
        inner: dict[str, str] = {}
        for key, text in value.items():
            if isinstance(text, dict):
                raise ApiError(f"Invalid string: {name}[{key}] is a hash", param=f"{name}[{key}]")
            inner[key] = text
        return inner

    def page(self, items: Sequence[JsonObject], *, url: str) -> JsonObject:
        """Return the page of a list that is asked for: ``limit`` (10 where it is absent) and a cursor."""
        limit = self.integer("limit")
        limit = PAGE_DEFAULT if limit is None else limit
        if not 1 <= limit <= PAGE_MAX:
            raise ApiError(f"Invalid limit: {limit}; must be between 1 and {PAGE_MAX}", param="limit")
        shown = slice(limit)
        if "starting_after" in self:
            items = items[self._cursor(items, "starting_after") + 1 :]
        elif "ending_before" in self:
            items, shown = items[: self._cursor(items, "ending_before")], slice(-limit, None)
        return {"object": "list", "data": list(items[shown]), "has_more": len(items) > limit, "url": url}

    def _cursor(self, items: Sequence[JsonObject], name: str) -> int:
        cursor, ids = self.text(name), [item["id"] for item in items]
        if cursor in ids:
            return ids.index(cursor)
        raise ApiError(f"No such object: '{cursor}'", code="resource_missing", param=name)

    def _find(self, name: str) -> str | Form | None:
        found: str | Form | None = self._form
        for part in name.replace("]", "").split("["):
            found = found.get(part) if isinstance(found, dict) else None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request.

    Attributes:
        now: the emulator's clock in Unix seconds.
        object_id: the id in the path, or an empty text.
        lose: whether a fault wants the event answered with 200 and not counted.
    """

    method: str
    path: str
    params: Params
    now: float
    livemode: bool
    idempotency_key: str | None
    object_id: str = ""
    request_id: str = ""
    lose: bool = False


def _insert(form: Form, *, key: str, value: str) -> None:
    match = KEY.fullmatch(key)
    if match is None:
        raise ApiError(f"Invalid parameter name: {key}", param=key)
    inner: list[str] = PART.findall(match[2])
    *path, last = [match[1], *inner]
    for part in path:
        below = form.setdefault(part, {})
        if not isinstance(below, dict):
            raise ApiError(f"Invalid parameter: {key} is both a string and a hash", param=key)
        form = below
    form[last or str(len(form))] = value
