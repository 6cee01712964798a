"""Makes at Stripe what is missing there of a plans file, and says what is there, was made, or differs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.cli.stripe_sync.wanted import params_of, shape_of, wanted_of
from meterkit.delivery.meter_differences import meter_differences
from meterkit.errors import StripeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.cli.stripe_sync.wanted import WantedPrice, WantedProduct
    from meterkit.stripe.api import StripeApi

__all__ = ["Line", "Synced", "sync"]

Action = Literal["is there", "made", "to make", "reactivated", "to reactivate"]

_METERS: Final = "/v1/billing/meters"
_PRICES: Final = "/v1/prices"
_PRODUCTS: Final = "/v1/products"
_PLAN: Final = "meterkit_plan"
# https://docs.stripe.com/api/prices/list#list_prices-lookup_keys
_KEYS_AT_ONCE: Final = 10
_TIERS: Final = ("data.tiers",)
_FREE_TWICE: Final = (
    "what is sent is overage alone (report: overage), and its free tier would give the included units a"
    " second time"
)
_INCLUDED_BILLED: Final = (
    "what is sent is all usage (report: usage), and it has no free tier, so that it would bill the"
    " included units"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One object at Stripe.

    Attributes:
        id: empty where it is not made yet.
        instead_of: the price that it stands for from now on; it cannot be changed itself.
    """

    what: Literal["meter", "product", "price"]
    name: str
    action: Action
    id: str = ""
    instead_of: str = ""


@dataclass(slots=True, kw_only=True)
class Synced:
    """What is at Stripe by now.

    Attributes:
        problems: why nothing was made, a line each.
        paste: of each plan what the plans file is to name: ``price`` and ``seat_price`` to an id.
    """

    lines: list[Line] = field(default_factory=list[Line])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    paste: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])


async def sync(api: StripeApi, catalog: Catalog, *, dry_run: bool) -> Synced:
    """Make what is missing at Stripe. Asked again, it makes nothing new.

    Where anything would be billed wrongly, nothing is made at all.

    Args:
        api: the way to Stripe.
        catalog: what is to be there.
        dry_run: whether to say only what would be made.

    Raises:
        StripeError: Stripe refuses, or does not answer. What was made by then is found again.
    """
    return await _Syncing(api, catalog, dry_run=dry_run).sync()


