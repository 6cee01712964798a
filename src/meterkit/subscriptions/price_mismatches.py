"""What Stripe has of a plan, and why it cannot be used for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.stripe_objects import part_of
from meterkit.subscriptions.wanted_prices import shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meterkit.subscriptions.wanted_prices import WantedPlan, WantedPrice


_FREE_TWICE: Final = (
    "what is sent is overage alone (report: overage), and its free tier would give the included units a"
    " second time"
)
_INCLUDED_BILLED: Final = (
    "what is sent is all usage (report: usage), and it has no free tier, so that it would bill the"
    " included units"
)
_PACKAGES: Final = "it bills begun packages, and the plans file sells units: it would bill more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What Stripe has of a plan.

    Attributes:
        product: that of its base price; None: there is none yet.
        prices: by lookup key, those that are ours or that the plans file names.
        beside: all active prices of the product.
        missing: those that the plans file names by an id that Stripe does not have.
    """

    wanted: WantedPlan
    product: str | None
    prices: Mapping[str, Mapping[str, Any]]
    beside: Sequence[Mapping[str, Any]]
    missing: Sequence[WantedPrice]

    def others(self, wanted: WantedPrice, meters: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Prices of the product on the same meter that are not ours."""
        meter, ours = meters.get(wanted.shape.meter or ""), self.prices.get(wanted.key)
        return [
            price
            for price in self.beside
            if meter is not None and shape_of(price).meter == meter["id"]
            if ours is None or price["id"] != ours["id"]
        ]

    def fitting(
        self, wanted: WantedPrice, meters: Mapping[str, Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """Those of them that charge what the plans file says."""
        return [price for price in self.others(wanted, meters) if self.fits(price, wanted, meters)]

    @staticmethod
    def fits(price: Mapping[str, Any], wanted: WantedPrice, meters: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a price charges what the plans file says."""
        meter = meters.get(wanted.shape.meter or "")
        return shape_of(price) == replace(wanted.shape, meter=None if meter is None else meter["id"])


def unfit(found: Found, meters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why nothing may be made of a plan before a person has decided, a line each.

    Args:
        found: what Stripe has.
        meters: the meters at Stripe by event name.
    """
    return [
        *_missing(found),
        *_archived(found),
        *_unlike(found),
        *_doubled(found, meters),
        *_unpriced(found, meters),
    ]


def _missing(found: Found) -> Iterator[str]:
    for wanted in found.missing:
        yield (
            f"{wanted.name}: the plans file names the price {wanted.stripe_price}, which Stripe does not have"
            " with this key: it may be of another account, or of the other of test and live mode. Take"
            " `stripe_price` out of the file: the price is then found, or made, by its lookup key"
            f" {wanted.key}"
        )


def _archived(found: Found) -> Iterator[str]:
    for wanted in found.wanted.prices:
        price = found.prices.get(wanted.key)
        if price is not None and not price["active"]:
            yield (
                f"{wanted.name}: the plans file names the price {wanted.stripe_price}, which is archived at"
                " Stripe, so no customer can subscribe to it; make it active there, or take it out of the"
                " file, and sync again"
            )


def _unlike(found: Found) -> Iterator[str]:
    """Prices of another currency or interval: their subscribers would have a plan that is not theirs."""
    for wanted in found.wanted.prices:
        price = found.prices.get(wanted.key)
        if price is None:
            continue
        recurring = part_of(price, "recurring")
        count = recurring.get("interval_count", 1)
        every = recurring.get("interval", "once") if count == 1 else f"{count} {recurring['interval']}s"
        for what, is_so, says, cure in (
            (
                "currency",
                price["currency"],
                wanted.shape.currency,
                "a plans file has one currency; name a price in it",
            ),
            (
                "interval",
                every,
                wanted.shape.interval,
                "give the plan of another interval a key of its own, and leave this one as it is",
            ),
        ):
            if is_so != says:
                yield (
                    f"{wanted.name}: the price {price['id']} at Stripe has the {what} {is_so}, and the plans"
                    f" file says {says}: {cure}"
                )


def _doubled(found: Found, meters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Foreign prices of the same product and meter, which would bill besides ours."""
    for wanted in found.wanted.prices:
        fitting = found.fitting(wanted, meters)
        # One that fits is used as it is. A further one, or any beside ours, would bill the same again.
        used = fitting if len(fitting) == 1 and wanted.key not in found.prices else []
        yield from (_why_not(price, wanted) for price in found.others(wanted, meters) if price not in used)


def _unpriced(found: Found, meters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Meters that would be sent what no price of the product bills."""
    priced = {shape_of(price).meter for price in found.beside}
    return [
        told
        for name, told in found.wanted.unpriced.items()
        if meters.get(name, {}).get("id", "") not in priced
    ]


def _why_not(price: Mapping[str, Any], wanted: WantedPrice) -> str:
    shape = shape_of(price)
    begins = f"{wanted.name}: the product has the price {price['id']} on the same meter"
    if wanted.report == "overage" and shape.free:
        why = _FREE_TWICE
    elif wanted.report == "usage" and wanted.shape.free and not shape.free:
        why = _INCLUDED_BILLED
    elif shape.divide_by > 1:
        why = _PACKAGES
    else:
        said = wanted.shape.told(wanted.unit)
        why = f"it is not what the plans file says ({said}), or a second one that bills the same again"
    return f"{begins} ({shape.told(wanted.unit)}): {why}; archive it, and sync again"
