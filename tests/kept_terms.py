"""The oracle of kept terms: the kit leaves what an operator has put on a subscription and its phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from world import World

__all__ = ["Terms", "read_terms"]

_SUBSCRIPTION: Final = (
    *("application_fee_percent", "collection_method", "days_until_due", "default_payment_method"),
    *("description", "on_behalf_of", "pause_collection", "transfer_data"),
)
_BOTH: Final = ("collection_method", "description", "default_tax_rates", "automatic_tax", "metadata")
_OF_ITEM: Final = ("tax_rates", "discounts", "metadata")
_LISTS: Final = frozenset({"default_tax_rates", "tax_rates", "discounts"})
_OURS: Final = "meterkit"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a subscription and its schedule say beside plan, seats and dates.

    Attributes:
        own: of the subscription.
        items: of its items, by id.
        phases: of phases that are not over: first second, end, terms.
        has_schedule: whether there is one.
    """

    subscription: str
    own: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    phases: tuple[tuple[int, int, Mapping[str, Any]], ...] = ()

    def lost(self, after: Terms | None, *, phases: bool = True) -> list[str]:
        """What differs afterwards, in words.

        Args:
            after: the terms then.
            phases: whether they are compared, too.
        """
        if after is None or after.subscription != self.subscription:
            return []
        wrong = _differences(self.own, after.own, "the subscription")
        for item in self.items.keys() & after.items.keys():
            wrong += _differences(self.items[item], after.items[item], item)
        for place, (start_s, _, terms) in enumerate(after.phases if phases else ()):
            (first_s, known) = next(
                ((first_s, of) for first_s, _, of in reversed(self.phases) if first_s <= start_s),
                (0, self.own),
            )
            # Metadata of a phase is added to the subscription's as the phase begins, and stays there. The
            # current phase has what the subscription has (decision 0365).
            left_out = {"metadata"} if first_s != start_s or not place else set[str]()
            compared = terms.keys() - left_out
            known = {name: value for name, value in known.items() if name in compared}
            wrong += _differences(known, terms, "a phase")
        return wrong

    @property
    def is_lasting(self) -> bool:
        """Whether no phase changes them."""
        return not any(_differences(self.own, of, "") for _, _, of in self.phases)


async def read_terms(world: World, customer: str) -> Terms | None:
    """The terms of the newest subscription that has not ended; None: there is none."""
    (found, *_) = [*await world.list("/v1/subscriptions", customer=customer), None]
    if found is None:
        return None
    shown = await world.ask(
        "GET",
        f"/v1/subscriptions/{found['id']}",
        **{"expand[0]": "discounts", "expand[1]": "schedule"},
    )
    own = {name: shown.get(name) for name in _SUBSCRIPTION} | _shared(shown)
    own["discounts"] = sorted(one["source"]["coupon"] for one in shown["discounts"] if one.get("end") is None)
    schedule: dict[str, Any] = shown.get("schedule") or {}
    now_s = int(world.clock())
    return Terms(
        subscription=shown["id"],
        own=own,
        items={
            item["id"]: {name: _plain(name, item.get(name)) for name in _OF_ITEM}
            for item in shown["items"]["data"]
        },
        phases=tuple(
            (
                phase["start_date"],
                phase["end_date"] or 1 << 40,
                _shared(
                    {**phase, "collection_method": phase["collection_method"] or shown["collection_method"]}
                ),
            )
            for phase in schedule.get("phases", ())
            if (phase["end_date"] or 1 << 40) > now_s
        ),
    )


def _shared(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The terms that subscriptions and phases have both."""
    return {name: _plain(name, shown.get(name)) for name in _BOTH}


def _plain(name: str, value: Any) -> Any:
    if name == "metadata":
        metadata: Mapping[str, str] = value or {}
        return {key: text for key, text in metadata.items() if not key.startswith(_OURS)}
    if name == "automatic_tax":
        tax: Mapping[str, Any] = value or {}
        return bool(tax.get("enabled"))
    if name in _LISTS:
        listed: list[Any] = value or []
        return sorted(_id(one) for one in listed)
    return value or None


def _id(one: str | Mapping[str, Any]) -> str:
    return one if isinstance(one, str) else str(one["id"])


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> list[str]:
    return [
        f"{name} of {where} was {before[name]}, and is {after[name]}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
