"""A change that is to take effect when the period ends, as phases of a subscription schedule. Pure.

https://docs.stripe.com/billing/subscriptions/subscription-schedules
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.subscriptions.at_stripe.parts import part_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.stripe.request import Parameter

__all__ = ["PRORATED", "phases"]

PRORATED: Final = "create_prorations"
_AS_THEY_ARE: Final = ("trial_end", "default_payment_method", "collection_method", "description")


def phases(
    schedule: Mapping[str, Any],
    *,
    now: Sequence[Mapping[str, Parameter]],
    later: Sequence[Mapping[str, Parameter]],
    change_s: int,
    interval: str,
) -> list[dict[str, Parameter]]:
    """The phases of a schedule: what there is until the change, and from then on the new items for a period.

    After that the subscription goes on without a schedule. With ``proration_behavior: none`` Stripe removes a
    metered price "without billing for it"
    (https://docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup). Whether that loses usage
    at the end of a period is not documented; prorations at a period's end come to nothing, so they are on.

    Args:
        schedule: as Stripe shows it.
        now: the items until then.
        later: the items from then on.
        change_s: when the change takes effect (Unix seconds).
        interval: how often the new base price is paid: ``month`` or ``year``.
    """
    current = _current_phase(schedule)
    kept: dict[str, Parameter] = {name: current[name] for name in _AS_THEY_ARE if current.get(name)}
    discounts = [
        {name: found[name] for name in ("coupon", "discount", "promotion_code") if found.get(name)}
        for found in current.get("discounts") or ()
    ]
    if discounts:
        kept["discounts"] = discounts
    first: dict[str, Parameter] = {
        **kept,
        "items": list(now),
        "start_date": current["start_date"],
        "end_date": change_s,
    }
    next_: dict[str, Parameter] = {
        **{name: value for name, value in kept.items() if name != "trial_end"},
        "items": list(later),
        "duration": {"interval": interval, "interval_count": 1},
        "proration_behavior": PRORATED,
    }
    return [first, next_]


def _current_phase(schedule: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = schedule["phases"]
    begins = part_of(schedule, "current_phase").get("start_date")
    return next((phase for phase in found if phase["start_date"] == begins), found[0])
