"""Items and trial settings of a subscription: those of a plan, and the changes that lead there. Pure.

An item belongs to a plan by its price or its meter, not by its product. A person may switch the base price in
Stripe's dashboard, and the item of the old plan's usage must then still be found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.errors import UnknownAddonError
from meterkit.subscriptions.stripe_objects import (
    addon_key,
    addon_of_price,
    base_key,
    id_in,
    is_seat_key,
    key_in,
    meter_key,
    part_of,
    plan_key_in,
    plan_of_price,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.stripe.request import Parameter

CREATE_PRORATIONS: Final = "create_prorations"
"""``proration_behavior`` of a change whose difference goes on the next invoice."""

_BASE: Final = 1


class _ItemRole(NamedTuple):
    """The part of a plan that an item sells; a plan has one item of each role.

    Attributes:
        kind: the kind of the part.
        of: the meter at Stripe of a metered item, the key of an add-on; otherwise None.
    """

    kind: Literal["base", "seat", "metered", "addon"]
    of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveItem:
    """An item of a subscription at Stripe.

    Attributes:
        id: ``si_…``.
        price: ``price_…``.
        quantity: None where it is metered.
        product: of the price.
        meter: of the price, where it is metered; else None.
        key: the lookup key from ``meterkit stripe sync``; empty: the price was made by hand.
    """

    id: str
    price: str
    quantity: int | None
    product: str
    meter: str | None
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPrices:
    """The prices at Stripe of a plan.

    Attributes:
        plan: its key.
        base: its base price.
        seat: the price of a seat beyond those of the base price; None: no seats are sold.
        metered: each metered price, and its meter.
        meters: all meters at Stripe that carry a meter of the plans file: id to event name, active ones
            first.
        overridden: metered prices that an override gives one customer instead of the plan's.
        addons: price of each add-on that may be bought beside the plan, by key; those that Stripe lacks are
            missing.
    """

    plan: str
    base: str
    seat: str | None
    metered: Mapping[str, str | None]
    meters: Mapping[str, str]
    overridden: frozenset[str] = frozenset()
    addons: Mapping[str, str] = field(default_factory=dict[str, str])


class _ItemMatch(NamedTuple):
    """The present items of a subscription, matched to those of a plan.

    Attributes:
        wanted: each item of the plan with the present one that becomes it; None: there is none.
        left: items to remove: of another plan, a second one of a meter, or an add-on that is not wanted.
        others: items that the plans file does not sell; they stay.
    """

    wanted: Sequence[tuple[dict[str, Parameter], LiveItem | None]]
    left: Sequence[LiveItem]
    others: Sequence[LiveItem]


def items_of(subscription: Mapping[str, Any]) -> tuple[LiveItem, ...]:
    """Read the items of a subscription as Stripe shows it."""
    return tuple(item_of(item) for item in subscription["items"]["data"])


def prices_in(subscription: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """List the prices of the items of a subscription as Stripe shows it."""
    return tuple(item["price"] for item in subscription["items"]["data"])


def item_of(item: Mapping[str, Any]) -> LiveItem:
    """Read one item of a subscription as Stripe shows it, with its price."""
    price = item["price"]
    recurring = part_of(price, "recurring")
    is_metered = recurring.get("usage_type") == "metered"
    return LiveItem(
        id=item["id"],
        price=price["id"],
        quantity=None if is_metered else item.get("quantity", _BASE),
        product=id_in(price, "product"),
        meter=(text_in(recurring, "meter") or price["id"]) if is_metered else None,
        key=key_in(price),
    )


def metered_among(prices: Iterable[Mapping[str, Any]], base: Mapping[str, Any]) -> dict[str, str | None]:
    """Choose the metered prices of a base price, each with its meter; one a meter, so that it bills once.

    Among several of one meter: the one with the interval of the base price, then the newest.

    Args:
        prices: the active prices of the product of the base price, as Stripe shows them.
        base: the base price.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for price in sorted(prices, key=lambda price: _price_rank(price, base)):
        recurring = part_of(price, "recurring")
        if recurring.get("usage_type") == "metered" and price.get("currency") == base.get("currency"):
            found[text_in(recurring, "meter") or price["id"]] = price
    return {price["id"]: meter for meter, price in found.items()}


