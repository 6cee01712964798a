"""Rules of subscription changes: sold plans, seats, add-ons, limits, and when a change takes effect. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from meterkit.catalog.addons import MAX_QUANTITY
from meterkit.catalog.meters import is_sold, meters_billed_by_tiers
from meterkit.decisions.customer_state import with_seats
from meterkit.decisions.gauges import GaugeLimit
from meterkit.errors import (
    AddonLimitError,
    MeterkitError,
    QuantityError,
    SubscriptionError,
    UnknownAddonError,
    UnknownPlanError,
)
from meterkit.store.input_checks import is_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog import Catalog, Changes, Meter, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.subscription import SubscriptionState

Course = Literal["keep", "unschedule", "now", "period_end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverLimit:
    """A gauge above the limit of a plan, in its unit."""

    meter: str
    used: int
    limit: int


def course_of(
    current: Plan,
    wanted: Plan,
    *,
    pending: str | None,
    changes: Changes,
    repeats_tiers: bool = False,
    paid_per: str | None = None,
) -> Course:
    """Course of a change of plan; the ranks of the plans decide, never their prices.

    ``now``, or at the ``period_end``: a plan of a lower rank is a downgrade, any other an upgrade. The plan
    that is active needs none: ``unschedule`` the pending one, or ``keep`` it all as it is, also where the
    same is scheduled already. A plan that includes by the year is left for a plan of a higher rank, or when
    the year ends: a return to it would include the whole year's quantity again. A change that would begin the
    tiers of a price again waits for the period's end, whatever the plans file says.

    Args:
        current: the present plan.
        wanted: the requested plan.
        pending: the key of the plan that is scheduled, or None.
        changes: of the plans file.
        repeats_tiers: the result of :func:`repeats_tiers`.
        paid_per: the interval that the subscription is paid for; None: that of the plan.
    """
    if wanted.key == current.key:
        return "keep" if pending is None else "unschedule"
    when = changes.downgrade if wanted.rank < current.rank else changes.upgrade
    leaves_year = is_by_year(current, paid_per) and not is_by_year(wanted)
    if repeats_tiers or (wanted.rank <= current.rank and leaves_year):
        when = "period_end"
    return "keep" if when == "period_end" and pending == wanted.key else when


def repeats_tiers(had: Iterable[Plan], wanted: Plan, meters: Mapping[str, Meter]) -> bool:
    """Whether an immediate change would begin a meter's tiers again in one period (``report: usage``).

    Stripe applies the tiers of each price by themselves, so the free tier of the new price comes on top of
    that of the old one.

    Args:
        had: the plans active in this period until now, the current one included.
        wanted: the requested plan.
        meters: of the plans file.
    """
    started = {meter for plan in had for meter in meters_billed_by_tiers(meters, plan)}
    return not started.isdisjoint(meters_billed_by_tiers(meters, wanted))


def is_by_year(plan: Plan, paid_per: str | None = None) -> bool:
    """Whether a plan includes quantities by the year; ``paid_per`` is the interval that is paid for."""
    return (paid_per or plan.price.interval, plan.price.included_per) == ("year", "interval")


def covers_all_seats(plan: Plan, seat_meter: str | None) -> bool:
    """Whether the base price of a plan covers all seats: ``seats: {included: unlimited}``."""
    return seat_meter is not None and plan.entitlements[seat_meter].is_unlimited


def sells_seats(plan: Plan, seat_meter: str | None) -> bool:
    """Whether a plan sells seats beyond those that its base price covers."""
    return plan.seat_price is not None and not covers_all_seats(plan, seat_meter)


def included_seats(plan: Plan, seat_meter: str | None) -> int:
    """Number of seats that a plan and its add-ons cover; 0 if it is not given or unlimited."""
    return 0 if seat_meter is None else plan.entitlements[seat_meter].included or 0


def total_seats(plan: Plan, seat_meter: str | None, paid: int) -> int:
    """Number of seats with those that cost the seat price; 0 if the plan sells none."""
    return included_seats(plan, seat_meter) + paid if sells_seats(plan, seat_meter) else 0


def paid_seats(plan: Plan, seat_meter: str | None, seats: int) -> int:
    """Number of the seats that cost the seat price."""
    return max(0, seats - included_seats(plan, seat_meter)) if sells_seats(plan, seat_meter) else 0


def seats_on(plan: Plan, seat_meter: str | None, *, paid: int, seats: int, in_use: int) -> int:
    """Total seats after a change of plan: included ones and those that were bought, at least those in use.

    Included seats do not become bought ones: a customer without bought seats gets none. Bought seats that the
    new plan includes are not bought again.

    Args:
        plan: the requested plan.
        seat_meter: the gauge of seats, or None.
        paid: number that costs the seat price now.
        seats: present total.
        in_use: the level of the gauge.
    """
    if not sells_seats(plan, seat_meter):
        return 0
    included = included_seats(plan, seat_meter)
    if not paid:
        return included
    return max(included + min(paid, max(0, seats - included)), in_use)


def over_limit(catalog: Catalog, plan: Plan, seats: int, levels: Mapping[str, int]) -> tuple[OverLimit, ...]:
    """Find the gauges above the limits of a plan; they cannot grow until they are below.

    Args:
        catalog: the plans file.
        plan: the plan, with its add-ons.
        seats: paid seats.
        levels: of the gauges.
    """
    entitlements = with_seats(plan.entitlements, catalog.meters, seats)
    found: list[OverLimit] = []
    for meter, used in levels.items():
        limit = GaugeLimit.of(entitlements[meter])
        if limit is not None and used > limit.included:
            found.append(OverLimit(meter=meter, used=used, limit=limit.included))
    return tuple(found)


SEATS_MAX: Final = 1_000_000


def check_sold(plan: str, catalog: Catalog) -> Plan:
    """Check that a plan is sold; return it.

    Raises:
        UnknownPlanError: there is no such plan, or it costs nothing.
    """
    found = catalog.plans.get(plan) if is_text(plan) else None
    if found is None:
        raise UnknownPlanError.of(plan, catalog.plans)
    if not is_sold(found):
        raise UnknownPlanError(
            plan,
            f"plan: {plan!r:.80} cannot be subscribed to: it costs nothing; write its price as"
            " `amount_cents:` under `price:` in the plans file, or name a price at Stripe as"
            " `stripe_price:`",
            is_known=True,
        )
    return found


def check_seats(seats: object) -> int:
    """Check a number of seats; return it.

    Raises:
        QuantityError: it is not an integer from 1 to 1,000,000.
    """
    if type(seats) is int and 1 <= seats <= SEATS_MAX:
        return seats
    found = repr(seats) if isinstance(seats, int | float) else f"a value of type {type(seats).__name__}"
    raise QuantityError(f"seats: found {found:.40}; allowed is an integer from 1 to {SEATS_MAX}")


def check_seats_sold(plan: Plan, seat_meter: str | None, seats: int) -> None:
    """Refuse more seats than a plan sells.

    Raises:
        SubscriptionError: there are more than the plan includes, and it sells none.
    """
    if are_seats_sold(plan, seat_meter, seats):
        return
    covered = max(1, included_seats(plan, seat_meter))
    raise SubscriptionError(
        f"seats: found {seats}; the plan {plan.key!r} sells no seats beyond the {covered} that it"
        " includes: it has no `seat_price` in the plans file",
        advice=f"The plan {plan.key!r} includes {covered} seats, and sells no others.",
    )


def are_seats_sold(plan: Plan, seat_meter: str | None, seats: int) -> bool:
    """Whether a plan includes or sells a number of seats."""
    is_any = sells_seats(plan, seat_meter) or covers_all_seats(plan, seat_meter)
    return is_any or seats <= max(1, included_seats(plan, seat_meter))


class RequestedAddons(NamedTuple):
    """A request for quantities of add-ons, split by the time at which they take effect.

    Attributes:
        now: add-ons from now on.
        given: requested quantities by key, those of later phases too.
    """

    now: Bought
    given: Mapping[str, int]

    @property
    def has_waiting(self) -> bool:
        """Whether a requested quantity takes effect only when the period ends."""
        present = dict(self.now)
        return any(present.get(addon, 0) != quantity for addon, quantity in self.given.items())


def check_addons(
    given: object, plan: Plan, catalog: Catalog, held: Bought = (), *, is_trial: bool = False
) -> dict[str, int]:
    """Check requested quantities of add-ons beside a plan; return them by key.

    Args:
        given: requested quantities by key.
        plan: of the catalog, with its present add-ons or without.
        catalog: the plans file.
        held: add-ons of the subscription; it may give up one that the plan does not list any more.
        is_trial: whether the subscription is in its trial, where add-ons cost nothing.

    Raises:
        UnknownAddonError: the plan does not list one of them.
        AddonLimitError: a quantity is below 0, or above the ``max`` of its add-on and not the present one; or
            in a trial above the present one of an add-on without ``max``.
        QuantityError: a quantity is no integer.
        MeterkitError: ``given`` is no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise MeterkitError(
            f"addons: found a value of type {kind}; allowed is a mapping of add-ons to numbers"
        )
    checked: dict[str, int] = {}
    present = dict(plan.bought)
    for addon, quantity in cast("Mapping[object, object]", given).items():
        if not isinstance(addon, str) or addon not in plan.addons:
            if addon in dict(held) and quantity == 0:
                continue
            raise UnknownAddonError.of(addon, plan.key, plan.addons)
        limit = catalog.addons[addon].max_quantity or MAX_QUANTITY
        is_present = type(quantity) is int and quantity == present.get(addon)
        checked[addon] = present[addon] if is_present else _check_quantity(addon, quantity, limit)
        most = catalog.addons[addon].max_quantity or present.get(addon, 0)
        if is_trial and checked[addon] > most and not is_present:
            raise AddonLimitError(addon, quantity=checked[addon], limit=most, is_of_trial=True)
    return checked


