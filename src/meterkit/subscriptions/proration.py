"""Proration: the cost of another plan or other seats, as Stripe previews it or else an estimate. Pure.

The estimate takes the prices of the plans file. Within a billing period it credits what is not used, and
charges what is: by the second, rounded once a line, half away from zero, as Stripe does
(https://docs.stripe.com/billing/subscriptions/prorations).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - Pydantic reads the annotations for the billing routes
from typing import TYPE_CHECKING, Literal, NamedTuple

from meterkit.catalog.amount_texts import money
from meterkit.decisions.periods import bounds_at, from_ms
from meterkit.subscriptions.change_rules import paid_seats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Plan
    from meterkit.decisions.subscription import SubscriptionState


_Part = Literal["base", "seats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """What a change costs for the rest of the period, after discounts and with taxes; in minor units.

    Attributes:
        credit_cents: given back for what was paid and is not used any more; at least 0.
        charge_cents: asked for what is used instead; at least 0.
        net_cents: the charge less the credit; below 0: it is taken off the next invoice.
        currency: of all three.
        effective_at: when the change takes effect (UTC): now, or when the period ends.
        description: the same in a sentence.
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
        credit_cents: given back for the rest of the period; at least 0.
        charge_cents: charged for it; at least 0.
        period_cents: the price of the next period, usage left out; None: there is no next period.
        currency: of the subscription.
    """

    credit_cents: int
    charge_cents: int
    period_cents: int | None
    currency: str


class PrepaidLine(NamedTuple):
    """A part of a subscription that is paid in advance.

    Attributes:
        price: what tells prices apart.
        amount_cents: for one, for a whole interval.
        quantity: how many.
    """

    price: str
    amount_cents: int
    quantity: int


class Cycle(NamedTuple):
    """The period that was paid for, and when in it something changes (Unix seconds).

    Attributes:
        start_s: its first second.
        end_s: the first one after it.
        now_s: when the change is made.
        is_trial: whether nothing is paid for it.
    """

    start_s: int
    end_s: int
    now_s: int
    is_trial: bool = False

    def share_of(self, cents: int) -> int:
        """What of an amount for the whole period falls on the rest of it."""
        whole_s, rest_s = (
            self.end_s - self.start_s,
            min(max(self.end_s - self.now_s, 0), self.end_s - self.start_s),
        )
        return 0 if self.is_trial or whole_s <= 0 else (2 * cents * rest_s + whole_s) // (2 * whole_s)


def proration_of(
    before: Mapping[_Part, PrepaidLine],
    after: Mapping[_Part, PrepaidLine],
    paid: Cycle,
    comes: Cycle | None = None,
) -> tuple[int, int]:
    """The credit and the charge, both at least 0, of a change that takes effect at once.

    A part that stays as it is has no line. Where the interval changes, with flexible billing the cycle stays
    anchored where it is: what comes is charged for the rest of the longer or shorter period that the instant
    lies in (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).

    Args:
        before: what was paid for.
        after: what there is instead.
        paid: the period that was paid for.
        comes: the period that what comes is paid for; None: the same.
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
    """A plan, and the seats in all that a subscription has with it."""

    plan: Plan
    seats: int


