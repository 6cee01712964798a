"""Create the meters, products and prices of a plans file at Stripe; refuse what would bill wrongly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.catalog.meters import is_titled
from meterkit.catalog.value_parsers import money
from meterkit.outbox.sealing_terms import line_products
from meterkit.stripe.meter_differences import meter_differences
from meterkit.stripe.prices import OPTIONS, PRICES, fetch_price, with_option_tiers
from meterkit.subscriptions.plan_prices import METERS, prices_by_key
from meterkit.subscriptions.price_problems import (
    PlanAtStripe,
    describe_archived_product,
    describe_as_sold,
    find_problems,
)
from meterkit.subscriptions.stripe_objects import LOOKUP_MARK, is_for_new_customers, pack_key, part_of
from meterkit.subscriptions.wanted_prices import (
    NO_PRICE,
    option_params,
    pack_params,
    pack_product,
    params_of,
    product_params,
    shape_in,
    wanted_addons,
    wanted_plans,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Catalog
    from meterkit.stripe.api import StripeApi
    from meterkit.subscriptions.wanted_prices import PriceShape, WantedPlan, WantedPrice, WantedProduct


_Done = Literal["is there", "made", "reactivated", "extended", "renamed"]
Action = Literal[_Done, "to make", "to reactivate", "to extend", "to rename"]
_PRODUCTS: Final = "/v1/products"
_EXPANDED: Final = ("data.tiers", f"data.{OPTIONS}")
"""Parts of listed prices. A file with one currency too may meet a price of another default one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeSyncLine:
    """One object at Stripe.

    Attributes:
        name: of a product as customers see it.
        id: empty if it is not made yet.
        action: a price is ``extended`` by an amount in a further currency; its other amounts stay. A product
            of meterkit's is ``renamed`` to the ``name`` that the plans file gives.
        price: description of a price in all currencies of the plans file: ``$29.00 per month``.
        unit_amount: the same as a decimal of minor units of ``currency``; empty for other objects.
        currency: of a price, the first one of the plans file.
        unit: the charged unit: ``seat``, ``add-on``, or the meter's unit; empty: the plan itself.
        instead_of: the price that it replaces, as prices cannot be changed.
    """

    what: Literal["meter", "product", "price"]
    name: str
    action: Action
    id: str = ""
    price: str = ""
    unit_amount: str = ""
    currency: str = ""
    unit: str = ""
    instead_of: str = ""


@dataclass(slots=True, kw_only=True)
class StripeSync:
    """The result of a sync: the objects at Stripe, problems and notes.

    Attributes:
        problems: reasons why nothing was made, a line each.
        paste: of each plan with outdated ids in the plans file, ``price`` and ``seat_price`` to an id; of
            another currency with a price of its own ``price, eur``.
    """

    lines: list[StripeSyncLine] = field(default_factory=list[StripeSyncLine])
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    paste: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])


async def sync(
    api: StripeApi,
    catalog: Catalog,
    *,
    dry_run: bool,
) -> StripeSync:
    """Create missing objects at Stripe. Idempotent.

    If anything would be billed wrongly, nothing is created.

    Args:
        api: the Stripe client.
        catalog: the plans file.
        dry_run: create nothing, and return what would be created.

    Raises:
        StripeError: Stripe refuses, or does not answer. A repeat finds the objects created by then.
    """
    return await _SyncRun(api, catalog, dry_run=dry_run).run()


class StripeAccount:
    """``kit.stripe``: the meters, products and prices of the plans file in the Stripe account.

    Args:
        catalog: returns the present catalog.
        api: makes the Stripe client on first use.
    """

    def __init__(self, catalog: Callable[[], Catalog], api: Callable[[], StripeApi]) -> None:
        self._catalog = catalog
        self._api = api

    async def sync(self, *, dry_run: bool = False) -> StripeSync:
        """Make the objects of the plans file that Stripe lacks, as ``meterkit stripe sync`` does. Idempotent.

        If anything would be billed wrongly, nothing is made, and ``problems`` says why.

        Args:
            dry_run: plan only, and make nothing.

        Raises:
            SettingsError: no Stripe key is set.
            StripeError: Stripe refuses, or does not answer. A repeat finds the objects made by then.
        """
        return await sync(self._api(), self._catalog(), dry_run=dry_run)


