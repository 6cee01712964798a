"""Billing mode of a subscription: classic or flexible; decides how changes are prorated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from stripe_emulator.billing_cycle import MONTHS
from stripe_emulator.protocol import ApiError, JsonObject, unknown_parameter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stripe_emulator.call import Params
    from stripe_emulator.prices import PriceInterval

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