def ends_trial(known: SubscriptionState, before: Plan, after: Plan, now_ms: int) -> bool:
    """Whether another plan, had at once, ends the trial: the plan before gave it, and it has none itself.

    A trial that was given at Stripe, by hand, stays.
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
    currency: str,
    now_ms: int,
    next_period: PlanTerms | None = None,
    previewed: PreviewedCharges | None = None,
) -> Proration:
    """What it costs to have ``after`` in place of ``before``: nothing where that begins with the next period.

    Without a preview of Stripe's it is an estimate by the prices of the plans file.

    Args:
        known: the subscription.
        before: what it has.
        after: what it is to have.
        when: when that takes effect.
        seat_meter: the gauge of seats, or None.
        currency: of the prices.
        now_ms: the instant.
        next_period: what it has from the next period on; None: it ends with this one.
        previewed: what Stripe says that the change costs; None: not known.
    """
    is_trial = known.status_at(now_ms) == "trialing"
    start_ms, period_end_ms = _current_period(known, before.plan, now_ms)
    credit_cents, charge_cents, end_ms = 0, 0, period_end_ms
    if when == "now":
        paid = Cycle(start_ms // 1000, end_ms // 1000, now_ms // 1000, is_trial)
        comes = paid
        if ends_trial(known, before.plan, after.plan, now_ms):
            # A period begins: https://docs.stripe.com/billing/subscriptions/trials#end-a-trial-early
            end_ms = bounds_at(now_ms, anchor_ms=now_ms, interval=after.plan.price.interval).end_ms
            comes = Cycle(now_ms // 1000, end_ms // 1000, now_ms // 1000)
        elif before.plan.price.interval != after.plan.price.interval:
            bounds = bounds_at(now_ms, anchor_ms=known.anchor_ms, interval=after.plan.price.interval)
            comes = paid._replace(start_s=bounds.start_ms // 1000, end_s=bounds.end_ms // 1000)
        lines = _lines(before, seat_meter), _lines(after, seat_meter)
        credit_cents, charge_cents = proration_of(*lines, paid, comes)
    period_cents = None if next_period is None else _period_cents(next_period, seat_meter)
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
        description=_described(before, after, when, credit_cents, charge_cents, currency, end_ms)
        + _describe_next_period(next_period, period_cents, currency),
    )


def _current_period(known: SubscriptionState, plan: Plan, now_ms: int) -> tuple[int, int]:
    """The period that is paid for now: the known one, or by the anchor where no renewal is known yet."""
    if now_ms < known.end_ms:
        return known.start_ms, known.end_ms
    interval = known.interval_at(now_ms) or plan.price.interval
    bounds = bounds_at(now_ms, anchor_ms=known.anchor_ms, interval=interval)
    return bounds.start_ms, bounds.end_ms


def _lines(terms: PlanTerms, seat_meter: str | None) -> dict[Literal["base", "seats"], PrepaidLine]:
    price, seat_price = terms.plan.price, terms.plan.seat_price
    lines: dict[Literal["base", "seats"], PrepaidLine] = {
        "base": PrepaidLine(price.stripe_price or terms.plan.key, price.amount_cents, 1)
    }
    paid = paid_seats(terms.plan, seat_meter, terms.seats)
    if seat_price is not None and paid:
        lines["seats"] = PrepaidLine(seat_price.stripe_price or terms.plan.key, seat_price.amount_cents, paid)
    return lines


def _period_cents(terms: PlanTerms, seat_meter: str | None) -> int:
    """Price of a period by the plans file."""
    return sum(line.amount_cents * line.quantity for line in _lines(terms, seat_meter).values())


def _describe_next_period(terms: PlanTerms | None, period_cents: int | None, currency: str) -> str:
    """The price of each period from the next one on, as a sentence; empty if there is none."""
    if terms is None or period_cents is None:
        return ""
    interval = terms.plan.price.interval
    return f" From the next period on it costs {money(period_cents, currency)} a {interval}, before usage."


def _described(
    before: PlanTerms,
    after: PlanTerms,
    when: Literal["now", "period_end"],
    credit_cents: int,
    charge_cents: int,
    currency: str,
    end_ms: int,
) -> str:
    parts: list[str] = []
    if before.plan.key != after.plan.key:
        parts.append(f"{before.plan.name} to {after.plan.name}")
    if before.seats != after.seats:
        parts.append(f"{before.seats} to {after.seats} seats")
    change = ", ".join(parts) or "No change"
    end = from_ms(end_ms).strftime("%Y-%m-%d %H:%M UTC")
    if when == "period_end":
        return f"{change} when the period ends, {end}: nothing is due for this one."
    if not credit_cents and not charge_cents:
        return f"{change}: nothing is due for this period."
    return (
        f"{change} now, prorated to {end}: {money(charge_cents, currency)} charged,"
        f" {money(credit_cents, currency)} credited."
    )
