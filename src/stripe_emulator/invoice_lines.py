"""Invoice lines of subscription items: whole periods, prorations, and usage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_at
from stripe_emulator.coupons import Discount, subtract_discounts
from stripe_emulator.currency_amounts import decimal_text, price_text
from stripe_emulator.invoices import ChargedUsage, CreditedLines, InvoiceLine
from stripe_emulator.meter_events import aggregate_events
from stripe_emulator.prices import Price, charges_by_tier, price_quantity, to_cents
from stripe_emulator.protocol import new_id
from stripe_emulator.subscriptions import ItemDebit, Subscription, SubscriptionItem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account

LINE_LENGTH: Final = 23


def period_line(account: Account, item: SubscriptionItem) -> InvoiceLine:
    """Charge an item's current period in full, in advance."""
    amount = to_cents(price_quantity(item.price.pricing, _item_quantity(item)))
    text = f"{item.quantity} × {_product_name(account, item.price)} {_rate_text(item.price)}"  # noqa: RUF001 - Stripe's.
    line = _subscription_line(item, amount=amount, text=text, start=item.period_start, end=item.period_end)
    item.debits = [_new_debit(line)]
    return line


def trial_line(account: Account, item: SubscriptionItem) -> InvoiceLine:
    """Charge nothing for an item that is on trial.

    https://docs.stripe.com/billing/subscriptions/billing-mode/compare: "Free trial for {quantity} x {name}".
    """
    text = f"Free trial for {item.quantity} x {_product_name(account, item.price)}"
    return _subscription_line(item, amount=0, text=text, start=item.period_start, end=item.period_end)


def prorated_charge_line(
    account: Account, item: SubscriptionItem, *, anchor: int, at: int, discounts: Sequence[Discount] = ()
) -> InvoiceLine:
    """Charge what is left of an item's period, by the second, less discounts.

    "Stripe calculates proration down to the second based on the starting timestamp of the billing period
    and the timestamp of the proration's triggering event" (https://docs.stripe.com/billing/scripts/prorations).
    """
    whole = price_quantity(item.price.pricing, _item_quantity(item))
    start, end = period_at(anchor, item.price.cycle, at)
    gross = whole * Fraction(item.period_end - at, end - start)
    amount = to_cents(subtract_discounts(discounts, gross, product=item.price.product, now=at))
    text = f"Remaining time on {_quantity_text(account, item)} after {_day_text(at)}"
    line = _subscription_line(item, amount=amount, text=text, start=at, end=item.period_end, proration=True)
    item.debits.append(_new_debit(line))
    return line


def zero_usage_line(account: Account, item: SubscriptionItem) -> InvoiceLine:
    """Charge nothing for a usage-based item that is added, as classic billing does.

    "A 0 USD line item" (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing).
    """
    text = f"0 × {_product_name(account, item.price)} {_rate_text(item.price)}"  # noqa: RUF001 - Stripe's.
    return _subscription_line(item, amount=0, text=text, start=item.period_start, end=item.period_end)


def prorated_credit_lines(
    account: Account, subscription: Subscription, item: SubscriptionItem, *, at: int
) -> list[InvoiceLine]:
    """Credit the unused time after an instant: a line for each debit that reaches beyond it.

    "Prorations use the original debited amount instead of current subscription values. If the time period
    being credited was originally billed across multiple debits, Stripe generates multiple credit prorations"
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#credit-proration-calculations).
    """
    text = f"Unused time on {_quantity_text(account, item)} after {_day_text(at)}"
    if subscription.billing_mode.is_classic:
        return _credit_at_current_price(subscription, item, text=text, at=at)
    lines: list[InvoiceLine] = []
    for debit in item.debits:
        start = max(at, debit.start)
        if start >= debit.until:
            continue
        share = Fraction(debit.until - start, debit.end - debit.start)
        amount = -to_cents(debit.amount * share)
        line = _subscription_line(
            item, amount=amount, text=text, start=start, end=debit.until, proration=True
        )
        line.credited = CreditedLines(debit.invoice, (debit.line,), debit.invoice_item)
        lines.append(line)
        debit.until = start
    item.debits = [debit for debit in item.debits if debit.until > debit.start]
    return lines


def _credit_at_current_price(
    subscription: Subscription, item: SubscriptionItem, *, text: str, at: int
) -> list[InvoiceLine]:
    """Credit the unused time after an instant, in classic billing.

    "Credit proration amounts are calculated based on the value of the subscription item's current price, tax,
    quantity" (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#credit-proration-calculations).
    """
    charged = [debit for debit in item.debits if debit.until > at]
    if not charged:
        return []
    start, end = period_at(subscription.billing_cycle_anchor, item.price.cycle, at)
    whole = price_quantity(item.price.pricing, _item_quantity(item))
    amount = -to_cents(whole * Fraction(item.period_end - at, end - start))
    item.debits = [replace(debit, until=min(debit.until, at)) for debit in item.debits if debit.start < at]
    line = _subscription_line(item, amount=amount, text=text, start=at, end=item.period_end, proration=True)
    names = tuple(debit.line for debit in charged)
    line.credited = CreditedLines(charged[0].invoice, names, charged[0].invoice_item)
    return [line]


