"""The block ``billing.checkout``: options of Stripe's Checkout, and those that meterkit sets itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from meterkit.catalog.yaml_tree import Fields, Items, Node, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meterkit.catalog.errors import Problems

CheckoutOptions: TypeAlias = Mapping[str, Any]
"""Parameters of a Checkout Session (https://docs.stripe.com/api/checkout/sessions/create)."""
_OWN: Final = frozenset(
    {"mode", "customer", "customer_email", "line_items", "success_url", "cancel_url", "client_reference_id"}
    | {"metadata"}
)
_OWN_OF_SUBSCRIPTION: Final = frozenset({"metadata", "billing_mode", "trial_period_days", "trial_end"})
_SUBSCRIPTION: Final = "subscription_data"


def reserved_options(options: CheckoutOptions) -> Iterator[tuple[str, ...]]:
    """The paths of the options that meterkit sets itself, flat names (``line_items[0]``) included. Pure."""
    for name, value in options.items():
        first, *rest = _split_name(name)
        if first in _OWN or (first == _SUBSCRIPTION and rest and rest[0] in _OWN_OF_SUBSCRIPTION):
            yield (name,)
        elif name == _SUBSCRIPTION and isinstance(value, Mapping):
            given = cast("Mapping[str, Any]", value)
            yield from ((name, inner) for inner in given if _split_name(inner)[0] in _OWN_OF_SUBSCRIPTION)


def _split_name(name: object) -> list[str]:
    """The path that Stripe reads in the name of a form field: ``a[b]`` is ``b`` in ``a``."""
    return str(name).replace("]", "").split("[")


class OptionsShape:
    """Any map. Its texts stay as they are written: Stripe takes ``true``, ``7`` and ``auto`` as texts."""

    def read(self, node: Node, problems: Problems) -> dict[str, object] | None:
        """The map as Stripe takes it."""
        if not isinstance(node, Fields):
            problems.refuse(node.place, f"found {kind_of(node)}; allowed: a map of options of Checkout")
            return None
        found = {name: _plain_options(value) for name, value in node.values.items()}
        for path in reserved_options(found):
            holder: Fields = node
            for name in path[:-1]:
                inner = holder.values[name]
                holder = inner if isinstance(inner, Fields) else holder
            problems.refuse(holder.places[path[-1]], "meterkit sets this itself; leave it out")
        return _nested(found)

    def schema(self) -> dict[str, object]:
        """Any object."""
        return {"type": "object", "additionalProperties": True}


def _nested(options: CheckoutOptions) -> dict[str, object]:
    """Options with flat names (``automatic_tax[enabled]``) as maps, found by the first part of the name."""
    found = dict[str, object]()
    for name, value in options.items():
        *holders, last = _split_name(name)
        inner = found
        for holder in holders:
            inner[holder] = below = _as_map(inner.get(holder))
            inner = below
        more = _as_map(value)
        inner[last] = {**_as_map(inner.get(last)), **more} if more else value
    return found


def _as_map(value: object) -> dict[str, object]:
    """A copy of a map; empty if it is none."""
    return dict(cast("Mapping[str, object]", value)) if isinstance(value, Mapping) else {}


def _plain_options(node: Node) -> object:
    if isinstance(node, Fields):
        return {name: _plain_options(value) for name, value in node.values.items()}
    if isinstance(node, Items):
        return [_plain_options(item) for item in node.items]
    return None if node.is_null else node.text