class _SyncRun:
    def __init__(self, api: StripeApi, catalog: Catalog, *, dry_run: bool) -> None:
        self._api = api
        self._catalog = catalog
        self._dry_run = dry_run
        self._done = StripeSync()
        self._meters: dict[str, Mapping[str, Any]] = {}
        self._products: dict[str, str] = {}
        self._names: dict[str, str] = {}
        """Names of all active products by id."""

    async def run(self) -> StripeSync:
        done, by_lines = self._done, self._catalog.billing.is_by_lines
        meters, missing = [] if by_lines else await self._api.list(METERS), "Stripe has no active meter"
        if not by_lines:
            differences = meter_differences(self._catalog, meters)
            done.problems += [line for line in differences if missing not in line]
        for meter in meters:  # The newest first; an active one before any that is not.
            known = self._meters.get(meter["event_name"])
            if known is None or (known["status"] != "active" and meter["status"] == "active"):
                self._meters[meter["event_name"]] = meter
        sold = find_top_ups(self._catalog.credits)
        wanted = [*wanted_plans(self._catalog), *wanted_addons(self._catalog)]
        for plan in wanted:
            done.problems += plan.problems
            done.notes += plan.notes
        for product in reversed(await self._api.list(_PRODUCTS, {"active": True}) if wanted or sold else []):
            self._names[product["id"]] = product["name"]
            if (key := product["metadata"].get(LOOKUP_MARK)) is not None:
                self._products[key] = product["id"]  # The oldest was first; the newest stays.
        found = [await self._fetch_plan(plan) for plan in wanted if plan.prices]
        for plan_found in found:
            done.problems += find_problems(plan_found)
        packs = {} if sold is None else {pack_key(sold[0], amount): amount for amount in sold[1].amounts}
        present = await prices_by_key(self._api, [*packs])
        done.problems += [
            describe_archived_product(key, price)
            for key, price in present.items()
            if price["product"] not in self._names
        ]
        if not done.problems:
            await (self._make_line_products() if by_lines else self._make_meters())
            for plan_found in found:
                await self._make_prices(plan_found)
            if sold is not None:
                await self._make_packs(sold[0], packs, present)
        return done

    async def _fetch_plan(self, wanted: WantedPlan) -> PlanAtStripe:
        """Fetch the product and prices of a plan at Stripe."""
        keyed = await prices_by_key(self._api, [price.key for price in wanted.prices], expand=_EXPANDED)
        keyed = {key: await with_option_tiers(self._api, price) for key, price in keyed.items()}
        prices: dict[str, Mapping[str, Any]] = {}
        missing: list[WantedPrice] = []
        for price in wanted.prices:
            there: Mapping[str, Any] | None = keyed.get(price.key) if price.has_lookup_key else None
            if price.stripe_price is not None:
                named = await fetch_price(self._api, price.stripe_price)
                if named is None:
                    missing.append(price)
                there = named or there
            if there is not None:
                prices[price.name] = there
        base = prices.get(wanted.prices[0].name)
        product = None if base is None else str(base["product"])
        listed = [] if product is None else await self._list_prices(product)
        unkeyed = [price for price in wanted.prices if not price.has_lookup_key]
        marked = {self._products.get(price.product.key, product) for price in unkeyed} - {product}
        replacing = [price for other in marked if other for price in await self._list_prices(other)]
        return PlanAtStripe(
            wanted=wanted,
            product=product,
            prices=prices,
            keyed=keyed,
            listed=listed,
            replacing=[*listed, *replacing],
            missing=missing,
            sold=self._names.keys(),
            meters=self._meters,
        )

    async def _list_prices(self, product: str) -> list[dict[str, Any]]:
        """List the active prices of a product, without those of overrides and replaced metered ones."""
        listed = await self._api.list(PRICES, {"product": product, "active": True, "expand": _EXPANDED})
        return [await with_option_tiers(self._api, price) for price in filter(is_for_new_customers, listed)]

    async def _make_meters(self) -> None:
        for meter in self._catalog.meters.values():
            if meter.stripe is None or meter.stripe.report == "none":
                continue
            event_name = meter.stripe.event_name
            there, action = self._meters.get(event_name), "is there"
            if there is None:
                action = "to make" if self._dry_run else "made"
                params: dict[str, Any] = {
                    "display_name": meter.title,
                    "event_name": event_name,
                    "default_aggregation": {"formula": "sum"},
                }
                there = None if self._dry_run else await self._api.post(METERS, params)
            elif there["status"] != "active":
                action = "to reactivate" if self._dry_run else "reactivated"
                if not self._dry_run:
                    there = await self._api.post(f"{METERS}/{there['id']}/reactivate")
            if there is not None:
                self._meters[event_name] = there
            self._add_line("meter", event_name, action, "" if there is None else there["id"])

    async def _make_line_products(self) -> None:
        """Make the products that lines for usage name."""
        for meter, product in line_products(self._catalog):
            action: Action = "is there"
            there = await self._api.find(f"{_PRODUCTS}/{product['id']}")
            if there is None:
                action = self._made
                if not self._dry_run:
                    await self._api.post(_PRODUCTS, {**product, "unit_label": meter.unit})
            elif is_titled(meter, self._catalog.meters) and there["name"] != meter.title:
                action = await self._rename_product(product["id"], meter.title)
            made = action == "to make"
            self._add_line("product", meter.title, action, "" if made else product["id"])

    async def _make_packs(
        self, credit: str, keys: Mapping[str, int], there: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Make the product of top-ups of a balance, and a price of each amount, by lookup key."""
        product, currency = pack_product(credit), BALANCE_CURRENCY
        missing = [key for key in keys if key not in there]
        known = self._products.get(product.key) or next(
            (str(price["product"]) for price in there.values()), None
        )
        if known is None and not self._dry_run:
            known = str((await self._api.post(_PRODUCTS, product_params(product)))["id"])
        self._add_product_line(product, self._made if len(missing) == len(keys) else "is there", known or "")
        for key, amount in keys.items():
            price: Mapping[str, Any] = there.get(key, {})
            if not price and not self._dry_run:
                asked = pack_params(credit, amount, product=known or "", currency=currency)
                price = await self._api.post(PRICES, asked)
            line = StripeSyncLine(
                what="price",
                name=f"{credit}, top-up",
                action=self._made if key in missing else "is there",
                id=str(price.get("id", "")),
                price=f"{money(amount, currency)} once",
                unit_amount=str(amount),
                currency=currency,
            )
            self._done.lines.append(line)

    async def _make_prices(self, found: PlanAtStripe) -> None:
        for price in found.wanted.prices:
            price_id = await self._find_or_make_price(found, price)
            if price.stripe_price is not None and price_id not in {price.stripe_price, ""}:
                line = price.line if price.has_lookup_key else f"{price.line}, {price.shape.currency}"
                self._done.paste.setdefault(found.wanted.plan, {})[line] = price_id

    async def _find_or_make_price(self, found: PlanAtStripe, wanted: WantedPrice) -> str:
        there = found.prices.get(wanted.name)
        fitting = found.fitting(wanted)
        if there is None and fitting:
            there = fitting[0]
        fits = there is not None and found.fits(there, wanted)
        known = there if fits else found.find_made(wanted)
        instead_of = "" if there is None or fits else str(there["id"])
        if there is not None and not fits and not self._dry_run:
            await self._mark_replaced(there, wanted)
        if known is not None:
            made = str(known["id"])
            await self._add_known_product(wanted.product, known["product"])
            self._add_price_line(wanted, await self._add_currencies(known, wanted), made, instead_of)
        else:
            product = await self._find_or_make_product(wanted, found)
            made = "" if self._dry_run else await self._make_price(wanted, product, there)
            self._add_price_line(wanted, self._made, made, instead_of)
        if there is not None and not fits:
            self._done.notes.append(
                f"{wanted.name}: {there['id']} is {describe_as_sold(there, wanted)}, and a price cannot"
                f" be changed: {made or 'a new one'} is {wanted.describe()}; subscribers of the old one keep"
                " it"
            )
        return made

    async def _make_price(self, wanted: WantedPrice, product: str, there: Mapping[str, Any] | None) -> str:
        """Make a price, in place of the one that is there."""
        meter = None if wanted.shape.meter is None else self._meters[wanted.shape.meter]["id"]
        params = params_of(wanted, product=product, meter=meter, like=there or NO_PRICE)
        # The replaced price stays active: schedules of its subscribers have to name it.
        return str((await self._api.post(PRICES, params))["id"])

    async def _mark_replaced(self, there: Mapping[str, Any], wanted: WantedPrice) -> None:
        """Mark a price whose lookup key, or place in the plans file, another one takes.

        Its subscribers keep their plan, seats or add-on by the mark: see :func:`key_in`.
        """
        if part_of(there, "metadata").get(LOOKUP_MARK) != wanted.key:
            await self._api.post(f"{PRICES}/{there['id']}", {"metadata": {LOOKUP_MARK: wanted.key}})

    async def _add_currencies(self, there: Mapping[str, Any], wanted: WantedPrice) -> Action:
        """Give a price amounts in the currencies that it lacks; those that it has are never changed.

        Stripe also lets the amount in another currency be changed. Subscribers would not keep theirs then.
        """
        missing = [shape for shape in wanted.shapes if shape_in(there, shape.currency) is None]
        if not missing:
            return "is there"
        if self._dry_run:
            return "to extend"
        await self._api.post(f"{PRICES}/{there['id']}", {OPTIONS: option_params(missing, there)})
        return "extended"

    async def _find_or_make_product(self, wanted: WantedPrice, found: PlanAtStripe) -> str:
        """The product of a new price: meterkit's, that of the present base price, or a new one."""
        product = wanted.product
        known = self._products.get(product.key) or (found.product if wanted.line == "price" else None)
        if known is not None:
            await self._add_known_product(product, known)
        else:
            known = ""
            if not self._dry_run:
                known = str((await self._api.post(_PRODUCTS, product_params(product)))["id"])
            self._add_product_line(product, self._made, known)
        self._products[product.key] = known
        return known

    async def _add_known_product(self, product: WantedProduct, object_id: str) -> None:
        """List a product that Stripe has; give meterkit's own the name of the plans file."""
        is_own, name = self._products.get(product.key) == object_id, self._names.get(object_id, product.name)
        action: Action = "is there"
        if is_own and product.is_named and name != product.name:
            action = await self._rename_product(object_id, product.name)
        self._add_product_line(product, action, object_id)

    async def _rename_product(self, product: str, name: str) -> Action:
        if self._dry_run:
            return "to rename"
        await self._api.post(f"{_PRODUCTS}/{product}", {"name": name})
        self._names[product] = name
        return "renamed"

    @property
    def _made(self) -> Action:
        return "to make" if self._dry_run else "made"

    def _add_product_line(self, product: WantedProduct, action: Action, object_id: str) -> None:
        line = ("product", product.name, object_id)
        if line not in [(one.what, one.name, one.id) for one in self._done.lines]:
            self._add_line("product", product.name, action, object_id)

    def _add_price_line(
        self, wanted: WantedPrice, action: Action, price_id: str, instead_of: str = ""
    ) -> None:
        shape: PriceShape = wanted.shape
        line = StripeSyncLine(
            what="price",
            name=wanted.name,
            action=action,
            id=price_id,
            price=wanted.describe(),
            unit_amount=f"{shape.unit:f}",
            currency=shape.currency,
            unit=wanted.unit,
            instead_of=instead_of,
        )
        self._done.lines.append(line)

    def _add_line(self, what: Literal["meter", "product"], name: str, action: Any, object_id: str) -> None:
        self._done.lines.append(StripeSyncLine(what=what, name=name, action=action, id=object_id))
