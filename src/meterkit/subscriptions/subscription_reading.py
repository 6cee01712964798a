"""Read subscriptions at Stripe into stored states, and choose the one in effect. Pure."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from meterkit.catalog.addons import with_addons
from meterkit.decisions.customer_state import covered_seats, seat_meter
from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subscription import ENDED, NOT_BEGUN, Status, SubscriptionState, TrialEndAction
from meterkit.errors import StripeError
from meterkit.outbox.close_queue import RENEWAL
from meterkit.outbox.meters_or_lines import keep_line_terms
from meterkit.subscriptions.change_rules import included_seats
from meterkit.subscriptions.metered_prices import NO_FACTS, as_charged, item_prices, read_line_prices
from meterkit.subscriptions.monthly_amount import is_free, monthly_amount_of
from meterkit.subscriptions.stripe_objects import (
    AWAITS_METHOD,
    NEVER_BEGAN,
    UNPAID_INVOICES,
    addon_of_price,
    fixed_price_in,
    has_subscription_method,
    id_in,
    is_charged,
    items_in,
    key_in,
    mark_of,
    part_of,
    plan_of_price,
    sells_seats_of,
    text_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.subscriptions.metered_prices import PriceFacts

_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
# https://docs.stripe.com/api/subscriptions/object#subscription_object-trial_settings
_TRIAL_ENDS: Final[Mapping[str, TrialEndAction]] = {
    "create_invoice": "continue",
    "cancel": "cancel",
    "pause": "pause",
}
_SCHEDULED: Final = frozenset({"active", "not_started"})
_SECOND_MS: Final = 1_000
_LIVELIEST_FIRST: Final[tuple[frozenset[str], ...]] = (
    frozenset({"active", "trialing"}),
    frozenset({"past_due"}),
    frozenset({"unpaid", "paused", "incomplete"}),
    frozenset({"canceled", "incomplete_expired"}),
)


def is_sold_here(found: Mapping[str, Any], catalog: Catalog) -> bool:
    """Whether a subscription has the price of a plan of the plans file."""
    return plan_of(found, catalog) is not None


def addons_of(found: Mapping[str, Any], catalog: Catalog) -> Bought:
    """The add-ons of a subscription as Stripe shows it."""
    return _count_addons(items_in(found), catalog)


def plan_of(found: Mapping[str, Any], catalog: Catalog) -> Plan | None:
    """The plan of a subscription by its base price; None: no plan of the plans file."""
    return _plan_of(items_in(found), catalog)


def asks_for_payment_method(found: Mapping[str, Any]) -> bool:
    """Whether the end of its trial at Stripe depends on whether its customer has a payment method."""
    is_asked = found.get("status") == "trialing" and not has_subscription_method(found)
    return is_asked and _trial_end_action(found) != "continue"


def is_free_after_trial(found: Mapping[str, Any], catalog: Catalog) -> bool:
    """Whether a trial without a card continues for free on a plan that requires a payment method.

    Otherwise Stripe cancels or pauses the subscription, or its first invoice is not paid and dunning decides.
    """
    if found.get("status") != "trialing" or has_subscription_method(found) or not is_charged(found):
        return False
    plan = plan_of(found, catalog)
    is_required = plan is not None and plan.payment_method == "required"
    return is_required and _trial_end_action(found) == "continue" and is_free(found)


def is_paused_after_trial(found: Mapping[str, Any]) -> bool:
    """Whether its trial has ended in a pause for want of a payment method; needs ``latest_invoice`` expanded.

    https://docs.stripe.com/billing/subscriptions/trials/free-trials#create-free-trials-without-payment
    """
    if found.get("status") != "paused":
        return False
    paused = part_of(part_of(found, "status_details"), "paused")
    if why := text_in(part_of(paused, "subscription"), "type"):
        return why == "trial_end_without_payment_method"
    reason = text_in(part_of(found, "latest_invoice"), "billing_reason")
    return bool(found.get("trial_end")) and reason == "subscription_create"


def has_begun(found: Mapping[str, Any]) -> bool:
    """Whether a subscription was ever in force; needs ``latest_invoice`` expanded.

    One that is charged begins with its trial or first payment; one whose invoices are sent, at once.
    """
    if found.get(AWAITS_METHOD) or _was_held_back(found):
        return bool(found.get("trial_start"))  # A trial is over, even if nothing came after it.
    if found["status"] in NOT_BEGUN:
        return False
    invoice = part_of(found, "latest_invoice")
    is_first = invoice.get("billing_reason") == "subscription_create" and invoice.get("status") != "paid"
    is_unpaid = is_first and is_charged(found)
    return bool(found.get("trial_start")) or found["status"] != "canceled" or not is_unpaid


def _was_held_back(found: Mapping[str, Any]) -> bool:
    return text_in(part_of(found, "cancellation_details"), "comment") == NEVER_BEGAN


def read_subscription(
    found: Mapping[str, Any],
    catalog: Catalog,
    *,
    has_payment_method: bool = False,
    facts: PriceFacts = NO_FACTS,
) -> SubscriptionState:
    """Read the stored part of a subscription.

    Args:
        found: as Stripe shows it, with ``latest_invoice``, ``schedule`` and the coupons of its discounts
            expanded.
        catalog: the plans file.
        has_payment_method: whether its customer has one, if :func:`asks_for_payment_method` or
            :func:`is_free_after_trial`.
        facts: about the prices of its items; without them those of metered ones are unknown, and those of a
            subscription in another currency than the prices' default one.

    Raises:
        StripeError: it is of a form that this release does not know.
    """
    status = found.get("status")
    if status not in _STATUSES:
        raise _unreadable(found, f"status {status!r:.40}")
    found, currency = as_charged(found, facts.charged), text_in(found, "currency")
    catalog, items = catalog.in_currency(currency), items_in(found)
    plan = _plan_of(items, catalog)
    start_ms, end_ms = _current_period(found, items, plan, catalog)
    has_ended = status in ENDED
    usage = _usage_period(items, end_ms, facts, catalog)
    ends: TrialEndAction = "continue"
    awaits = found.get(AWAITS_METHOD) is True
    if not has_payment_method:
        ends = _trial_end_action(found) if asks_for_payment_method(found) else ends
        awaits = awaits or is_free_after_trial(found, catalog)
    failures, failed_at_ms = _payment_failures(found)
    begins_ms, created_ms = (_ms(found.get(name)) or 0 for name in ("trial_start", "created"))
    return SubscriptionState(
        id=text_in(found, "id"),
        status=status,
        plan=None if plan is None else plan.key,
        **_read_seats(items, plan, catalog),
        addons=_count_addons(items, catalog),
        start_ms=start_ms,
        end_ms=end_ms,
        anchor_ms=_ms(found.get("billing_cycle_anchor")) or start_ms,
        cancel_at_ms=_ends_ms(found, end_ms),
        cancel_at_period_end=found.get("cancel_at_period_end") is True,
        trial_start_ms=0 if begins_ms - created_ms < SHORTEST_MS else begins_ms,
        trial_end_ms=_ms(found.get("trial_end")),
        trial_end_action=ends,
        **({} if has_ended else _read_pending(found, catalog, facts, now=(plan, items))),
        failures=failures,
        failed_at_ms=failed_at_ms,
        ended_at_ms=_ms(found.get("ended_at")),
        created_ms=created_ms,
        never_began=status == "canceled" and (_was_held_back(found) or not has_begun(found)),
        awaits_payment_method=awaits,
        usage_start_ms=0 if usage is None else usage[0],
        usage_end_ms=0 if usage is None else usage[1],
        metered=metered_of(found),
        prices=item_prices(items, facts, catalog, currency=currency),
        base_price=_first_price((item for item in items if _is_base(item, plan, catalog)), currency),
        seat_price=_first_price((item for item in items if plan and _is_seat(item, plan, catalog)), currency),
        addon_prices=_addon_prices(items, catalog, currency),
        mark=mark_of(found),
        mrr=monthly_amount_of(found).micro_cents,
        currency=text_in(found, "currency"),
        **({} if has_ended else _voided_span(found, (start_ms, end_ms), usage)),
    )


def keep_shown_line_terms(
    subscription: SubscriptionState,
    before: CustomerState,
    shown: Mapping[str, Any],
    catalog: Catalog,
) -> SubscriptionState:
    """Give a subscription as read the terms of invoice lines; see :func:`keep_line_terms`.

    Args:
        subscription: as read.
        before: the stored state of its customer.
        shown: as Stripe shows it, with its schedule expanded.
        catalog: the plans file.
    """
    planned_ms, prices = _read_planned_switch_ms(shown), read_line_prices(shown, subscription.plan)
    return keep_line_terms(subscription, before, catalog, planned_ms=planned_ms, prices=prices)


def _usage_period(
    items: Iterable[Mapping[str, Any]], end_ms: int, facts: PriceFacts, catalog: Catalog
) -> tuple[int, int] | None:
    """Read the current period of the metered items, the shortest of theirs.

    Args:
        items: of a subscription, as Stripe shows them.
        end_ms: when the period of the base price ends.
        facts: without the event names of meters each may be of the plans file.
        catalog: the plans file; items of other meters do not count.

    Returns:
        Its start and end; None: it ends with that of the base price.
    """
    own = {meter.stripe.event_name for meter in catalog.meters.values() if meter.stripe is not None}
    periods: list[tuple[int, int]] = []
    for item in items:
        edges = [item.get(f"current_period_{edge}") for edge in ("end", "start")]
        meter = text_in(part_of(part_of(item, "price"), "recurring"), "meter")
        if meter and all(edges) and facts.events.get(meter) in {None, *own}:
            usage_end_s, start_s = map(int, filter(None, edges))
            periods.append((usage_end_s * _SECOND_MS, start_s * _SECOND_MS))
    usage_end_ms, start_ms = min(periods, default=(end_ms, 0))
    return None if usage_end_ms == end_ms else (start_ms, usage_end_ms)


def is_of_other_items(invoice: Mapping[str, Any], period: tuple[int, int]) -> bool:
    """Whether an invoice renews other items than those of the plan, whose intervals are shorter.

    Args:
        invoice: the latest one of a subscription.
        period: that of the plan's usage.
    """
    start_ms, end_ms = period
    at_ms = _ms(invoice.get("period_end")) or 0
    return text_in(invoice, "billing_reason") == RENEWAL and start_ms < at_ms < end_ms


def _voided_span(
    found: Mapping[str, Any], period: tuple[int, int], usage: tuple[int, int] | None
) -> dict[str, Any]:
    """Time span in which its invoices are voided by paused collection; empty if they are not.

    Usage invoiced before the pause stays paid: it starts with the current period if its invoice is void,
    otherwise with the next one (https://docs.stripe.com/billing/subscriptions/pause-payment).
    """
    paused = part_of(found, "pause_collection")
    if text_in(paused, "behavior") != "void":
        return {}
    latest = part_of(found, "latest_invoice")
    # A draft that will not be finalized will be voided.
    is_stopped = text_in(latest, "status") == "draft" and latest.get("auto_advance") is False
    is_void = is_stopped or text_in(latest, "status") == "void"
    is_unpaid = is_void and not is_of_other_items(latest, usage or period)
    resumes_s = paused.get("resumes_at")
    resumes_ms = None if resumes_s is None else int(resumes_s) * _SECOND_MS
    start_ms, end_ms = period
    return {"void_from_ms": start_ms if is_unpaid else end_ms, "void_until_ms": resumes_ms}


def metered_of(found: Mapping[str, Any]) -> str:
    """The metered prices of a subscription as Stripe shows it, each with its meter."""
    return _metered_in(items_in(found))


def _metered_in(items: Iterable[Mapping[str, Any]]) -> str:
    recurring = ((id_in(item, "price"), part_of(part_of(item, "price"), "recurring")) for item in items)
    return " ".join(sorted(f"{text_in(of, 'meter')}={price}" for price, of in recurring if of.get("meter")))


def _plan_of(items: Sequence[Mapping[str, Any]], catalog: Catalog) -> Plan | None:
    """The plan of items; with base prices of several plans, the one of the highest rank."""
    keys = {_plan_key(item, catalog) for item in items}
    found = [plan for plan in catalog.plans.values() if plan.key in keys]
    return max(found, key=lambda plan: plan.rank, default=None)


def _plan_key(item: Mapping[str, Any], catalog: Catalog) -> str | None:
    """The plan of an item by its base price; in a phase Stripe may show only the id of the price."""
    return plan_of_price(id_in(item, "price"), key_in(part_of(item, "price")), catalog)


def _first_price(items: Iterable[Mapping[str, Any]], currency: str) -> str:
    """Unit price of the first of some licensed items; empty if it is unknown or missing."""
    price = next((part_of(item, "price") for item in items), None)
    if price is None or text_in(price, "currency") not in {"", currency}:
        return ""
    return fixed_price_in(price)


def _addon_of(item: Mapping[str, Any], catalog: Catalog) -> str | None:
    """The add-on that an item sells; in a phase Stripe may show only the id of the price."""
    return addon_of_price(id_in(item, "price"), key_in(part_of(item, "price")), catalog)


def _count_addons(items: Iterable[Mapping[str, Any]], catalog: Catalog) -> Bought:
    """Quantities of the add-ons of the plans file among items, whether or not the plan lists them."""
    found = Counter[str]()
    for item in items:
        addon = _addon_of(item, catalog)
        if addon is not None:
            found[addon] += int(item.get("quantity") or 0)
    return tuple(sorted((addon, quantity) for addon, quantity in found.items() if quantity > 0))


def _addon_prices(
    items: Sequence[Mapping[str, Any]], catalog: Catalog, currency: str
) -> tuple[tuple[str, str], ...]:
    """Unit price of each add-on among items; of several items of one the first."""
    named = [(addon, item) for item in items if (addon := _addon_of(item, catalog)) is not None]
    found = {addon: _first_price([item], currency) for addon, item in reversed(named)}
    return tuple(sorted((addon, price) for addon, price in found.items() if price))


def _is_base(item: Mapping[str, Any], plan: Plan | None, catalog: Catalog) -> bool:
    """Whether an item sells a plan itself."""
    return plan is not None and _plan_key(item, catalog) == plan.key


def _is_seat(item: Mapping[str, Any], plan: Plan, catalog: Catalog) -> bool:
    """Whether an item sells seats of its subscription's plan."""
    own = None if plan.seat_price is None else plan.seat_price.stripe_price
    return id_in(item, "price") == own or sells_seats_of(key_in(part_of(item, "price")), plan.key, catalog)


def _count_seats(items: Sequence[Mapping[str, Any]], plan: Plan, catalog: Catalog) -> int:
    """Total seats, with those that the plan and add-ons cover; 0: the plan sells none, and no item has any.

    Of a plan that covers all seats now: the seats of an item that is still paid.
    """
    if plan.seat_price is None:
        return 0
    paid = sum(int(item.get("quantity") or 0) for item in items if _is_seat(item, plan, catalog))
    composed = with_addons(plan, _count_addons(items, catalog), catalog)
    return included_seats(composed, seat_meter(catalog.meters)) + paid


def _read_seats(items: Sequence[Mapping[str, Any]], plan: Plan | None, catalog: Catalog) -> dict[str, Any]:
    """Fields of its seats; empty: its plan sells none."""
    if plan is None or plan.seat_price is None:
        return {}
    covered = covered_seats(with_addons(plan, _count_addons(items, catalog), catalog), catalog.meters)
    return {
        "seats": _count_seats(items, plan, catalog),
        "covered_seats": -1 if covered is None else covered,
    }


def _current_period(
    found: Mapping[str, Any], items: Sequence[Mapping[str, Any]], plan: Plan | None, catalog: Catalog
) -> tuple[int, int]:
    """The current period; of the base price if items have different ones (flexible billing).

    On trial it begins with the trial: an item that replaces another amid it begins no period.
    """
    base = [item for item in items if plan is not None and _plan_key(item, catalog) == plan.key]
    for shown in (*base, *items, found):
        start_ms, end_ms = (_ms(shown.get(f"current_period_{edge}")) for edge in ("start", "end"))
        if start_ms is not None and end_ms is not None:
            trial_ms = _ms(found.get("trial_start")) if found.get("status") == "trialing" else None
            return min(start_ms, trial_ms or start_ms), end_ms
    raise _unreadable(found, "no period")


def _unreadable(found: Mapping[str, Any], what: str) -> StripeError:
    return StripeError(f"subscription {found.get('id')} cannot be read: found {what}; upgrade meterkit")


def _trial_end_action(found: Mapping[str, Any]) -> TrialEndAction:
    behavior = part_of(part_of(found, "trial_settings"), "end_behavior")
    return _TRIAL_ENDS.get(text_in(behavior, "missing_payment_method"), "continue")


def _payment_failures(found: Mapping[str, Any]) -> tuple[int, int]:
    """Failed attempts to collect the invoices that are owed, the most of one, and since when (ms).

    With no list of them, those of the latest invoice, while it is open.
    """
    unpaid = [_attempts_of(invoice) for invoice in found.get(UNPAID_INVOICES) or ()]
    since_ms = [owed_ms for _, owed_ms in unpaid if owed_ms]
    if since_ms:
        return max(attempts for attempts, _ in unpaid), min(since_ms)
    invoice = part_of(found, "latest_invoice")
    if invoice.get("status") == "open":
        return _attempts_of(invoice)
    # Of a draft the period may be a month old, or a year.
    return 0, (_ms(invoice.get("created")) or 0) if found.get("status") == "past_due" else 0


def _attempts_of(invoice: Mapping[str, Any]) -> tuple[int, int]:
    """Failed attempts to collect an open invoice, and since when it is owed (ms).

    That is its finalization, or its due date if it was sent to the customer.
    """
    attempts = invoice.get("attempt_count")
    if not isinstance(attempts, int):
        return 0, 0
    due_ms = _ms(invoice.get("due_date"))
    if not attempts and due_ms is None:
        return 0, 0
    return attempts, due_ms or _ms(part_of(invoice, "status_transitions").get("finalized_at")) or 0


def _read_pending(
    found: Mapping[str, Any],
    catalog: Catalog,
    facts: PriceFacts,
    *,
    now: tuple[Plan | None, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Fields of the pending change of its schedule; empty if nothing is scheduled."""
    schedule = part_of(found, "schedule")
    if text_in(schedule, "status") not in _SCHEDULED:
        return {}
    plan, items = now
    for phase in _later_phases(schedule):
        next_plan = _plan_of(items_in(phase), catalog)
        if next_plan is None:
            continue
        seats = _count_seats(items_in(phase), next_plan, catalog)
        known = 0 if plan is None else _count_seats(items, plan, catalog)
        bought, later = _count_addons(items, catalog), _count_addons(items_in(phase), catalog)
        priced = item_prices(items_in(phase), facts, catalog, currency=text_in(found, "currency"))
        is_priced_anew = bool(priced) and not metered_of(found)
        if next_plan is not plan or seats != known or later != bought or is_priced_anew:
            return {
                "pending_plan": next_plan.key,
                "pending_at_ms": _ms(phase.get("start_date")),
                "pending_seats": seats,
                "pending_prices": priced,
                **({} if later == bought else {"pending_addons": later}),
            }
    return {}


def _read_planned_switch_ms(found: Mapping[str, Any]) -> int | None:
    """Start of the phase whose schedule adds metered items where there are none, or removes all (ms)."""
    schedule, has_items = part_of(found, "schedule"), bool(metered_of(found))
    if text_in(schedule, "status") not in _SCHEDULED or found.get("status") in ENDED:
        return None
    later = (one for one in _later_phases(schedule) if bool(_metered_in(items_in(one))) != has_items)
    return next((_ms(phase.get("start_date")) for phase in later), None)


def _ends_ms(found: Mapping[str, Any], end_ms: int) -> int | None:
    """The instant at which it ends (ms); None: no end is set.

    Args:
        found: the subscription as Stripe shows it.
        end_ms: the end of its period.
    """
    at_period_end = found.get("cancel_at_period_end") is True
    at_ms = _ms(found.get("cancel_at")) or (end_ms if at_period_end else None)
    schedule = part_of(found, "schedule")
    if at_period_end or text_in(schedule, "status") not in _SCHEDULED:
        return at_ms
    phases = cast("list[Mapping[str, Any]]", schedule.get("phases") or [])
    ends = [phase_end_ms for phase in phases if (phase_end_ms := _ms(phase.get("end_date")))]
    if text_in(schedule, "end_behavior") == "cancel":
        return max(ends, default=at_ms)
    # Stripe may show the end of a phase so: its schedule says that it goes on.
    return None if at_ms in ends else at_ms


def _later_phases(schedule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The phases of a schedule after the current one, in their order."""
    current_end_s = part_of(schedule, "current_phase").get("end_date") or 0
    phases = cast("list[Mapping[str, Any]]", schedule.get("phases") or [])
    later = [phase for phase in phases if (phase.get("start_date") or 0) >= current_end_s]
    return sorted(later, key=lambda phase: phase.get("start_date") or 0)


def _ms(seconds: object) -> int | None:
    is_whole = isinstance(seconds, int) and not isinstance(seconds, bool)
    return cast("int", seconds) * 1000 if is_whole else None


def choose_subscription(
    found: Iterable[Mapping[str, Any]], catalog: Catalog, known: str | None = None
) -> Mapping[str, Any] | None:
    """Choose a Stripe customer's subscription in effect; None if none has a plan of the plans file.

    By status, then by the rank of the plan, then the newest. Of ended ones the last to end: it was billed
    last. One whose price the plans file has lost is chosen only if it was chosen before.

    Args:
        found: all of the customer's, ended ones too, as Stripe shows them.
        catalog: the plans file.
        known: the id of the stored one.
    """
    ours = [one for one in found if is_sold_here(one, catalog) or one["id"] == known]
    return min(ours, key=lambda one: _precedence(one, catalog), default=None)


def _precedence(found: Mapping[str, Any], catalog: Catalog) -> tuple[float, int, float, int, str]:
    """Sort key of a customer's subscriptions: the one in effect is first."""
    status, plan = text_in(found, "status"), plan_of(found, catalog)
    liveliness = next(
        (rank for rank, of in enumerate(_LIVELIEST_FIRST) if status in of), len(_LIVELIEST_FIRST)
    )
    rank = inf if plan is None else -plan.rank
    ended_s, created_s = (int(found.get(instant) or 0) for instant in ("ended_at", "created"))
    return liveliness, -ended_s, rank, -created_s, text_in(found, "id")
