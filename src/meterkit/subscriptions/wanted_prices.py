"""The products and prices that a plans file needs at Stripe. Pure; money in minor units, exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.meters import billed_as, billed_meters, is_sold, is_titled
from meterkit.catalog.value_parsers import exact_money
from meterkit.decisions.customer_state import seat_meter
from meterkit.stripe.prices import has_flat_amount, shown_in
from meterkit.subscriptions.change_rules import sells_seats
from meterkit.subscriptions.stripe_objects import (
    LOOKUP_MARK,
    addon_key,
    base_key,
    meter_key,
    pack_key,
    packs_key,
    seat_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Addon, Entitlement, Meter
    from meterkit.stripe.request import Parameter


def why_split_wrong(catalog: Catalog, plan: Plan, meter: Meter) -> str | None:
    """Reason why no prices can bill a derived meter and its source correctly; None: they can."""
    if meter.source is None or meter.stripe is None or billed_as(plan, meter) is None:
        return None
    source = catalog.meters[meter.source]
    reporting = [
        one.name for one in (source, meter) if one.stripe is not None and one.stripe.report == "usage"
    ]
    if not reporting or plan.entitlements[source.name].included == 0:
        return None
    found = " and ".join(f"{name} has `report: usage`" for name in reporting)
    return (
        f"{found}, and it is a part of {source.name}: what {source.name} includes is counted over both, and"
        " Stripe would count each by itself: a free tier on either price gives included units a second time,"
        " and a price without one bills them; write `report: overage` for both, or include nothing of"
        f" {source.name}"
    )


_UNIT: Final = Decimal("1e-12")
"""The last place of https://docs.stripe.com/api/prices/create#create_price-unit_amount_decimal."""
_LEAST: Final = Decimal("1e-6")
"""Below this, rounding a unit price to that place would be wrong by more than a millionth."""
_NO_AMOUNT: Final = (
    "billed, and the file names no amount: write overage: {bill: {per: …, amount_cents: …}}, or make its"
    " price at Stripe by hand, on the plan's product"
)
_NO_AMOUNT_OF_LINE: Final = (
    "billed, and the file names no amount: with `billing: {usage: lines}` no invoice line has these units;"
    " write overage: {bill: {per: …, amount_cents: …}}"
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
    "is less for a unit than the 12 decimals of a price at Stripe can say: use another per"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceShape:
    """The unchangeable part of a price at Stripe.

    Attributes:
        unit: price of a unit, or of a package of ``divide_by`` units; of tiers the last one's.
        divide_by: more than 1: started packages are billed. meterkit makes no such prices.
        free: with graduated tiers, the units of the first one, which costs nothing.
        meter: Stripe's id; None: a quantity is charged in advance.
        is_odd: whether it has features that meterkit does not make, such as other tiers.
    """

    currency: str
    interval: str
    unit: Decimal
    divide_by: int = 1
    free: int = 0
    meter: str | None = None
    is_odd: bool = False

    def describe(self, unit_name: str = "") -> str:
        """Describe the price: ``$29.00 per month``, ``100 free, then $0.00012 per word``.

        Args:
            unit_name: the charged unit; empty: the plan itself, or an unknown unit.
        """
        amount, free = (
            exact_money(self.unit, self.currency),
            f"{self.free:,} free, then " if self.free else "",
        )
        if self.meter is None:
            return f"{amount} per {f'{unit_name} and ' if unit_name else ''}{self.interval}"
        per = (
            f"{unit_name or 'unit'}"
            if self.divide_by == 1
            else f"begun {self.divide_by:,} {unit_name or 'unit'}s"
        )
        odd = ", and more" if self.is_odd else ""
        return f"{free}{amount} per {per}{odd}, each {self.interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedProduct:
    """A product that a plan needs, or an add-on.

    Attributes:
        key: its lookup key, in its metadata.
        name: as invoices show it.
        word: part of its id in the emulator: ``pro``, ``pro_seats``, ``meter_words``, ``addon_pack``.
        is_named: whether the plans file gives the name. A name made of a key changes none at Stripe.
    """

    key: str
    name: str
    word: str
    is_named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPrice:
    """A price that a plan needs, or an add-on.

    Attributes:
        name: in messages: ``pro, base``.
        key: its lookup key.
        line: of the plan: ``price``, ``seat_price``, or a meter's name; of an add-on ``price``.
        unit: the charged unit: a seat, an add-on, or the meter's unit; empty: the plan itself.
        product: its product.
        shape: its unchangeable part; its ``meter`` is the event name.
        stripe_price: the id in the plans file.
        report: reported quantity of the meter; empty: it has no meter.
        others: its shapes in the other currencies of the plans file.
        has_lookup_key: whether Stripe finds it by ``key``. The file may name a price for each currency: all
            but the first are found by their ids only.
    """

    name: str
    key: str
    line: str
    unit: str
    product: WantedProduct
    shape: PriceShape
    stripe_price: str | None = None
    report: Literal["", "overage", "usage"] = ""
    others: tuple[PriceShape, ...] = ()
    has_lookup_key: bool = True

    @property
    def shapes(self) -> tuple[PriceShape, ...]:
        """Its shapes in all of its currencies."""
        return (self.shape, *self.others)

    def describe(self) -> str:
        """Describe the price in all of its currencies."""
        return "; ".join(shape.describe(self.unit) for shape in self.shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPlan:
    """The prices of a sold plan, or of an add-on, and its problems.

    Attributes:
        plan: its key; of an add-on ``addons.KEY``.
        problems: combinations that would bill wrongly.
        notes: correct, but possibly surprising.
        unpriced: by event name, the problem if its product has no price on that meter.
    """

    plan: str
    prices: tuple[WantedPrice, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    unpriced: Mapping[str, str]


def wanted_plans(catalog: Catalog) -> list[WantedPlan]:
    """The prices that a plans file needs at Stripe, of each plan that costs something or names a price."""
    sold, known = list[WantedPlan](), dict[str, WantedPlan]()
    for plan in catalog.plans.values():
        wanted = _wanted_plan(catalog, plan)
        for other in catalog.other_currencies.values():
            wanted = _with_currency(wanted, _wanted_plan(other, other.plans[plan.key]))
        if is_sold(plan) or wanted.problems:
            base = wanted.prices[0]
            first = known.setdefault(base.stripe_price or base.key, wanted)
            sold.append(wanted if first is wanted else _share_price(first, wanted))
    return sold


def wanted_addons(catalog: Catalog) -> list[WantedPlan]:
    """The price that each add-on of a plans file needs at Stripe, whatever plans it is bought beside."""
    found: list[WantedPlan] = []
    for addon in catalog.addons.values():
        wanted = _wanted_addon(catalog, addon)
        for other in catalog.other_currencies.values():
            wanted = _with_currency(wanted, _wanted_addon(other, other.addons[addon.key]))
        found.append(wanted)
    return found


def _wanted_addon(catalog: Catalog, addon: Addon) -> WantedPlan:
    key, price = addon_key(addon.key), addon.price
    wanted = WantedPrice(
        name=f"add-on {addon.key}",
        key=key,
        line="price",
        unit="add-on",
        product=WantedProduct(
            key=key, name=addon.name, word=f"addon_{addon.key}", is_named=addon.name != addon.key
        ),
        shape=PriceShape(
            currency=catalog.currency, interval=price.interval, unit=Decimal(price.amount_cents)
        ),
        stripe_price=price.stripe_price,
    )
    of = f"addons.{addon.key}"
    return WantedPlan(plan=of, prices=(wanted,), problems=(), notes=(), unpriced={})


def _with_currency(wanted: WantedPlan, other: WantedPlan) -> WantedPlan:
    """Add the same prices in another currency: an amount of each, or a price where the file names another."""
    prices = list(wanted.prices)
    places = {(price.key, price.stripe_price): place for place, price in enumerate(prices)}
    for price in other.prices:
        place = places.get((price.key, price.stripe_price))
        if place is None:
            name = f"{price.name}, {price.shape.currency}"
            prices.append(replace(price, name=name, has_lookup_key=False))
        else:
            prices[place] = replace(prices[place], others=(*prices[place].others, price.shape))
    problems, notes = (
        tuple(dict.fromkeys(pair)) for pair in (wanted.problems + other.problems, wanted.notes + other.notes)
    )
    return replace(wanted, prices=tuple(prices), problems=problems, notes=notes)


def _share_price(first: WantedPlan, wanted: WantedPlan) -> WantedPlan:
    """A plan with the ``stripe_price`` of another: its subscribers have the first one of the file."""
    own, other = wanted.prices[0], first.prices[0]
    ours, theirs = own.shape, other.shape
    begins = f"plan {wanted.plan}: has the stripe_price of plan {first.plan}"
    if own.shapes == other.shapes:
        message = (
            f"{begins}, and its subscribers have plan {first.plan}: nothing is made of"
            f" {wanted.plan}; give it a stripe_price of its own to sell it"
        )
        return replace(wanted, prices=(), problems=(), notes=(message,), unpriced={})
    message = (
        f"{begins} ({theirs.describe()}), and another price ({ours.describe()}):"
        " it would be sold as that one; give it a stripe_price of its own"
    )
    return replace(wanted, prices=(), problems=(message,), notes=(), unpriced={})


def shape_of(price: Mapping[str, Any]) -> PriceShape:
    """Read the unchangeable part of a price at Stripe, tiers included."""
    recurring: Mapping[str, Any] = price.get("recurring") or {}
    transform: Mapping[str, Any] = price.get("transform_quantity") or {}
    tiers: list[Mapping[str, Any]] = price.get("tiers") or []
    is_free_first = len(tiers) > 1 and not _amount_of(tiers[0])
    unit = _amount_of(tiers[-1]) if tiers else _amount_of(price)
    is_odd = (
        not recurring
        or recurring.get("interval_count", 1) != 1
        or len(tiers) > (2 if is_free_first else 1)
        or any(map(has_flat_amount, tiers))
        or (bool(tiers) and price.get("tiers_mode") != "graduated")
        or transform.get("round", "up") != "up"
    )
    return PriceShape(
        currency=price["currency"],
        interval=recurring.get("interval", "time"),
        unit=unit,
        divide_by=transform.get("divide_by", 1),
        free=tiers[0]["up_to"] if is_free_first else 0,
        meter=recurring.get("meter"),
        is_odd=is_odd,
    )


def shape_in(price: Mapping[str, Any], currency: str) -> PriceShape | None:
    """Read the unchangeable part of a price in one of its currencies; None: it has no amount in it."""
    shown = shown_in(price, currency)
    return None if shown is None else shape_of(shown)


def product_params(product: WantedProduct) -> dict[str, Parameter]:
    """Parameters of a new product (https://docs.stripe.com/api/products/create)."""
    return {"name": product.name, "metadata": {LOOKUP_MARK: product.key}}


NO_PRICE: Final[Mapping[str, Any]] = MappingProxyType({})


def params_of(
    wanted: WantedPrice, *, product: str, meter: str | None, like: Mapping[str, Any] = NO_PRICE
) -> dict[str, Parameter]:
    """Parameters of a new price (https://docs.stripe.com/api/prices/create).

    Args:
        wanted: the price.
        product: its id.
        meter: its id; None: a quantity is charged in advance.
        like: the price that it replaces, which says in each currency whether tax is within the amount, with
            ``currency_options`` expanded; empty: none.
    """
    shape = wanted.shape
    recurring: dict[str, Parameter] = {"interval": shape.interval}
    if meter is not None:
        recurring |= {"usage_type": "metered", "meter": meter}
    params: dict[str, Parameter] = {
        "product": product,
        "currency": shape.currency,
        "recurring": recurring,
        "nickname": wanted.name,
        "metadata": {LOOKUP_MARK: wanted.key},
    }
    if wanted.has_lookup_key:
        params |= {"lookup_key": wanted.key, "transfer_lookup_key": True}
    if wanted.others:
        params["currency_options"] = option_params(wanted.others, like)
    if shape.free:
        params |= {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    return params | _amount_params(shape, like)


def option_params(shapes: Iterable[PriceShape], like: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameter ``currency_options``: amounts of a price in further currencies, taxed like another."""
    return {shape.currency: _amount_params(shape, like) for shape in shapes}


def _amount_params(shape: PriceShape, like: Mapping[str, Any]) -> dict[str, Parameter]:
    amount, taxed = f"{shape.unit:f}", shown_in(like, shape.currency) or like
    behavior = taxed.get("tax_behavior")
    tax: dict[str, Parameter] = {} if behavior in {None, "unspecified"} else {"tax_behavior": behavior}
    if not shape.free:
        return {"unit_amount_decimal": amount, **tax}
    tiers: list[Parameter] = [
        {"up_to": shape.free, "unit_amount": 0},
        {"up_to": "inf", "unit_amount_decimal": amount},
    ]
    return {"tiers": tiers, **tax}


_TOP_UP: Final = "Top-up"
"""Name of the product of top-ups, as customers see it on pages and invoices."""


def pack_product(credit: str) -> WantedProduct:
    """Product whose prices are the top-ups of a credit."""
    return WantedProduct(key=packs_key(credit), name=_TOP_UP, word=f"top_up_{credit}")


def pack_params(credit: str, amount_cents: int, *, product: str, currency: str) -> dict[str, Parameter]:
    """Parameters of a new price of a top-up, charged once."""
    key = pack_key(credit, amount_cents)
    return {
        "product": product,
        "currency": currency,
        "unit_amount": amount_cents,
        "lookup_key": key,
        "transfer_lookup_key": True,
        "metadata": {LOOKUP_MARK: key},
    }


def _wanted_plan(catalog: Catalog, plan: Plan) -> WantedPlan:
    price, seat, is_named = plan.price, plan.seat_price, plan.name != plan.key
    problems, notes = list[str](), list[str]()
    base = PriceShape(currency=catalog.currency, interval=price.interval, unit=Decimal(price.amount_cents))
    prices = [
        WantedPrice(
            name=f"{plan.key}, base",
            key=base_key(plan.key),
            line="price",
            unit="",
            product=WantedProduct(key=base_key(plan.key), name=plan.name, word=plan.key, is_named=is_named),
            shape=base,
            stripe_price=price.stripe_price,
        )
    ]
    if seat is not None and sells_seats(plan, seat_meter(catalog.meters)):
        product = WantedProduct(
            key=seat_key(plan.key), name=f"{plan.name}: seats", word=f"{plan.key}_seats", is_named=is_named
        )
        prices.append(
            WantedPrice(
                name=f"{plan.key}, seats",
                key=seat_key(plan.key),
                line="seat_price",
                unit="seat",
                product=product,
                shape=replace(base, unit=Decimal(seat.amount_cents)),
                stripe_price=seat.stripe_price,
            )
        )
    unpriced = dict[str, str]()
    billed = billed_meters(catalog.meters, plan)
    if catalog.billing.is_by_lines:
        problems += [
            f"plan {plan.key}, meter {meter.name}: {_NO_AMOUNT_OF_LINE}"
            for meter in billed
            if (given := billed_as(plan, meter)) is not None
            and given.included is not None
            and given.overage.amount_cents is None
        ]
    for meter in () if catalog.billing.is_by_lines else catalog.meters.values():
        begins, wrongly = f"plan {plan.key}, meter {meter.name}: ", why_split_wrong(catalog, plan, meter)
        entitlement = billed_as(plan, meter)
        if wrongly is not None:
            problems.append(begins + wrongly)
        elif meter.stripe is None or meter not in billed or entitlement is None:
            continue
        elif meter.source is not None and entitlement.overage.amount_cents is None:
            unpriced[meter.stripe.event_name] = f"{begins}a part of {meter.source}, {_NO_AMOUNT_OF_PART}"
        else:
            found = metered_price(catalog, plan, meter, entitlement)
            if isinstance(found, WantedPrice):
                prices.append(found)
            else:
                message, is_problem = found
                (problems if is_problem else notes).append(begins + message)
    return WantedPlan(
        plan=plan.key,
        prices=tuple(prices),
        problems=tuple(problems),
        notes=tuple(notes),
        unpriced=unpriced,
    )


def metered_price(
    catalog: Catalog, plan: Plan, meter: Meter, entitlement: Entitlement
) -> WantedPrice | tuple[str, bool]:
    """The price of a meter's usage; or the reason why there is none, and whether that is a problem."""
    overage, included, stripe = entitlement.overage, entitlement.included, meter.stripe
    if stripe is None or included is None:
        return "all of it is included, so that no price is needed", False
    report: Literal["overage", "usage"] = "usage" if stripe.report == "usage" else "overage"
    if overage.amount_cents is None:
        return _NO_AMOUNT, False
    free = included if report == "usage" else 0
    if free and plan.price.interval == "year" and plan.price.included_per == "month":
        return _YEARLY_TIERS, True
    unit = _unit_price(overage.amount_cents, overage.per or 1)
    if unit is None:
        return f"{overage.amount_cents} per {overage.per} {_NO_UNIT_PRICE}", True
    shape = PriceShape(
        currency=catalog.currency,
        interval=plan.price.interval,
        unit=unit,
        free=free,
        meter=stripe.event_name,
    )
    product = WantedProduct(
        key=f"{LOOKUP_MARK}-meter:{meter.name}",
        name=meter.title,
        word=f"meter_{meter.name}",
        is_named=is_titled(meter, catalog.meters),
    )
    return WantedPrice(
        name=f"{plan.key}, {meter.name}",
        key=meter_key(plan.key, meter.name),
        line=meter.name,
        unit=meter.unit,
        product=product,
        shape=shape,
        report=report,
    )


def _unit_price(amount_cents: int, per: int) -> Decimal | None:
    """Price of one unit to twelve decimals; None if rounding would be too far off."""
    exact = Decimal(amount_cents) / per
    unit = exact.quantize(_UNIT, ROUND_HALF_EVEN)
    return unit.normalize() if unit == exact or unit >= _LEAST else None


def _amount_of(shown: Mapping[str, Any]) -> Decimal:
    text = shown.get("unit_amount_decimal")
    return Decimal(text if text is not None else shown.get("unit_amount") or 0)
