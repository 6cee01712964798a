"""A subscription with the amounts of its own currency; Stripe shows each price in its default one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from meterkit.stripe.prices import OPTIONS, shown_in
from meterkit.subscriptions.stripe_objects import items_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def prices_in_other_currencies(found: Mapping[str, Any]) -> Iterator[str]:
    """The ids of prices that a subscription, or a phase of its schedule, is not charged in as shown."""
    currency = text_in(found, "currency")
    for item in _items_of_all(found):
        price = part_of(item, "price")
        if currency and text_in(price, "id") and text_in(price, "currency") not in {"", currency}:
            yield text_in(price, "id")


def as_charged(found: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """A subscription whose items, and those of its schedule, show the amounts in its own currency.

    A price without a known amount stays as it is: its currency tells.

    Args:
        found: as Stripe shows it.
        known: prices with the amounts of their currencies, by id.
    """
    if not known or not any(prices_in_other_currencies(found)):
        return found
    currency = text_in(found, "currency")

    def convert(shown: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [_convert_item(item, currency, known) for item in shown]

    items = {**part_of(found, "items"), "data": convert(items_in(found))}
    converted: dict[str, Any] = {**found, "items": items}
    schedule = part_of(found, "schedule")
    if schedule:
        phases = cast("Sequence[Mapping[str, Any]]", schedule.get("phases") or [])
        later = [{**phase, "items": convert(items_in(phase))} for phase in phases]
        converted["schedule"] = {**schedule, "phases": later}
    return converted


def _convert_item(
    item: Mapping[str, Any], currency: str, known: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    price = part_of(item, "price")
    full = known.get(text_in(price, "id"))
    shown = None if full is None else shown_in({**price, OPTIONS: full.get(OPTIONS)}, currency)
    return item if shown is None else {**item, "price": shown}


def _items_of_all(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The items of a subscription and of all phases of its schedule."""
    for one in (found, *cast("list[Mapping[str, Any]]", part_of(found, "schedule").get("phases") or [])):
        yield from items_in(one)