class _Syncing:
    """One run."""

    def __init__(self, api: StripeApi, catalog: Catalog, *, dry_run: bool) -> None:
        self._api = api
        self._catalog = catalog
        self._dry_run = dry_run
        self._done = Synced()
        self._meters: dict[str, Mapping[str, Any]] = {}

    async def sync(self) -> Synced:
        done = self._done
        wanted = wanted_of(self._catalog)
        meters = await self._api.list(_METERS)
        for meter in meters:  # The newest first; an active one before any that is not.
            known = self._meters.get(meter["event_name"])
            if known is None or (known["status"] != "active" and meter["status"] == "active"):
                self._meters[meter["event_name"]] = meter
        missing = "Stripe has no active meter"
        done.problems += [told for told in meter_differences(self._catalog, meters) if missing not in told]
        for plan in wanted:
            done.problems += plan.problems
            done.notes += plan.notes
        found = [await self._find(plan) for plan in wanted if plan.prices]
        for product in found:
            done.problems += [*_archived(product), *self._doubled(product), *self._unpriced(product)]
            done.notes += [_elsewhere(price, product.product) for price in product.elsewhere]
        if not done.problems:
            await self._make_meters()
            for product in found:
                await self._make(product)
        return done

    async def _find(self, wanted: WantedProduct) -> _Found:
        """What Stripe has of a plan."""
        keys = [price.key for price in wanted.prices]
        prices: dict[str, Mapping[str, Any]] = {}
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            page = keys[start : start + _KEYS_AT_ONCE]
            asked: dict[str, Any] = {"lookup_keys": page, "active": True, "expand": _TIERS}
            prices |= {price["lookup_key"]: price for price in await self._api.list(_PRICES, asked)}
        for price in wanted.prices:
            named = None if price.stripe_price is None else await self._named(price.stripe_price)
            if named is not None:
                prices[price.key] = named
        product = next((prices[key]["product"] for key in keys if key in prices), None)
        if product is None:
            for one in await self._api.list(_PRODUCTS, {"active": True}):
                if one["metadata"].get(_PLAN) == wanted.plan:
                    product = one["id"]
        asked = {"product": product, "active": True, "expand": _TIERS}
        beside = await self._api.list(_PRICES, asked) if product is not None else []
        # A subscription takes the metered prices of its base price's product, and no others.
        metered = {price.key for price in wanted.prices if price.shape.meter is not None}
        elsewhere = {key for key in metered & prices.keys() if prices[key]["product"] != product}
        return _Found(
            wanted=wanted,
            product=product,
            prices={key: price for key, price in prices.items() if key not in elsewhere},
            beside=beside,
            elsewhere=[prices[key] for key in keys if key in elsewhere],
        )

    async def _named(self, price_id: str) -> Mapping[str, Any] | None:
        try:
            return await self._api.get(f"{_PRICES}/{price_id}", {"expand": ["tiers"]})
        except StripeError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _doubled(self, found: _Found) -> list[str]:
        """Prices of the same product and meter that somebody else made, and that would bill besides ours."""
        told: list[str] = []
        for wanted in found.wanted.prices:
            others = self._others(found, wanted)
            fitting = [price for price in others if self._fits(price, wanted)]
            # One that fits is used as it is. A further one, or any beside ours, would bill the same again.
            used = fitting if len(fitting) == 1 and wanted.key not in found.prices else []
            told += [_why_not(price, wanted) for price in others if price not in used]
        return told

    def _unpriced(self, found: _Found) -> list[str]:
        """Meters that would be sent what no price of the product bills."""
        priced = {shape_of(price).meter for price in found.beside}
        meters = {name: self._meters.get(name, {}).get("id", "") for name in found.wanted.unpriced}
        return [told for name, told in found.wanted.unpriced.items() if meters[name] not in priced]

    def _others(self, found: _Found, wanted: WantedPrice) -> list[Mapping[str, Any]]:
        meter = self._meters.get(wanted.shape.meter or "")
        ours = found.prices.get(wanted.key)
        return [
            price
            for price in found.beside
            if meter is not None and shape_of(price).meter == meter["id"]
            if ours is None or price["id"] != ours["id"]
        ]

    def _fits(self, price: Mapping[str, Any], wanted: WantedPrice) -> bool:
        meter = self._meters.get(wanted.shape.meter or "")
        meter_id = None if meter is None else meter["id"]
        shapes = [shape for shape in (wanted.shape, wanted.packages) if shape is not None]
        return shape_of(price) in [replace(shape, meter=meter_id) for shape in shapes]

    async def _make_meters(self) -> None:
        for meter in self._catalog.meters.values():
            if meter.stripe is None or meter.stripe.report == "none":
                continue
            event_name = meter.stripe.event_name
            there, action = self._meters.get(event_name), "is there"
            if there is None:
                action = "to make" if self._dry_run else "made"
                params: dict[str, Any] = {
                    "display_name": meter.name,
                    "event_name": event_name,
                    "default_aggregation": {"formula": "sum"},
                }
                there = None if self._dry_run else await self._api.post(_METERS, params)
            elif there["status"] != "active":
                action = "to reactivate" if self._dry_run else "reactivated"
                if not self._dry_run:
                    there = await self._api.post(f"{_METERS}/{there['id']}/reactivate")
            if there is not None:
                self._meters[event_name] = there
            self._tell("meter", event_name, action, "" if there is None else there["id"])

    async def _make(self, found: _Found) -> None:
        wanted, product = found.wanted, found.product
        if product is None and not self._dry_run:
            params: dict[str, Any] = {"name": wanted.name, "metadata": {_PLAN: wanted.plan}}
            product = (await self._api.post(_PRODUCTS, params))["id"]
        is_new = found.product is None
        self._tell("product", wanted.plan, self._made if is_new else "is there", product or "")
        for price in wanted.prices:
            price_id = await self._price(found, price, product or "")
            if price.line in {"price", "seat_price"} and price_id != (price.stripe_price or ""):
                self._done.paste.setdefault(wanted.plan, {})[price.line] = price_id

    async def _price(self, found: _Found, wanted: WantedPrice, product: str) -> str:
        fitting = [price for price in self._others(found, wanted) if self._fits(price, wanted)]
        there = found.prices.get(wanted.key)
        if there is None and fitting:
            there = fitting[0]
        if there is not None and self._fits(there, wanted):
            self._tell("price", wanted.name, "is there", there["id"])
            return str(there["id"])
        made: str = ""
        if not self._dry_run:
            meter = None if wanted.shape.meter is None else self._meters[wanted.shape.meter]["id"]
            made = (await self._api.post(_PRICES, params_of(wanted, product=product, meter=meter)))["id"]
            if there is not None and meter is not None:
                # Who subscribes next would be billed by both. Those who have it keep it.
                await self._api.post(f"{_PRICES}/{there['id']}", {"active": False})
        self._tell("price", wanted.name, self._made, made, "" if there is None else there["id"])
        if there is not None:
            self._done.notes.append(
                f"{wanted.name}: {there['id']} is {shape_of(there)}, and a price cannot be changed:"
                f" {made or 'a new one'} is {wanted.shape}; who subscribed to the old one keeps it"
            )
        return made

    @property
    def _made(self) -> Action:
        return "to make" if self._dry_run else "made"

    def _tell(
        self,
        what: Literal["meter", "product", "price"],
        name: str,
        action: Any,
        object_id: str,
        instead_of: str = "",
    ) -> None:
        self._done.lines.append(
            Line(what=what, name=name, action=action, id=object_id, instead_of=instead_of)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What Stripe has of a plan.

    Attributes:
        product: Stripe's id; None: there is none yet.
        prices: by lookup key, those that are ours or that the plans file names.
        beside: all active prices of the product.
        elsewhere: metered ones with our lookup keys, of other products.
    """

    wanted: WantedProduct
    product: str | None
    prices: Mapping[str, Mapping[str, Any]]
    beside: Sequence[Mapping[str, Any]]
    elsewhere: Sequence[Mapping[str, Any]]


def _archived(found: _Found) -> list[str]:
    """Prices that the plans file names and nobody can subscribe to."""
    return [
        f"{wanted.name}: the plans file names the price {wanted.stripe_price}, which is archived at Stripe,"
        " so that nobody can subscribe to it; make it active there, or take it out of the file, and sync"
        " again"
        for wanted in found.wanted.prices
        if wanted.key in found.prices and not found.prices[wanted.key]["active"]
    ]


def _elsewhere(price: Mapping[str, Any], product: str | None) -> str:
    return (
        f"{price['nickname'] or price['lookup_key']}: {price['id']} is of the product {price['product']}, and"
        f" a subscription has the metered prices of {product} alone, which is that of the base price: it"
        " stays active, and is no price of this plan"
    )


def _why_not(price: Mapping[str, Any], wanted: WantedPrice) -> str:
    shape = shape_of(price)
    begins = f"{wanted.name}: the product has the price {price['id']} on the same meter ({shape})"
    if wanted.report == "overage" and shape.free:
        why = _FREE_TWICE
    elif wanted.report == "usage" and wanted.shape.free and not shape.free:
        why = _INCLUDED_BILLED
    else:
        why = (
            f"it is not what the plans file says ({wanted.shape}), or a second one that bills the same again"
        )
    return f"{begins}: {why}; archive it, and sync again"
