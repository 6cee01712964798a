"""``addons:``: what customers may buy beside a plan, and plans with add-ons composed into them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.entitlements import add_included, included_by
from meterkit.catalog.meters import check_meter, refuse_sizes
from meterkit.catalog.models import CREDITS_MAX, QUANTITY_MAX, Addon, Price
from meterkit.catalog.plans import FEATURES_SHAPE, GrantTable, PriceTable, build_features, build_grants
from meterkit.catalog.value_parsers import NAME, integer, quantity, text
from meterkit.catalog.value_shapes import Key, ListOf, MapOf, Nullable, Table, drop_refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog.models import Bought, Catalog, Plan, PlanGrant
    from meterkit.catalog.plans import DeclaredNames

MAX_QUANTITY: Final = 1_000_000
"""Most of an add-on that a customer can buy, whatever its ``max``."""


class AddonPriceTable(Table, what="a price of an add-on"):
    """``price:`` of an add-on."""

    amount_cents = PriceTable.amount_cents
    interval = PriceTable.interval


class AddonMeterTable(Table, what="a meter of an add-on"):
    """One of ``meters:`` of an add-on."""

    included = Key(
        quantity(), "Quantity per billing period that one adds to the plan's `included`.", required=True
    )


class AddonTable(Table, what="an add-on"):
    """One of ``addons:``."""

    name = Key(text(128), "The name that customers see, on invoices and in previews; default: the key.")
    price = Key(
        AddonPriceTable, "Price of one add-on; its interval is that of the plans that list it.", required=True
    )
    meters = Key(MapOf(NAME, AddonMeterTable, "meters and quantities"), "What one adds of each meter.")
    features = Key(FEATURES_SHAPE, "The features that it adds: a list, or all; default: none.")
    grants = Key(ListOf(GrantTable, "grants"), "Grants that each one adds.")
    max_quantity = Key(
        Nullable(integer(least=1, most=MAX_QUANTITY)),
        "How many a customer may have; default: any number.",
        name="max",
    )


def build_addons(read: Mapping[str, AddonTable | None], declared: DeclaredNames) -> dict[str, Addon | None]:
    """The add-ons by key; None where one was refused altogether."""
    return {
        key: None if values is None else _build_addon(key, values, declared) for key, values in read.items()
    }


def _build_addon(key: str, values: AddonTable, declared: DeclaredNames) -> Addon | None:
    included: dict[str, int] = {}
    for name, place in values.places("meters").items():
        meter = check_meter(name, declared.meters, place, values.problems)
        given = drop_refused(values.meters).get(name)
        if meter is None or given is None or given.included is None:
            continue
        refuse_sizes(given.nodes("included"), meter, values.problems)
        included[name] = given.included
    grants = build_grants(values.grants or (), declared)
    features = build_features(values.features, values, declared)
    price = values.price
    if price is None or price.amount_cents is None or price.interval is None:
        return None
    return Addon(
        key=key,
        name=values.name or key,
        price=Price(**price.given()),
        included=included,
        features=features,
        # Without an id of its own, a plan's grant of the same priority and expiry would be the same one.
        grants=tuple(grant if grant.id else replace(grant, id=f"{key}-{grant.key}") for grant in grants),
        max_quantity=values.max_quantity,
    )


def with_addons(plan: Plan, bought: Bought, catalog: Catalog) -> Plan:
    """A plan with add-ons composed into it; those that it does not list give nothing.

    Args:
        plan: of the catalog, with overrides or without.
        bought: by the customer; ``max`` is no limit here.
        catalog: that has the add-ons.
    """
    bought = tuple((key, n) for key, n in bought if n > 0 and key in plan.addons and catalog.find_addon(key))
    if not bought:
        return plan
    features, grants = plan.features, list(plan.grants)
    for key, n in bought:
        if (addon := catalog.find_addon(key)) is not None:
            features |= addon.features
            grants += (_multiply_grant(grant, n) for grant in addon.grants)
    entitlements = add_included(plan.entitlements, included_by(bought, catalog))
    return replace(plan, entitlements=entitlements, features=features, grants=tuple(grants), bought=bought)


def _multiply_grant(grant: PlanGrant, n: int) -> PlanGrant:
    most = CREDITS_MAX if grant.kind == "credit" else QUANTITY_MAX
    rollover = grant.rollover
    return replace(
        grant,
        quantity=min(grant.quantity * n, most),
        rollover=rollover and replace(rollover, at_most=min(rollover.at_most * n, most)),
    )
