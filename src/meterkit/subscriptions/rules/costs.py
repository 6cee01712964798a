"""What another plan, or other seats, cost a subscription, by the prices of the plans file. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from meterkit.catalog.amounts import money
from meterkit.decisions.periods import bounds_at, from_ms
from meterkit.subscriptions.rules.changes import paid_seats
from meterkit.subscriptions.rules.proration import Cycle, Line, Proration, proration_of

if TYPE_CHECKING:
    from meterkit.catalog import Plan
    from meterkit.decisions.subscription import SubscriptionState


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
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
    before: Terms,
    after: Terms,
    *,
    when: Literal["now", "period_end"],
    seat_meter: str | None,
    currency: str,
    now_ms: int,
) -> Proration:
    """What it costs to have ``after`` in place of ``before``: nothing where that begins with the next period.

    Args:
        known: the subscription.
        before: what it has.
        after: what it is to have.
        when: when that takes effect.
        seat_meter: the gauge of seats, or None.
        currency: of the prices.
        now_ms: the instant.
    """
    is_trial = known.status_at(now_ms) == "trialing"
    credit_cents, charge_cents, end_ms = 0, 0, known.end_ms
    if when == "now":
        paid = Cycle(known.start_ms // 1000, known.end_ms // 1000, now_ms // 1000, is_trial)
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
    at_ms = now_ms if when == "now" else known.end_ms
    return Proration(
        credit_cents=credit_cents,
        charge_cents=charge_cents,
        net_cents=charge_cents - credit_cents,
        currency=currency,
        effective_at=from_ms(at_ms),
        description=_described(before, after, when, credit_cents, charge_cents, currency, end_ms),
    )


def _lines(terms: Terms, seat_meter: str | None) -> dict[Literal["base", "seats"], Line]:
    price, seat_price = terms.plan.price, terms.plan.seat_price
    lines: dict[Literal["base", "seats"], Line] = {
        "base": Line(price.stripe_price or terms.plan.key, price.amount_cents, 1)
    }
    paid = paid_seats(terms.plan, seat_meter, terms.seats)
    if seat_price is not None and paid:
        lines["seats"] = Line(seat_price.stripe_price or terms.plan.key, seat_price.amount_cents, paid)
    return lines


def _described(
    before: Terms,
    after: Terms,
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
