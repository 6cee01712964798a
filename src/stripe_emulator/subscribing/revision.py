"""A change of a subscription's items: what they become, and what is charged and given back by that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stripe_emulator.invoicing.charges import (
    count_anew,
    nothing_line,
    period_line,
    remaining_line,
    trial_line,
    unused_lines,
    usage_lines,
    usage_of,
)
from stripe_emulator.protocol import new_id
from stripe_emulator.selling.coupons import begun
from stripe_emulator.subscribing.billing_cycle import period_at
from stripe_emulator.subscribing.subscriptions import Item, Subscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.invoicing.invoices import Line
    from stripe_emulator.protocol import JsonObject
    from stripe_emulator.selling.coupons import Discount
    from stripe_emulator.selling.prices import Price
    from stripe_emulator.subscribing.billing_cycle import BillingMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What becomes of one item.

    Attributes:
        item: id of the item; None: it is a new one.
        price: None: it keeps its own.
        quantity: None: it keeps its own, or has none.
        deleted: whether it goes.
        metadata: what is added to its own.
        terms: thresholds and tax rates that replace its own, each by itself.
        discounts: its own from now on; None: it keeps those that it has.
    """

    item: str | None = None
    price: Price | None = None
    quantity: int | None = None
    deleted: bool = False
    metadata: dict[str, str] | None = None
    terms: JsonObject = field(default_factory=dict[str, object])
    discounts: Sequence[Discount] | None = None

    @property
    def new_price(self) -> Price:
        """The price of an item that is new. Raises ValueError if it names none."""
        if self.price is None:
            raise ValueError("an item that is new needs a price")
        return self.price


def new_subscription(
    account: Account, customer: str, *, currency: str, mode: BillingMode, livemode: bool = False
) -> Subscription:
    """Return a subscription without items whose cycle begins now."""
    return Subscription(
        id=new_id("sub_1", length=23),
        customer=customer,
        created=account.now,
        currency=currency,
        billing_cycle_anchor=account.now,
        billing_mode=mode,
        livemode=livemode,
        test_clock=account.customers.find(customer).test_clock,
    )


def new_item(subscription: Subscription, wanted: Wanted, *, at: int) -> Item:
    """Return an item that begins at an instant; its period is that of the cycle, or of the trial."""
    price = wanted.new_price
    end = subscription.trial_end if subscription.status == "trialing" else None
    item = Item(
        id=new_id("si"),
        subscription=subscription.id,
        created=at,
        price=price,
        quantity=None if price.is_metered else wanted.quantity,
        period_start=at,
        period_end=_end_of_period(subscription, price, at=at) if end is None else end,
        usage_from=at,
        metadata=dict(wanted.metadata or {}),
    )
    set_item_terms(subscription, item, wanted, at=at)
    return item


def set_item_terms(subscription: Subscription, item: Item, wanted: Wanted, *, at: int) -> None:
    """Give an item the terms and discounts that a change names; a discount that it has goes on."""
    item.terms = {**item.terms, **wanted.terms}
    if wanted.discounts is not None:
        item.discounts = [
            each
            if each.subscription is not None
            else begun(replace(each, customer=subscription.customer), subscription=subscription.id, now=at)
            for each in wanted.discounts
        ]


def begin_items(account: Account, subscription: Subscription, *, prorate: bool) -> list[Line]:
    """Charge the first period of all items: whole, or its part where the cycle is anchored elsewhere.

    No line is made for usage-based items, but in classic billing
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).
    """
    lines: list[Line] = []
    for item in subscription.items:
        if item.price.is_metered:
            lines += [nothing_line(account, item)] if subscription.billing_mode.is_classic else []
            continue
        if subscription.status == "trialing":
            lines.append(trial_line(account, item))
        elif subscription.billing_cycle_anchor == item.period_start:
            lines.append(period_line(account, item))
        elif prorate:
            lines.append(_remaining(account, subscription, item, at=item.period_start))
    return lines


