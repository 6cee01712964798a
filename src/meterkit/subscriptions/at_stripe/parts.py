"""Parts of what Stripe shows: there, not there, or an id in place of what it stands for. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CUSTOMER", "id_in", "part_of", "text_in"]

CUSTOMER: Final = "meterkit_customer"
"""The key of the metadata at Stripe under which the app's own id of a customer stands."""


def part_of(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part that is an object; an empty one where it is none, or only its id."""
    inner: object = found.get(name)
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}


def text_in(found: Mapping[str, Any], name: str) -> str:
    """A text; empty where there is none."""
    inner: object = found.get(name)
    return inner if isinstance(inner, str) else ""


def id_in(found: Mapping[str, Any], name: str) -> str:
    """The id of a part, expanded or not; empty where there is none."""
    return text_in(found, name) or text_in(part_of(found, name), "id")