def uncharged_usage(item: SubscriptionItem, *, until: int, removed: bool = False) -> ChargedUsage | None:
    """Return the uncharged usage of an item; None if it has no meter or is new.

    Usage is charged at the price that was active when it was reported
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing).
    """
    if not item.price.is_metered or item.usage_from >= until:
        return None
    return ChargedUsage(
        item=item.id,
        price=item.price,
        start=item.usage_from,
        end=until,
        arrived_from=item.arrived_from,
        removed=removed,
        rate_ids=item.rate_ids,
        discounts=tuple(item.discounts),
    )


def restart_usage(account: Account, item: SubscriptionItem, *, at: int) -> None:
    """Restart an item's usage at an instant: from then on it is charged at the item's new price.

    "The price in effect when the usage was reported" is charged
    (https://docs.stripe.com/billing/subscriptions/billing-mode/compare#usage-based-pricing). No page says
    whether an event's timestamp or its arrival is meant: ``StripeEmulator(prices_usage_by=...)``.
    """
    item.usage_from, item.arrived_from = at, len(account.events.accepted)


def usage_lines(account: Account, subscription: Subscription, usage: ChargedUsage) -> list[InvoiceLine]:
    """Charge usage by the meter events that were accepted up to now: a line for each graduated tier.

    Where a price is removed or switched, "an invoice item [...] bills for previously reported metered usage"
    (https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup).
    A sum below 0 is billed as 0.
    """
    meter = account.meters.find(usage.price.cycle.meter or "")
    by_arrival = account.behaviour.prices_usage_by == "arrival"
    lag_s = account.behaviour.invoice_lag_s
    events = [
        event
        for event in account.events.accepted[usage.arrived_from if by_arrival else 0 :]
        if event.counted
        and event.meter == meter.id
        and event.customer == subscription.customer
        and usage.start <= event.timestamp < usage.end
        and (not lag_s or int(event.received_at) + lag_s <= account.now)
    ]
    quantity = max(Decimal(0), aggregate_events(events, meter=meter))
    name, rate = _product_name(account, usage.price), _rate_text(usage.price)
    lines: list[InvoiceLine] = []
    for place, charge in enumerate(charges_by_tier(usage.price.pricing, quantity)):
        where = (
            rate
            if charge.tier is None
            else f"(Tier {charge.tier} at {price_text(charge.unit_amount, usage.price.currency)})"
        )
        made = new_id("il_1", length=LINE_LENGTH), new_id("ii_1", length=LINE_LENGTH)
        line_id, item_id = usage.ids.setdefault(place, made)
        lines.append(
            InvoiceLine(
                id=line_id,
                amount=to_cents(charge.amount),
                description=f"{decimal_text(charge.quantity)} × {name} {where}",  # noqa: RUF001 - Stripe's.
                start=usage.start,
                end=usage.end,
                price=usage.price,
                quantity=charge.quantity,
                unit_amount=charge.unit_amount,
                subscription=subscription.id,
                item=None if usage.removed else usage.item,
                invoice_item=item_id if usage.removed else None,
                created=account.now,
                rate_ids=usage.rate_ids,
                discounts=usage.discounts,
            )
        )
    return lines


def _subscription_line(
    item: SubscriptionItem, *, amount: int, text: str, start: int, end: int, proration: bool = False
) -> InvoiceLine:
    return InvoiceLine(
        id=new_id("il_1", length=LINE_LENGTH),
        amount=amount,
        description=text,
        start=start,
        end=end,
        price=item.price,
        quantity=_item_quantity(item),
        unit_amount=item.price.pricing.unit_amount or Decimal(0),
        subscription=item.subscription,
        item=item.id,
        proration=proration,
        invoice_item=new_id("ii_1", length=LINE_LENGTH) if proration else None,
        rate_ids=item.rate_ids,
        discounts=tuple(item.discounts),
    )


def _new_debit(line: InvoiceLine) -> ItemDebit:
    return ItemDebit(
        amount=line.amount,
        start=line.start,
        end=line.end,
        until=line.end,
        line=line.id,
        invoice_item=line.invoice_item,
    )


def _item_quantity(item: SubscriptionItem) -> Decimal:
    return Decimal(0 if item.quantity is None else item.quantity)


def _product_name(account: Account, price: Price) -> str:
    return account.products.find(price.product).name


def _quantity_text(account: Account, item: SubscriptionItem) -> str:
    name = _product_name(account, item.price)
    return name if item.quantity == 1 else f"{item.quantity} × {name}"  # noqa: RUF001 - Stripe's.


def _rate_text(price: Price) -> str:
    recurring = price.cycle
    if price.pricing.unit_amount is None:
        return "(tiered)"
    count = recurring.interval_count
    every = recurring.interval if count == 1 else f"{count} {recurring.interval}s"
    return f"(at {price_text(price.pricing.unit_amount, price.currency)} / {every})"


def _day_text(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %Y")
