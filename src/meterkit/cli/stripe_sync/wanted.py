"""The prices that a plans file needs at Stripe. Pure; money in minor units, exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.cli.stripe_sync.parts import billed_as, split_wrongly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Entitlement, Meter
    from meterkit.stripe.request import Parameter

__all__ = ["Shape", "WantedPrice", "WantedProduct", "params_of", "shape_of", "wanted_of"]

# https://docs.stripe.com/api/prices/create#create_price-unit_amount_decimal
_DECIMAL_PLACES: Final = 12

_NO_AMOUNT: Final = (
    "billed, and the file names no amount: write overage: {bill: {per: …, amount_cents: …}}, or make its"
    " price at Stripe by hand"
)
_NO_AMOUNT_OF_PART: Final = (
    "billed under an event of its own, and the file names no amount for either: without a price on it these"
    " units are on no invoice; write overage: {bill: {per: …, amount_cents: …}} for one of them, or make its"
    " price at Stripe by hand, on the plan's product"
)
_YEARLY_TIERS: Final = (
    "report: usage sends all units, and a price of a year has one free tier a year, not one a month: use"
    " report: overage, or included_per: interval"
)
_NO_UNIT_PRICE: Final = (
    f"has no unit price of {_DECIMAL_PLACES} decimal places, and tiers take no packages: use report: overage,"
    " or another per"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a price at Stripe cannot be changed.

    Attributes:
        unit: what one unit, or one package of ``divide_by`` units, costs; of tiers that of the last one.
        divide_by: with it packages are billed, begun ones too.
        free: with graduated tiers, the units of the first one, which costs nothing.
        meter: Stripe's id; None: a quantity is charged in advance.
        is_odd: whether it has more to it than is made here, such as other tiers.
    """

    currency: str
    interval: str
    unit: Decimal
    divide_by: int = 1
    free: int = 0
    meter: str | None = None
    is_odd: bool = False

    def __str__(self) -> str:
        per = "" if self.divide_by == 1 else f" per {self.divide_by:,}"
        free = f", {self.free:,} free" if self.free else ""
        odd = ", and more" if self.is_odd else ""
        return f"{self.unit:f} minor units of {self.currency}{per} a {self.interval}{free}{odd}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPrice:
    """A price that a plan needs.

    Attributes:
        name: for people: ``pro, base price``.
        key: the lookup key by which it is found again.
        line: of the plan: ``price``, ``seat_price``, or a meter's name.
        shape: what it is to be; its ``meter`` is the event name.
        stripe_price: the id that the plans file names.
        report: what is sent of the meter; empty: it has none.
        packages: the same in whole packages, which is as good where somebody has made it so; None: it is not.
    """

    name: str
    key: str
    line: str
    shape: Shape
    stripe_price: str | None = None
    report: Literal["", "overage", "usage"] = ""
    packages: Shape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedProduct:
    """A plan that is sold, and what keeps it from being sold so.

    Attributes:
        problems: combinations that would bill wrongly.
        notes: what is right, and may surprise.
        unpriced: by event name, why it is a problem where its product has no price on that meter.
    """

    plan: str
    name: str
    prices: tuple[WantedPrice, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unpriced: Mapping[str, str]


def wanted_of(catalog: Catalog) -> list[WantedProduct]:
    """The products that a plans file needs: its plans that cost something, or name a price of Stripe's."""
    products = [_product(catalog, plan) for plan in catalog.plans.values()]
    sold, known = list[WantedProduct](), dict[str, WantedProduct]()
    for product in products:
        base = product.prices[0]
        is_priced = len(product.prices) > 1 or base.shape.unit > 0 or base.stripe_price is not None
        if is_priced or product.problems:
            first = known.setdefault(base.stripe_price or base.key, product)
            sold.append(product if first is product else _of_one_price(first, product))
    return sold


def _of_one_price(first: WantedProduct, product: WantedProduct) -> WantedProduct:
    """A plan that inherits the ``stripe_price`` of another: who subscribes has the first one of the file."""
    ours, theirs = product.prices[0].shape, first.prices[0].shape
    begins = f"plan {product.plan}: has the stripe_price of plan {first.plan}"
    if ours == theirs:
        told = (
            f"{begins}, and whoever subscribes to it has plan {first.plan}: nothing is made of"
            f" {product.plan}; give it a stripe_price of its own to sell it"
        )
        return replace(product, prices=(), problems=(), notes=(told,), unpriced={})
    told = (
        f"{begins} ({theirs}), and another price ({ours}): it would be sold as that one; give it a"
        " stripe_price of its own"
    )
    return replace(product, prices=(), problems=(told,), notes=(), unpriced={})


def shape_of(price: Mapping[str, Any]) -> Shape:
    """What a price at Stripe is, as its JSON tells, tiers included."""
    recurring: Mapping[str, Any] = price.get("recurring") or {}
    transform: Mapping[str, Any] = price.get("transform_quantity") or {}
    tiers: list[Mapping[str, Any]] = price.get("tiers") or []
    is_free_first = len(tiers) > 1 and not _amount(tiers[0])
    unit = _amount(tiers[-1]) if tiers else _amount(price)
    is_odd = (
        not recurring
        or recurring.get("interval_count", 1) != 1
        or len(tiers) > (2 if is_free_first else 1)
        or any(tier.get("flat_amount_decimal") or tier.get("flat_amount") for tier in tiers)
        or (bool(tiers) and price.get("tiers_mode") != "graduated")
        or transform.get("round", "up") != "up"
    )
    return Shape(
        currency=price["currency"],
        interval=recurring.get("interval", "time"),
        unit=unit,
        divide_by=transform.get("divide_by", 1),
        free=tiers[0]["up_to"] if is_free_first else 0,
        meter=recurring.get("meter"),
        is_odd=is_odd,
    )


def params_of(wanted: WantedPrice, *, product: str, meter: str | None) -> dict[str, Parameter]:
    """What to ask Stripe for (https://docs.stripe.com/api/prices/create)."""
    shape = wanted.shape
    recurring: dict[str, Parameter] = {"interval": shape.interval}
    if meter is not None:
        recurring |= {"usage_type": "metered", "meter": meter}
    params: dict[str, Parameter] = {
        "product": product,
        "currency": shape.currency,
        "recurring": recurring,
        "lookup_key": wanted.key,
        "transfer_lookup_key": True,
        "nickname": wanted.name,
        "metadata": {"meterkit": wanted.key},
    }
    amount = f"{shape.unit:f}"
    if shape.free:
        tiers: list[Parameter] = [
            {"up_to": shape.free, "unit_amount": 0},
            {"up_to": "inf", "unit_amount_decimal": amount},
        ]
        return params | {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": tiers}
    params["unit_amount_decimal"] = amount
    if shape.divide_by > 1:
        params["transform_quantity"] = {"divide_by": shape.divide_by, "round": "up"}
    return params


def _product(catalog: Catalog, plan: Plan) -> WantedProduct:
    price, seat = plan.price, plan.seat_price
    problems, notes = list[str](), list[str]()
    base = Shape(currency=catalog.currency, interval=price.interval, unit=Decimal(price.amount_cents))
    prices = [_fixed(plan, "price", "base", base, price.stripe_price)]
    if seat is not None:
        shape = Shape(currency=catalog.currency, interval=price.interval, unit=Decimal(seat.amount_cents))
        prices.append(_fixed(plan, "seat_price", "seats", shape, seat.stripe_price))
    unpriced = dict[str, str]()
    for meter in catalog.meters.values():
        begins, wrongly = f"plan {plan.key}, meter {meter.name}: ", split_wrongly(catalog, plan, meter)
        entitlement = billed_as(plan, meter)
        if wrongly is not None:
            problems.append(begins + wrongly)
        elif meter.stripe is None or meter.stripe.report == "none" or entitlement is None:
            continue
        elif meter.source is not None and entitlement.overage.amount_cents is None:
            unpriced[meter.stripe.event_name] = f"{begins}a part of {meter.source}, {_NO_AMOUNT_OF_PART}"
        else:
            found = _metered(catalog, plan, meter, entitlement)
            if isinstance(found, WantedPrice):
                prices.append(found)
            else:
                told, is_problem = found
                (problems if is_problem else notes).append(begins + told)
    return WantedProduct(
        plan=plan.key,
        name=plan.name,
        prices=tuple(prices),
        problems=tuple(problems),
        notes=tuple(notes),
        unpriced=unpriced,
    )


def _fixed(plan: Plan, line: str, word: str, shape: Shape, stripe_price: str | None) -> WantedPrice:
    return WantedPrice(
        name=f"{plan.key}, {word}",
        key=f"meterkit:{plan.key}:{word}",
        line=line,
        shape=shape,
        stripe_price=stripe_price,
    )


def _metered(
    catalog: Catalog, plan: Plan, meter: Meter, entitlement: Entitlement
) -> WantedPrice | tuple[str, bool]:
    """The price of a meter's usage; or why there is none, and whether that is a problem."""
    overage, included, stripe = entitlement.overage, entitlement.included, meter.stripe
    if stripe is None or included is None:
        return "all of it is included, so that no price is needed", False
    report: Literal["overage", "usage"] = "usage" if stripe.report == "usage" else "overage"
    if overage.amount_cents is None:
        return _NO_AMOUNT, False
    free = included if report == "usage" else 0
    if free and plan.price.interval == "year" and plan.price.included_per == "month":
        return _YEARLY_TIERS, True
    per = overage.per or 1
    unit = _exact(overage.amount_cents, per)
    if unit is None and free:
        return f"{overage.amount_cents} per {per} {_NO_UNIT_PRICE}", True
    shape = Shape(
        currency=catalog.currency,
        interval=plan.price.interval,
        unit=Decimal(overage.amount_cents) if unit is None else unit,
        divide_by=per if unit is None else 1,
        free=free,
        meter=stripe.event_name,
    )
    packages = replace(shape, unit=Decimal(overage.amount_cents), divide_by=per)
    return WantedPrice(
        packages=None if free else packages,
        name=f"{plan.key}, {meter.name}",
        key=f"meterkit:{plan.key}:meter:{meter.name}",
        line=meter.name,
        shape=shape,
        report=report,
    )


def _exact(amount_cents: int, per: int) -> Decimal | None:
    """What one unit costs; None where that is no decimal of so many places."""
    scaled, rest = divmod(amount_cents * 10**_DECIMAL_PLACES, per)
    return None if rest else (Decimal(scaled) / 10**_DECIMAL_PLACES).normalize()


def _amount(told: Mapping[str, Any]) -> Decimal:
    text = told.get("unit_amount_decimal")
    return Decimal(text if text is not None else told.get("unit_amount") or 0)