def _check_quantity(addon: str, quantity: object, limit: int) -> int:
    if type(quantity) is not int:
        found = (
            repr(quantity) if isinstance(quantity, float) else f"a value of type {type(quantity).__name__}"
        )
        raise QuantityError(
            f"addons: found {found:.40} of {addon!r:.80}; allowed is an integer from 0 to {limit}"
        )
    if not 0 <= quantity <= limit:
        raise AddonLimitError(addon, quantity=quantity, limit=limit)
    return quantity


def merge_addons(present: Bought, given: Mapping[str, int]) -> Bought:
    """Present add-ons with requested quantities; those left out stay, 0 removes one."""
    return tuple(sorted((addon, n) for addon, n in {**dict(present), **given}.items() if n))


def split_addons(
    present: Bought, given: Mapping[str, int], changes: Changes, *, fewer_wait: bool
) -> RequestedAddons:
    """Split requested quantities by the time at which they take effect.

    Args:
        present: add-ons now.
        given: requested quantities by key.
        changes: of the plans file: more is an upgrade, fewer is a downgrade.
        fewer_wait: whether fewer take effect when the period ends, whatever ``changes`` says.
    """
    have = dict(present)
    downgrade = "period_end" if fewer_wait else changes.downgrade
    now = {
        addon: n
        for addon, n in given.items()
        if (changes.upgrade if n > have.get(addon, 0) else downgrade) == "now"
    }
    return RequestedAddons(merge_addons(present, now), given)