def _price_rank(price: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[bool, int, str]:
    return _interval_of(price) == _interval_of(base), price.get("created") or 0, price["id"]


def _interval_of(price: Mapping[str, Any]) -> tuple[Any, Any]:
    recurring = part_of(price, "recurring")
    return recurring.get("interval"), recurring.get("interval_count", 1)


def addons_in(items: Iterable[LiveItem], catalog: Catalog) -> Bought:
    """Add-ons of the plans file among items, also those that the plan does not list."""
    found: dict[str, int] = {}
    for item in items:
        addon = addon_of_price(item.price, item.key, catalog)
        if addon is not None and item.quantity:
            found[addon] = found.get(addon, 0) + item.quantity
    return tuple(sorted(found.items()))


def new_items(prices: PlanPrices, paid_seats: int, addons: Bought = ()) -> list[dict[str, Parameter]]:
    """Build the items of a plan as parameters of a new subscription.

    Args:
        prices: of the plan.
        paid_seats: number that costs the seat price; 0: no item.
        addons: bought beside the plan.

    Raises:
        UnknownAddonError: Stripe has no price of an add-on.
    """
    return [_require_price(line, role) for line, role in _wanted_items(prices, paid_seats, addons)]


def _wanted_items(
    prices: PlanPrices, paid_seats: int, addons: Bought
) -> list[tuple[dict[str, Parameter], _ItemRole]]:
    """Items of a plan with their roles; the price of an add-on that Stripe lacks is empty."""
    items: list[tuple[dict[str, Parameter], _ItemRole]] = [
        ({"price": prices.base, "quantity": _BASE}, _ItemRole("base"))
    ]
    if prices.seat is not None and paid_seats:
        items.append(({"price": prices.seat, "quantity": paid_seats}, _ItemRole("seat")))
    items.extend(
        ({"price": prices.addons.get(addon, ""), "quantity": quantity}, _ItemRole("addon", addon))
        for addon, quantity in addons
    )
    items.extend(({"price": price}, _ItemRole("metered", meter)) for price, meter in prices.metered.items())
    return items


def _require_price(line: dict[str, Parameter], role: _ItemRole) -> dict[str, Parameter]:
    """Return an item. Raises UnknownAddonError if it has no price."""
    if line["price"]:
        return line
    addon = role.of or ""
    raise UnknownAddonError(
        addon,
        f"addons: {addon!r:.80} cannot be bought yet: Stripe has no active price with the lookup key"
        f" {addon_key(addon)!r:.200}; `meterkit stripe sync` makes it",
        is_unpriced=True,
    )


def are_of(items: Iterable[LiveItem], wanted: Iterable[Mapping[str, Parameter]]) -> bool:
    """Whether items match the wanted ones: the same prices and quantities."""
    return {(item.price, item.quantity) for item in items} == {
        (item["price"], item.get("quantity")) for item in wanted
    }


def next_items(
    current: Sequence[LiveItem],
    catalog: Catalog,
    prices: PlanPrices,
    paid_seats: int,
    addons: Bought,
    settings: Mapping[str, Mapping[str, Parameter]] | None = None,
) -> list[dict[str, Parameter]]:
    """Build the items of a subscription with another plan; what the plans file does not sell stays.

    ``settings`` has the other parameters of present items by their ids, such as tax rates. An item that
    becomes one of the new plan keeps them. An item that is added has those of its price.
    """
    found = _match_items(current, catalog, prices, paid_seats, addons)
    kept = settings or {}
    return [
        *(
            {**kept.get(str(wanted["price"]) if item is None else item.id, {}), **wanted}
            for wanted, item in found.wanted
        ),
        *({**kept.get(item.id, {}), **as_new(item)} for item in found.others),
    ]


def as_new(item: LiveItem) -> dict[str, Parameter]:
    """Return an item as parameters of a new one."""
    return (
        {"price": item.price} if item.quantity is None else {"price": item.price, "quantity": item.quantity}
    )


def updates(
    current: Sequence[LiveItem],
    catalog: Catalog,
    prices: PlanPrices,
    paid_seats: int,
    addons: Bought = (),
) -> list[dict[str, Parameter]]:
    """Item changes that turn a subscription into a plan with seats and add-ons.

    Empty if the subscription has exactly the plan's items. Items that the plans file does not sell are kept.
    An item is changed rather than replaced, so that Stripe prorates what was paid for it. A price of this
    plan, or of an add-on, that ``meterkit stripe sync`` has replaced stays: its subscribers keep it.
    """
    found = _match_items(current, catalog, prices, paid_seats, addons)
    changes: list[dict[str, Parameter]] = []
    for wanted, item in found.wanted:
        if item is None:
            changes.append(wanted)
        # A price that changes without a quantity sets that to 1.
        elif item.price != wanted["price"]:
            changes.append({"id": item.id, **wanted})
        elif item.quantity != wanted.get("quantity"):
            changes.append({"id": item.id, "quantity": wanted["quantity"]})
    changes.extend({"id": item.id, "deleted": True} for item in found.left)
    return changes


def changes_metered(current: Iterable[LiveItem], changes: Iterable[Mapping[str, Parameter]]) -> bool:
    """Whether changes of items add, remove or switch a metered one, so that usage has a new price."""
    metered = {item.id for item in current if item.meter is not None}
    return any(change["id"] in metered if "id" in change else "quantity" not in change for change in changes)


def _match_items(
    current: Sequence[LiveItem], catalog: Catalog, prices: PlanPrices, paid_seats: int, addons: Bought
) -> _ItemMatch:
    roles = _classify_items(current, catalog, prices)
    left = [item for item in current if item.id in roles]
    plan_keys = _keys_of_plan(current, catalog, prices.plan)
    wanted: list[tuple[dict[str, Parameter], LiveItem | None]] = []
    for line, role in _wanted_items(prices, paid_seats, addons):
        near = [
            (_item_distance(item, line, role, catalog, prices, plan_keys), item)
            for item in left
            if roles[item.id] == role
        ]
        distance, item = min(near, key=itemgetter(0), default=(_ANOTHER, None))
        if item is not None:
            left.remove(item)
            if distance == _REPLACED:
                line["price"] = item.price
        wanted.append((_require_price(line, role), item))
    return _ItemMatch(wanted, left, [item for item in current if item.id not in roles])


def _keys_of_plan(current: Sequence[LiveItem], catalog: Catalog, plan: str) -> set[str]:
    """Plans in the lookup keys of a plan's prices: itself, and the key that it had in the plans file before.

    A base price with a lookup key names that one. Beside one that was made by hand, it is any plan that the
    file lacks.
    """
    bases = (item for item in current if plan_of_price(item.price, item.key, catalog) == plan)
    named = {plan_key_in(item.key) for item in bases}
    lost = {plan_key_in(item.key) for item in current} - {"", *catalog.plans}
    return {plan} | (lost if "" in named else lost & named)


_SAME: Final = 0
_REPLACED: Final = 1
_ANOTHER: Final = 2


def _item_distance(
    item: LiveItem,
    line: Mapping[str, Parameter],
    role: _ItemRole,
    catalog: Catalog,
    prices: PlanPrices,
    plan_keys: set[str],
) -> int:
    """Distance of an item to a wanted one of its role: its price, a replaced price of it, or another one."""
    if item.price == line["price"]:
        return _SAME
    if role.kind == "addon":
        return _REPLACED
    if role.kind == "base":
        is_ours = plan_of_price(item.price, item.key, catalog) == prices.plan
    elif role.kind == "seat":
        is_ours = plan_key_in(item.key) in plan_keys
    else:
        # An older price of the plan is no substitute for one of an override.
        is_ours = plan_key_in(item.key) in plan_keys and line["price"] not in prices.overridden
    return _REPLACED if is_ours else _ANOTHER


def _classify_items(
    current: Sequence[LiveItem], catalog: Catalog, prices: PlanPrices
) -> dict[str, _ItemRole]:
    """Roles of the items that the plans file sells, by their ids; all others are left out.

    Metered items belong to a plan by their meter; if the plans file lacks the meter, by the product of a base
    price, or by a lookup key of a meter that has another event name in the file by now.
    """
    plans = catalog.plans.values()
    bases = {plan.price.stripe_price for plan in plans} | {prices.base}
    seats = {plan.seat_price.stripe_price for plan in plans if plan.seat_price} | {prices.seat}
    base_keys = {base_key(plan.key) for plan in plans}
    roles: dict[str, _ItemRole] = {}
    for item in current:
        if item.price in bases or item.key in base_keys:
            roles[item.id] = _ItemRole("base")
        elif item.price in seats or is_seat_key(item.key):
            roles[item.id] = _ItemRole("seat")
        elif (addon := addon_of_price(item.price, item.key, catalog)) is not None:
            roles[item.id] = _ItemRole("addon", addon)
    products = {item.product for item in current if roles.get(item.id) == _ItemRole("base")}
    keys = {meter_key(plan, meter) for plan in catalog.plans for meter in catalog.meters if prices.meters}
    for item in current:
        is_ours = item.meter in prices.meters or item.product in products or item.key in keys
        if item.meter is not None and is_ours:
            roles[item.id] = _ItemRole("metered", item.meter)
    return roles


# https://docs.stripe.com/api/subscriptions/create#create_subscription-trial_settings
_MISSING_METHOD: Final = {"cancel": "cancel", "pause": "pause", "invoice": "create_invoice"}
_STRIPE_DEFAULT: Final = "create_invoice"


def trial_settings(plan: Plan) -> dict[str, Parameter]:
    """The parameter ``trial_settings`` of a plan with a trial."""
    end_behavior: dict[str, Parameter] = {
        "missing_payment_method": _MISSING_METHOD[plan.trial_without_card],
    }
    return {"trial_settings": {"end_behavior": end_behavior}}


def trial_settings_change(found: Mapping[str, Any], plan: Plan) -> dict[str, Parameter]:
    """The change that gives a running trial the settings of its plan; empty if it has them.

    A plan without ``trial`` does not change a trial that was given at Stripe.

    Args:
        found: the subscription as Stripe shows it.
        plan: its present or next plan.
    """
    if found.get("status") != "trialing" or plan.trial_ms is None:
        return {}
    is_same = missing_method_action(found) == _MISSING_METHOD[plan.trial_without_card]
    return {} if is_same else trial_settings(plan)


def missing_method_action(found: Mapping[str, Any]) -> str:
    """Stripe's action at the end of a trial without a payment method."""
    behavior = part_of(part_of(found, "trial_settings"), "end_behavior")
    return text_in(behavior, "missing_payment_method") or _STRIPE_DEFAULT