def revise(
    account: Account,
    subscription: Subscription,
    changes: Sequence[Wanted],
    *,
    at: int,
    prorate: bool,
    restarts: bool = False,
) -> list[Line]:
    """Change items, and return the lines that follow: credits for unused time, charges for the rest.

    Where an item is removed or its price changes, its usage up to then is charged, unless prorations are off
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing). The cycle stays
    anchored where it is, whatever the interval of the new price (the same page: "never automatically reset").

    Args:
        account: what it is of.
        subscription: it changes.
        changes: the change of each item.
        at: Unix seconds.
        prorate: whether there are credits and charges.
        restarts: whether a cycle begins anew, which charges what is new by itself.
    """
    charge = prorate and not restarts
    lines: list[Line] = []
    by_id = {item.id: item for item in subscription.items}
    for wanted in changes:
        item = by_id.get(wanted.item or "")
        if item is None:
            item = new_item(subscription, wanted, at=at)
            count_anew(account, item, at=at)
            subscription.items.append(item)
            lines += _charge(account, subscription, item, at=at, prorate=charge)
            continue
        item.metadata.update(wanted.metadata or {})
        set_item_terms(subscription, item, wanted, at=at)
        price = wanted.price or item.price
        quantity = None if price.is_metered else _kept(item, price, wanted)
        if not wanted.deleted and (price, quantity) == (item.price, item.quantity):
            continue
        lines += _give_back(account, subscription, item, at=at, prorate=prorate)
        if wanted.deleted:
            subscription.items.remove(item)
            continue
        if price.recurring != item.price.recurring and subscription.status != "trialing":
            item.period_start, item.period_end = at, _end_of_period(subscription, price, at=at)
        item.price, item.quantity = price, quantity
        lines += _charge(account, subscription, item, at=at, prorate=charge)
    return lines


def restart(account: Account, subscription: Subscription, *, at: int, prorate: bool) -> list[Line]:
    """Anchor the cycle at an instant and charge a whole period from there, giving back what was left.

    https://docs.stripe.com/billing/subscriptions/billing-cycle#reset-the-billing-period-to-the-current-time
    """
    lines: list[Line] = []
    subscription.billing_cycle_anchor = at
    for item in subscription.items:
        lines += unused_lines(account, subscription, item, at=at) if prorate else []
        usage = None if subscription.status == "trialing" else usage_of(item, until=at)
        lines += [] if usage is None else usage_lines(account, subscription, usage)
        item.usage_from = at
        item.period_start, item.period_end = at, _end_of_period(subscription, item.price, at=at)
        item.debits = []
        if not item.price.is_metered:
            lines.append(period_line(account, item))
    return lines


def _kept(item: Item, price: Price, wanted: Wanted) -> int:
    """Return the quantity of an item whose change names none: its own, or 1 at another price.

    "When changing a subscription item's price, `quantity` is set to 1 unless a `quantity` parameter is
    provided" (https://docs.stripe.com/api/subscriptions/update#update_subscription-items-price).
    """
    if wanted.quantity is not None:
        return wanted.quantity
    return item.quantity if price is item.price and item.quantity is not None else 1


def _give_back(
    account: Account, subscription: Subscription, item: Item, *, at: int, prorate: bool
) -> list[Line]:
    usage = usage_of(item, until=at, removed=True)
    count_anew(account, item, at=at)
    if not prorate:
        # A later credit is computed from the amount charged: see the example under "Calculation logic
        # with no prorations" (https://docs.stripe.com/billing/subscriptions/prorations#credit-prorations).
        return []
    if subscription.status == "trialing":
        return []
    if subscription.billing_mode.is_classic:
        # "Usage from January 1 to January 16 isn't billed"
        # (https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup).
        usage = None
    counted = [] if usage is None else usage_lines(account, subscription, usage)
    return [*unused_lines(account, subscription, item, at=at), *counted]


def _charge(
    account: Account, subscription: Subscription, item: Item, *, at: int, prorate: bool
) -> list[Line]:
    if item.price.is_metered and subscription.billing_mode.is_classic:
        return [nothing_line(account, item)]
    if item.price.is_metered or not prorate or subscription.status == "trialing":
        return []
    return [_remaining(account, subscription, item, at=at)]


def _remaining(account: Account, subscription: Subscription, item: Item, *, at: int) -> Line:
    anchor, discounts = subscription.billing_cycle_anchor, [*item.discounts, *subscription.discounts]
    return remaining_line(account, item, anchor=anchor, at=at, discounts=discounts)


def _end_of_period(subscription: Subscription, price: Price, *, at: int) -> int:
    return period_at(subscription.billing_cycle_anchor, price.cycle, at)[1]
