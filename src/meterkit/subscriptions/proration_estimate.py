"""Proration: the cost of another plan, other seats or add-ons, by Stripe's preview or an estimate. Pure.

The estimate takes the prices of the customer's own items as far as they stay, and else those of the plans
file. Within a billing period it credits unused time and charges the rest: by the second, rounded once a line,
half away from zero, as Stripe does (https://docs.stripe.com/billing/subscriptions/prorations).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - Pydantic reads the annotations for the billing routes
from typing import TYPE_CHECKING, Literal, NamedTuple

from meterkit.catalog.value_parsers import money
from meterkit.decisions.item_prices import FixedPrice
from meterkit.decisions.periods import bounds_at, from_ms
from meterkit.subscriptions.change_rules import paid_seats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.subscription import SubscriptionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """The cost of a change for the rest of the period, after discounts and with taxes; in minor units.

    Attributes:
        credit_cents: credit for the unused rest of what was paid; at least 0.
        charge_cents: charge for what replaces it; at least 0.
        net_cents: the charge less the credit; below 0: the next invoice credits it.
        currency: of all three.
        effective_at: when the change takes effect (UTC): now, or when the period ends.
        description: the cost in a sentence.
    """

    credit_cents: int
    charge_cents: int
    net_cents: int
    currency: str
    effective_at: datetime
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewedCharges:
    """Cost of a change by Stripe's own preview, after discounts and with taxes; in minor units.

    Attributes:
        credit_cents: credit for the rest of the period; at least 0.
        charge_cents: charge for it; at least 0.
        period_cents: the price of the next period without usage; None: there is no next period.
        currency: of the subscription.
    """

    credit_cents: int
    charge_cents: int
    period_cents: int | None
    currency: str


class PrepaidLine(NamedTuple):
    """A part of a subscription that is paid in advance.

    Attributes:
        price: identifies the price.
        amount_cents: unit amount for a whole interval.
        quantity: number of units.
    """

    price: str
    amount_cents: int
    quantity: int


class BillingCycle(NamedTuple):
    """A paid period, and the time of a change in it (Unix seconds).

    Attributes:
        start_s: its first second.
        end_s: the first one after it.
        now_s: the time of the change.
        is_trial: whether it is free.
    """

    start_s: int
    end_s: int
    now_s: int
    is_trial: bool = False

    def share_of(self, cents: int) -> int:
        """The part of an amount for the whole period that falls on its rest."""
        whole_s, rest_s = (
            self.end_s - self.start_s,
            min(max(self.end_s - self.now_s, 0), self.end_s - self.start_s),
        )
        return 0 if self.is_trial or whole_s <= 0 else (2 * cents * rest_s + whole_s) // (2 * whole_s)


def prorate_lines(
    before: Mapping[str, PrepaidLine],
    after: Mapping[str, PrepaidLine],
    paid: BillingCycle,
    comes: BillingCycle | None = None,
) -> tuple[int, int]:
    """Return credit and charge, both at least 0, of a change that takes effect at once.

    An unchanged part has no line. If the interval changes, flexible billing keeps the anchor of the cycle:
    the new lines are charged for the rest of the longer or shorter period around the change (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).

    Args:
        before: paid lines by the part that they pay for.
        after: the lines that replace them.
        paid: the period of the paid lines.
        comes: the period of the new lines; None: the same.
    """
    comes = paid if comes is None else comes
    credit_cents = charge_cents = 0
    for part in sorted(before.keys() | after.keys()):
        old, new = before.get(part), after.get(part)
        if old == new:
            continue
        credit_cents += 0 if old is None else paid.share_of(old.amount_cents * old.quantity)
        charge_cents += 0 if new is None else comes.share_of(new.amount_cents * new.quantity)
    return credit_cents, charge_cents


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """A plan with the add-ons of a subscription composed into it, and its total seats."""

    plan: Plan
    seats: int

    @property
    def addons(self) -> Bought:
        """The add-ons that are bought beside the plan."""
        return self.plan.bought


def ends_trial(known: SubscriptionState, before: Plan, after: Plan, now_ms: int) -> bool:
    """Whether an immediate change of plan ends the trial: the old plan has one, and the new plan none.

    A trial that was given at Stripe by hand stays.
    """
    is_trial = known.status_at(now_ms) == "trialing"
    return is_trial and before.trial_ms is not None and after.trial_ms is None


def cost_of(
    known: SubscriptionState,
    before: PlanTerms,
    after: PlanTerms,
    *,
    when: Literal["now", "period_end"],
    seat_meter: str | None,
    catalog: Catalog,
    now_ms: int,
    next_period: PlanTerms | None = None,
    previewed: PreviewedCharges | None = None,
) -> Proration:
    """Compute the cost of a change: none if it takes effect with the next period.

    Without Stripe's preview it is an estimate by the prices of the subscription, and of the plans file.

    Args:
        known: the subscription.
        before: its present terms.
        after: its new terms.
        when: when they take effect.
        seat_meter: the gauge of seats, or None.
        catalog: the plans file in the customer's currency.
        now_ms: the instant.
        next_period: its terms from the next period on; None: it ends with this one.
        previewed: Stripe's preview; None: there is none.
    """
    is_trial, currency = known.status_at(now_ms) == "trialing", catalog.currency
    start_ms, period_end_ms = _current_period(known, before.plan, now_ms)
    credit_cents, charge_cents, end_ms = 0, 0, period_end_ms
    if when == "now":
        paid = BillingCycle(start_ms // 1000, end_ms // 1000, now_ms // 1000, is_trial)
        comes = paid
        if ends_trial(known, before.plan, after.plan, now_ms):
            # A new period starts: https://docs.stripe.com/billing/subscriptions/trials#end-a-trial-early
            end_ms = bounds_at(now_ms, anchor_ms=now_ms, interval=after.plan.price.interval).end_ms
            comes = BillingCycle(now_ms // 1000, end_ms // 1000, now_ms // 1000)
        elif before.plan.price.interval != after.plan.price.interval:
            bounds = bounds_at(now_ms, anchor_ms=known.anchor_ms, interval=after.plan.price.interval)
            comes = paid._replace(start_s=bounds.start_ms // 1000, end_s=bounds.end_ms // 1000)
        old, new = (_prepaid_lines(known, terms, seat_meter, catalog) for terms in (before, after))
        credit_cents, charge_cents = prorate_lines(old, new, paid, comes)
    period_cents = None if next_period is None else _price_of_period(known, next_period, seat_meter, catalog)
    if previewed is not None:
        credit_cents, charge_cents = previewed.credit_cents, previewed.charge_cents
        period_cents, currency = previewed.period_cents, previewed.currency
    at_ms = now_ms if when == "now" else period_end_ms
    return Proration(
        credit_cents=credit_cents,
        charge_cents=charge_cents,
        net_cents=charge_cents - credit_cents,
        currency=currency,
        effective_at=from_ms(at_ms),
        description=_describe_cost(
            ", ".join(_list_changes(before, after, catalog)) or "No change",
            when,
            credit_cents,
            charge_cents,
            currency,
            end_ms,
        )
        + _describe_later_change(after, next_period, when, catalog)
        + _describe_next_period(next_period, period_cents, currency),
    )


def _current_period(known: SubscriptionState, plan: Plan, now_ms: int) -> tuple[int, int]:
    """The present paid period: the known one, or by the anchor if no renewal is known yet."""
    if now_ms < known.end_ms:
        return known.start_ms, known.end_ms
    interval = known.interval_at(now_ms) or plan.price.interval
    bounds = bounds_at(now_ms, anchor_ms=known.anchor_ms, interval=interval)
    return bounds.start_ms, bounds.end_ms


def _prepaid_lines(
    known: SubscriptionState, terms: PlanTerms, seat_meter: str | None, catalog: Catalog
) -> dict[str, PrepaidLine]:
    """Lines of some terms; the items of a plan that stays, and of add-ons, keep their prices."""
    plan = catalog.plans[terms.plan.key]
    price, seat_price, is_kept = plan.price, plan.seat_price, plan.key == known.plan
    own_addons = dict(known.addon_prices)

    def unit_cents(own: str, listed_cents: int) -> int:
        kept = FixedPrice.parse(own)
        return listed_cents if kept is None or kept.currency != catalog.currency else kept.cents()

    base_cents = unit_cents(known.base_price if is_kept else "", price.amount_cents)
    lines = {"base": PrepaidLine(price.stripe_price or plan.key, base_cents, 1)}
    paid = paid_seats(terms.plan, seat_meter, terms.seats)
    if seat_price is not None and paid:
        seat_cents = unit_cents(known.seat_price if is_kept else "", seat_price.amount_cents)
        lines["seats"] = PrepaidLine(seat_price.stripe_price or plan.key, seat_cents, paid)
    for addon, quantity in terms.addons:
        addon_cents = unit_cents(own_addons.get(addon, ""), catalog.addons[addon].price.amount_cents)
        lines[f"addon {addon}"] = PrepaidLine(addon, addon_cents, quantity)
    return lines


def _price_of_period(
    known: SubscriptionState, terms: PlanTerms, seat_meter: str | None, catalog: Catalog
) -> int:
    """Price of a period, as far as it is known here."""
    lines = _prepaid_lines(known, terms, seat_meter, catalog)
    return sum(line.amount_cents * line.quantity for line in lines.values())


def _describe_next_period(terms: PlanTerms | None, period_cents: int | None, currency: str) -> str:
    """The price of each period from the next one on, as a sentence; empty if there is none."""
    if terms is None or period_cents is None:
        return ""
    interval = terms.plan.price.interval
    return f" From the next period on it costs {money(period_cents, currency)} a {interval}, before usage."


def _describe_later_change(
    terms: PlanTerms, later: PlanTerms | None, when: Literal["now", "period_end"], catalog: Catalog
) -> str:
    """Further changes when the period ends, as a sentence; empty if there are none."""
    parts = [] if when == "period_end" or later is None else _list_changes(terms, later, catalog)
    return f" When the period ends: {', '.join(parts)}." if parts else ""


def _list_changed_addons(before: PlanTerms, after: PlanTerms, catalog: Catalog) -> list[str]:
    old, new = dict(before.addons), dict(after.addons)
    return [
        f"{old.get(addon, 0)} to {new.get(addon, 0)} {catalog.addons[addon].name}"
        for addon in sorted(old.keys() | new.keys())
        if old.get(addon, 0) != new.get(addon, 0)
    ]


def _list_changes(before: PlanTerms, after: PlanTerms, catalog: Catalog) -> list[str]:
    parts: list[str] = []
    if before.plan.key != after.plan.key:
        parts.append(f"{before.plan.name} to {after.plan.name}")
    if before.seats != after.seats:
        parts.append(f"{before.seats} to {after.seats} seats")
    return parts + _list_changed_addons(before, after, catalog)


def _describe_cost(
    change: str,
    when: Literal["now", "period_end"],
    credit_cents: int,
    charge_cents: int,
    currency: str,
    end_ms: int,
) -> str:
    end = from_ms(end_ms).strftime("%Y-%m-%d %H:%M UTC")
    if when == "period_end":
        return f"{change} when the period ends, {end}: nothing is due for this one."
    if not credit_cents and not charge_cents:
        return f"{change}: nothing is due for this period."
    return (
        f"{change} now, prorated to {end}: {money(charge_cents, currency)} charged,"
        f" {money(credit_cents, currency)} credited."
    )
