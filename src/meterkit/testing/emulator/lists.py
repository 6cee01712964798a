"""List envelopes, and where their pages begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from meterkit.testing.emulator.exchange import ApiError, JsonObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing.emulator.params import Params

__all__ = ["page"]


class Item(Protocol):
    """Something that can be listed."""

    @property
    def id(self) -> str:
        """What a cursor names."""
        ...

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it."""
        ...


AnyItem = TypeVar("AnyItem", bound=Item)


def page(items: Sequence[AnyItem], *, params: Params, url: str) -> JsonObject:
    """Return the page of ``items`` that ``params`` ask for. ``items`` are in the order of the list."""
    limit = params.page_size()
    after, before = params.text("starting_after"), params.text("ending_before")
    if after is not None:
        window = items[_place(items, cursor=after, param="starting_after") + 1 :]
        shown = window[:limit]
    elif before is not None:
        window = items[: _place(items, cursor=before, param="ending_before")]
        shown = window[-limit:]
    else:
        window = items
        shown = window[:limit]
    return {
        "object": "list",
        "data": [item.to_json() for item in shown],
        "has_more": len(window) > len(shown),
        "url": url,
    }


def _place(items: Sequence[AnyItem], *, cursor: str, param: str) -> int:
    for place, item in enumerate(items):
        if item.id == cursor:
            return place
    raise ApiError(f"No such object: '{cursor}'", code="resource_missing", param=param)
