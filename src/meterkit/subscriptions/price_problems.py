"""The prices of a plan at Stripe, and why they would bill wrongly. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.stripe.prices import currencies_of
from meterkit.subscriptions.stripe_objects import LOOKUP_MARK, part_of
from meterkit.subscriptions.wanted_prices import shape_in, shape_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from meterkit.subscriptions.wanted_prices import WantedPlan, WantedPrice


_FREE_TWICE: Final = (
    "meterkit sends only overage (report: overage), and the free tier would give the included units a"
    " second time"
)
_INCLUDED_BILLED: Final = (
    "meterkit sends all usage (report: usage), and it has no free tier, so that it would bill the"
    " included units"
)
_PACKAGES: Final = "it bills whole packages, and the plans file sells units: it would bill more"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAtStripe:
    """The product and prices of a plan at Stripe.

    Attributes:
        product: of its base price; None: there is none yet.
        prices: by name, meterkit's and those that the plans file names.
        keyed: by lookup key, those that have one of meterkit's.
        listed: all active prices of the product.
        replacing: likewise, of those products where a sync makes a price without a lookup key.
        missing: prices whose id in the plans file Stripe does not have.
        sold: ids of all products that are not archived.
        meters: by event name.
    """

    wanted: WantedPlan
    product: str | None
    prices: Mapping[str, Mapping[str, Any]]
    keyed: Mapping[str, Mapping[str, Any]]
    listed: Sequence[Mapping[str, Any]]
    replacing: Sequence[Mapping[str, Any]]
    missing: Sequence[WantedPrice]
    sold: Collection[str]
    meters: Mapping[str, Mapping[str, Any]]

    def others(self, wanted: WantedPrice) -> list[Mapping[str, Any]]:
        """Other prices of the product on the same meter that a subscriber of the plan could have.

        The product may also have the prices of a plan of another interval or currency.
        """
        meter, ours = self.meters.get(wanted.shape.meter or ""), self.prices.get(wanted.name)
        own, sold_in = wanted.shape.interval, {shape.currency for shape in wanted.shapes}
        return [
            price
            for price in self.listed
            if meter is not None and shape_of(price).meter == meter["id"]
            if shape_of(price).interval == own and sold_in & currencies_of(price)
            if ours is None or price["id"] != ours["id"]
        ]

    def fitting(self, wanted: WantedPrice) -> list[Mapping[str, Any]]:
        """The other prices that charge the amount of the plans file."""
        return [price for price in self.others(wanted) if self.fits(price, wanted)]

    def find_made(self, wanted: WantedPrice) -> Mapping[str, Any] | None:
        """Find what an earlier sync has made instead of a price whose id the plans file still has."""
        if wanted.stripe_price is None:
            return None
        marked = (one for one in self.replacing if part_of(one, "metadata").get(LOOKUP_MARK) == wanted.key)
        made = [self.keyed.get(wanted.key)] if wanted.has_lookup_key else marked
        return next((one for one in made if one is not None and self.fits(one, wanted)), None)

    def fits(self, price: Mapping[str, Any], wanted: WantedPrice) -> bool:
        """Whether a price charges the amounts of the plans file, in at least one of its currencies.

        It may lack the others, which are added then.
        """
        meter = self.meters.get(wanted.shape.meter or "")
        is_known = any(shape_in(price, shape.currency) is not None for shape in wanted.shapes)
        return is_known and not has_other_amounts(price, wanted, meter=None if meter is None else meter["id"])


def has_other_amounts(price: Mapping[str, Any], wanted: WantedPrice, *, meter: str | None) -> bool:
    """Whether a price charges another amount than the plans file in a currency that it has.

    ``meter`` is the id of the wanted price's meter.
    """
    pairs = [(shape_in(price, shape.currency), shape) for shape in wanted.shapes]
    return any(there is not None and there != replace(shape, meter=meter) for there, shape in pairs)


def find_problems(found: PlanAtStripe) -> list[str]:
    """Find the problems of a plan that an operator must solve before a sync, a line each."""
    return [
        *_missing_prices(found),
        *_archived_prices(found),
        *_different_prices(found),
        *_duplicate_prices(found),
        *_unpriced_meters(found),
    ]


def _missing_prices(found: PlanAtStripe) -> Iterator[str]:
    for wanted in found.missing:
        yield (
            f"{wanted.name}: the plans file names the price {wanted.stripe_price}, which Stripe does not have"
            " with this key: it may be of another account, or of the other of test and live mode. Take"
            " `stripe_price` out of the file: the price is then found, or made, by its lookup key"
            f" {wanted.key}"
        )


def _archived_prices(found: PlanAtStripe) -> Iterator[str]:
    for wanted in found.wanted.prices:
        price = found.prices.get(wanted.name)
        if price is None:
            continue
        if price["product"] not in found.sold:
            yield describe_archived_product(wanted.name, price)
        if not price["active"]:
            yield (
                f"{wanted.name}: the plans file names the price {wanted.stripe_price}, which is archived at"
                " Stripe, so no customer can subscribe to it; make it active there, or take it out of the"
                " file, and sync again"
            )


def describe_archived_product(name: str, price: Mapping[str, Any]) -> str:
    """Describe the problem of a price whose product is archived: Stripe still lists it as active."""
    return (
        f"{name}: the product {price['product']} of the price {price['id']} is archived at Stripe, so no"
        " customer can buy it; make it active there, and sync again"
    )


def _different_prices(found: PlanAtStripe) -> Iterator[str]:
    """Prices of another currency or interval: their subscribers would have the wrong plan."""
    for wanted in found.wanted.prices:
        price = found.prices.get(wanted.name)
        if price is None:
            continue
        recurring = part_of(price, "recurring")
        count = recurring.get("interval_count", 1)
        every = recurring.get("interval", "once") if count == 1 else f"{count} {recurring['interval']}s"
        sold_in = [shape.currency for shape in wanted.shapes]
        known = currencies_of(price)
        for field_name, actual, expected, cure in (
            (
                "currency",
                "" if known.intersection(sold_in) else price["currency"],
                "" if known.intersection(sold_in) else " or ".join(sold_in),
                "name a price in a currency of the plans file",
            ),
            (
                "interval",
                every,
                wanted.shape.interval,
                "give the plan of another interval a key of its own, and leave this one as it is",
            ),
        ):
            if actual != expected:
                yield (
                    f"{wanted.name}: the price {price['id']} at Stripe has the {field_name} {actual}, and the"
                    f" plans file says {expected}: {cure}"
                )


def _duplicate_prices(found: PlanAtStripe) -> Iterator[str]:
    """Other prices of the same product and meter, which would bill usage twice."""
    for wanted in found.wanted.prices:
        fitting = found.fitting(wanted)
        # One that fits is used as it is. A further one, or any listed ours, would bill the same again.
        used = fitting if len(fitting) == 1 and wanted.name not in found.prices else []
        yield from (_describe_duplicate(price, wanted) for price in found.others(wanted) if price not in used)


def _unpriced_meters(found: PlanAtStripe) -> list[str]:
    """Meters whose usage no price of the product bills."""
    own = {price.shape.interval for price in found.wanted.prices}
    priced = {shape.meter for shape in map(shape_of, found.listed) if shape.interval in own}
    return [
        problem
        for name, problem in found.wanted.unpriced.items()
        if found.meters.get(name, {}).get("id", "") not in priced
    ]


def describe_as_sold(price: Mapping[str, Any], wanted: WantedPrice) -> str:
    """Describe a price at Stripe in the currencies of the plans file."""
    shapes = [shape_in(price, shape.currency) for shape in wanted.shapes]
    known = [shape.describe(wanted.unit) for shape in shapes if shape is not None]
    return "; ".join(known) or shape_of(price).describe(wanted.unit)


def _describe_duplicate(price: Mapping[str, Any], wanted: WantedPrice) -> str:
    shape = shape_of(price)
    begins = f"{wanted.name}: the product has the price {price['id']} on the same meter"
    if wanted.report == "overage" and shape.free:
        why = _FREE_TWICE
    elif wanted.report == "usage" and wanted.shape.free and not shape.free:
        why = _INCLUDED_BILLED
    elif shape.divide_by > 1:
        why = _PACKAGES
    else:
        said = wanted.describe()
        why = f"it is not what the plans file says ({said}), or a second one that bills the same again"
    return f"{begins} ({shape.describe(wanted.unit)}): {why}; archive it, and sync again"