def scheduled_addons(known: SubscriptionState, present: Bought, catalog: Catalog) -> Bought:
    """Add-ons after the scheduled changes of their quantities, whatever plan comes with them.

    Args:
        known: the stored subscription.
        present: its add-ons now.
        catalog: the plans file.
    """
    plan = catalog.find_plan(known.pending_plan)
    if known.pending_addons is None or plan is None:
        return present
    return kept_addons(present, known.pending_addons, plan)


def kept_addons(present: Bought, later: Bought, plan: Plan) -> Bought:
    """Add-ons after scheduled ones, without the scheduled plan that comes with them.

    An add-on that this plan does not list ends with it alone.

    Args:
        present: add-ons now.
        later: those that are scheduled.
        plan: the scheduled plan.
    """
    then = dict(later)
    return merge_addons(present, {addon: then.get(addon, 0) for addon in plan.addons})


def gives_up_unlisted(given: Mapping[str, int], plan: Plan, held: Bought) -> bool:
    """Whether a request names an add-on of the subscription that the plan does not list any more."""
    return any(addon in given and addon not in plan.addons for addon, _ in held)


def ended_addons(present: Bought, plan: Plan, catalog: Catalog) -> dict[str, int]:
    """Add-ons that end with a change to a plan, which does not list them, with their quantities."""
    return {
        addon: quantity for addon, quantity in present if addon in catalog.addons and addon not in plan.addons
    }
