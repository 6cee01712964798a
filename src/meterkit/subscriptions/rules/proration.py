"""What a change within a billing period costs: credit for what is not used, charge for what is. Pure.

By the second, and rounded once a line, half away from zero, as Stripe does
(https://docs.stripe.com/billing/subscriptions/prorations).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - Pydantic reads the annotations for the billing routes
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_Part = Literal["base", "seats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proration:
    """What a change costs for the rest of the period, before taxes and discounts; in minor units.

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


class Line(NamedTuple):
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
    before: Mapping[_Part, Line], after: Mapping[_Part, Line], paid: Cycle, comes: Cycle | None = None
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
