"""Billing cycles from an anchor, and the billing mode, which decides how changes are prorated."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, cast

from stripe_emulator.protocol import ApiError, JsonObject, unknown_parameter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stripe_emulator.call import Params
    from stripe_emulator.prices import PriceInterval

DAY_S: Final = 86_400
FIXED_S: Final = {"day": DAY_S, "week": 7 * DAY_S}
MONTHS: Final = {"month": 1, "year": 12}
# No month is shorter, no year has more than 366 days: what a guess may be off by.
MONTH_S_MIN: Final = 28 * DAY_S


def period_boundary(anchor: int, recurring: PriceInterval, number: int) -> int:
    """Return the start of the period with this number, in Unix seconds; number 0 starts at the anchor.

    Months are counted from the anchor and never from the end before, so that 31 January is followed by
    28 February and 31 March (https://docs.stripe.com/billing/subscriptions/billing-cycle).
    """
    steps = number * recurring.interval_count
    if recurring.interval in FIXED_S:
        return anchor + steps * FIXED_S[recurring.interval]
    begin = datetime.fromtimestamp(anchor, UTC)
    month = begin.year * 12 + begin.month - 1 + steps * MONTHS[recurring.interval]
    year, month = month // 12, month % 12 + 1
    day = min(begin.day, monthrange(year, month)[1])
    return int(begin.replace(year=year, month=month, day=day).timestamp())


def period_at(anchor: int, recurring: PriceInterval, at: int) -> tuple[int, int]:
    """Return the bounds of the period that an instant lies in: [start, end), in Unix seconds.

    Before the anchor there are periods too: of a cycle that is anchored in the future.
    """
    length = FIXED_S.get(recurring.interval) or MONTHS[recurring.interval] * MONTH_S_MIN
    number = (at - anchor) // (length * recurring.interval_count)
    while period_boundary(anchor, recurring, number) > at:
        number -= 1
    while period_boundary(anchor, recurring, number + 1) <= at:
        number += 1
    return period_boundary(anchor, recurring, number), period_boundary(anchor, recurring, number + 1)


# https://docs.stripe.com/billing/subscriptions/billing-mode: the version that brought it, and the first one
# that defaults to flexible billing.
KNOWN_SINCE: Final = "2025-06-30"
FLEXIBLE_SINCE: Final = "2025-09-30"
DAYS: Final = {"day": 1, "week": 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingMode:
    """A billing mode (https://docs.stripe.com/billing/subscriptions/billing-mode/compare).

    Attributes:
        updated_at: when the subscription was migrated to it, in Unix seconds; None: it was made with it.
    """

    type: Literal["classic", "flexible"] = "flexible"
    proration_discounts: str = "included"
    updated_at: int | None = None

    @property
    def is_classic(self) -> bool:
        """True if usage before a price switch is never charged and credits use current prices."""
        return self.type == "classic"

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/subscriptions/object)."""
        flexible = None if self.is_classic else {"proration_discounts": self.proration_discounts}
        shown: JsonObject = {"flexible": flexible, "type": self.type}
        return shown if self.updated_at is None else {**shown, "updated_at": self.updated_at}


def default_billing_mode(version: str) -> BillingMode:
    """Return the default mode of new subscriptions for an API version."""
    return BillingMode(type="flexible" if version[:10] >= FLEXIBLE_SINCE else "classic")


def read_billing_mode(params: Params, *, version: str) -> BillingMode:
    """Return the ``billing_mode`` that a call names, else the default of its API version.

    Raises:
        ApiError: there is no such mode, or the version does not know the parameter.
    """
    given = params.hash("billing_mode")
    if given is None:
        return default_billing_mode(version)
    if version[:10] < KNOWN_SINCE:
        raise unknown_parameter(params.path("billing_mode"))
    given.only("flexible type")
    kind = cast("Literal['classic', 'flexible']", given.required_choice("type", ("classic", "flexible")))
    flexible = given.hash("flexible")
    if flexible is None:
        return BillingMode(type=kind)
    flexible.only("proration_discounts")
    if kind == "classic":
        message = "`billing_mode[flexible]` can only be set where `billing_mode[type]` is `flexible`."
        raise ApiError(message, param=given.path("flexible"))
    discounts = flexible.choice("proration_discounts", ("included", "itemized")) or "included"
    return BillingMode(type=kind, proration_discounts=discounts)


def refuse_classic_params(mode: BillingMode, params: Params) -> None:
    """Refuse parameters that flexible billing lacks.

    https://github.com/laravel/cashier-stripe/issues/1772 has Stripe's words.

    Raises:
        ApiError: the call names one.
    """
    items = [params, *params.hashes("items")]
    named = [name for name in ("clear_usage", "coupon") if any(name in each for each in items)]
    if named and not mode.is_classic:
        names = ", ".join(f"`{name}`" for name in named)
        message = (
            "With `billing_mode.type=flexible` set on a subscription, the following parameters are not "
            f"supported: {names}"
        )
        raise ApiError(message)


def refuse_mixed_intervals(mode: BillingMode, cycles: Iterable[PriceInterval]) -> None:
    """Refuse prices whose intervals do not fit together.

    In flexible billing they are multiples of the shortest, in classic billing one interval
    (https://docs.stripe.com/billing/subscriptions/mixed-interval).

    Raises:
        ApiError: they do not fit.
    """
    months, days = set[int](), set[int]()
    for cycle in cycles:
        if cycle.interval in MONTHS:
            months.add(MONTHS[cycle.interval] * cycle.interval_count)
        else:
            days.add(DAYS[cycle.interval] * cycle.interval_count)
    if mode.is_classic and len(months) + len(days) > 1:
        message = (
            "All prices of a subscription with `billing_mode.type=classic` must have the same "
            "`recurring.interval` and `recurring.interval_count`."
        )
        raise ApiError(message, param="items")
    if (months and days) or any(length % min(each) for each in (months, days) for length in each):
        message = "The intervals of a subscription's prices must be multiples of the shortest of them."
        raise ApiError(message, param="items")
