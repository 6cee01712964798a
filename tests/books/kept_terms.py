"""The oracle of kept terms: the kit leaves what an operator has put on a subscription and its phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from drivers.world import World

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

    ``once`` has the coupons of discounts for one invoice by the discount's id, ``spent`` the discounts that
    invoices have made use of, ``phases`` those that are not over. ``is_by_hand``: an operator has given the
    phases ahead terms of their own; they are not dropped.
    """

    subscription: str
    own: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    once: Mapping[str, str]
    spent: frozenset[str]
    now_s: int
    phases: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    is_by_hand: bool = False

    def lost(self, after: Terms | None, *, phases: bool = True) -> list[str]:
        """What differs afterwards, in words; ``phases``: whether they are compared, too."""
        if after is None or after.subscription != self.subscription:
            return []
        spent = [coupon for discount, coupon in self.once.items() if discount in after.spent]
        left = [coupon for coupon in self.own["discounts"] if coupon not in spent]
        wrong = _differences({**self.own, "discounts": left}, after.own, "the subscription")
        for item in self.items.keys() & after.items.keys():
            wrong += _differences(self.items[item], after.items[item], item)
        if phases:
            for start_s, terms in after.phases:
                wrong += self._lost_of_phase(start_s, terms)
            kept = {start_s for start_s, _ in after.phases}
            ahead = {start_s for start_s, _ in self.phases if self.is_by_hand and start_s > self.now_s}
            wrong += [f"the phase of {start_s} is gone" for start_s in ahead - kept]
        return wrong

    def _lost_of_phase(self, start_s: int, terms: Mapping[str, Any]) -> list[str]:
        """What a phase of afterwards has otherwise.

        The current one has what the subscription has, unless it was left as it was (decision 0082). One ahead
        stays, and a new one goes on with the terms of that time. Metadata of a phase is added to the
        subscription's as the phase begins, and stays there: the current one need not repeat it.
        """
        first_s, known = next(
            ((first_s, of) for first_s, of in reversed(self.phases) if first_s <= start_s), (0, self.own)
        )
        if start_s == first_s and terms == known:
            return []
        expected = dict(self.own if first_s <= self.now_s else known)
        if start_s <= self.now_s:
            expected["metadata"] = {
                name: value for name, value in expected["metadata"].items() if name in terms["metadata"]
            }
        elif start_s != first_s:
            del expected["metadata"]
        return _differences(expected, terms, f"the phase of {start_s}")

    def under(self, released: Terms | None) -> Terms:
        """The same with the phases ahead of a schedule that a cancellation has released."""
        if self.phases or released is None or released.subscription != self.subscription:
            return self
        ahead = tuple(phase for phase in released.phases if phase[0] > self.now_s)
        return replace(self, phases=ahead, is_by_hand=released.is_by_hand)

    @property
    def is_lasting(self) -> bool:
        """Whether no phase changes them."""
        return not any(_differences(self.own, of, "") for _, of in self.phases)


async def read_terms(world: World, customer: str) -> Terms | None:
    """The terms of the newest subscription that has not ended; None: there is none."""
    (found, *_) = [*await world.list("/v1/subscriptions", customer=customer), None]
    if found is None:
        return None
    shown = await world.ask(
        "GET", f"/v1/subscriptions/{found['id']}", **{"expand[0]": "discounts", "expand[1]": "schedule"}
    )
    own = {name: shown.get(name) for name in _SUBSCRIPTION} | _shared(shown)
    discounts = {one["id"]: one["source"]["coupon"] for one in shown["discounts"] if one.get("end") is None}
    own["discounts"] = sorted(discounts.values())
    schedule: dict[str, Any] = shown.get("schedule") or {}
    now_s = int(world.clock())
    invoices = await world.list("/v1/invoices", customer=customer, subscription=shown["id"])
    metadata: Mapping[str, str] = schedule.get("metadata") or {}
    phases = tuple(
        (
            phase["start_date"],
            _shared({**phase, "collection_method": phase["collection_method"] or shown["collection_method"]}),
        )
        for phase in schedule.get("phases", ())
        if (phase["end_date"] or 1 << 40) > now_s
    )
    return Terms(
        subscription=shown["id"],
        own=own,
        items={
            item["id"]: {name: _plain(name, item.get(name)) for name in _OF_ITEM}
            for item in shown["items"]["data"]
        },
        once={
            discount: coupon
            for discount, coupon in discounts.items()
            if (await world.ask("GET", f"/v1/coupons/{coupon}"))["duration"] == "once"
        },
        spent=frozenset(
            off["discount"]
            for invoice in invoices
            for off in invoice["total_discount_amounts"] or ()
            if off["amount"]
        ),
        now_s=now_s,
        phases=phases,
        is_by_hand="meterkit_made" not in metadata and _differ(of for _, of in phases),
    )


def _differ(phases: Iterable[Mapping[str, Any]]) -> bool:
    return len({repr([of[name] for name in _BOTH if name != "metadata"]) for of in phases}) > 1


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
        return sorted(one if isinstance(one, str) else str(one["id"]) for one in listed)
    return value or None


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> list[str]:
    return [
        f"{name} of {where} was {before[name]}, and is {after[name]}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    ]
