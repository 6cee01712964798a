"""Request parameters in Stripe's form encoding: ``payload[value]=3&expand[0]=data``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qsl

from meterkit.testing.emulator.exchange import ApiError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Params"]

Form: TypeAlias = "dict[str, str | Form]"
KEY: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
PART: Final = re.compile(r"\[([^\[\]]*)\]")
INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 10


class Params:
    """The parameters of one request.

    Args:
        encoded: a query string or a form body.

    Raises:
        ApiError: from here and from every method, where a parameter is not what it must be.
    """

    def __init__(self, encoded: str) -> None:
        self._form: Form = {}
        for key, value in parse_qsl(encoded, keep_blank_values=True):
            _insert(self._form, key=key, value=value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Params) and self._form == other._form

    def __hash__(self) -> int:
        return hash(repr(self._form))

    def only(self, *allowed: str, expandable: Collection[str] = ()) -> None:
        """Refuse parameters that are not named, and to expand what cannot be; else that has no effect."""
        for name in self._form.keys() - {*allowed, "expand"}:
            raise ApiError(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
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
            raise ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)
        return value

    def integer(self, name: str) -> int | None:
        """Return an integer, or None where it is absent."""
        value = self.text(name)
        if value is None:
            return None
        if not INTEGER.fullmatch(value):
            raise ApiError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
        return int(value)

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

    def page_size(self) -> int:
        """Return ``limit``: 1 to 100, 10 where it is absent."""
        limit = self.integer("limit")
        if limit is None:
            return PAGE_DEFAULT
        if not 1 <= limit <= PAGE_MAX:
            raise ApiError(f"Invalid limit: {limit}; must be between 1 and {PAGE_MAX}", param="limit")
        return limit

    def _find(self, name: str) -> str | Form | None:
        found: str | Form | None = self._form
        for part in name.replace("]", "").split("["):
            found = found.get(part) if isinstance(found, dict) else None
        return found


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
