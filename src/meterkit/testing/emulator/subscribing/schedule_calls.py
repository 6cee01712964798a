"""The calls about subscription schedules: create, retrieve, list, update, release, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import Params
from meterkit.testing.emulator.invoicing.billing import read_tax
from meterkit.testing.emulator.object_calls import newest, retrieves
from meterkit.testing.emulator.protocol import (
    ApiError,
    JsonObject,
    missing_parameter,
    new_id,
)
from meterkit.testing.emulator.selling.prices import Recurring
from meterkit.testing.emulator.selling.redeeming import change_discounts, read_discounts
from meterkit.testing.emulator.subscribing.billing_cycle import boundary, read_mode, refuse_mixed
from meterkit.testing.emulator.subscribing.params import recurring_price, refuse_same_price
from meterkit.testing.emulator.subscribing.phases import begin, release, wanted_by
from meterkit.testing.emulator.subscribing.schedules import Phase, PhaseItem, Schedule
from meterkit.testing.emulator.subscribing.statuses import end
from meterkit.testing.emulator.subscribing.subscriptions import ENDED
from meterkit.testing.emulator.subscribing.updates import commit, rearrange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.selling.coupons import Discount

PHASES_MAX: Final = 10
END_BEHAVIORS: Final = ("cancel", "release")
PRORATIONS: Final = ("create_prorations", "always_invoice", "none")
# Accepted and without effect.
IGNORED: Final = (
    *("application_fee_percent", "automatic_tax", "billing_cycle_anchor", "billing_thresholds"),
    *("collection_method", "currency", "default_payment_method", "default_tax_rates", "description"),
    *("invoice_settings", "on_behalf_of", "transfer_data"),
)
ITEM_IGNORED: Final = ("billing_thresholds", "discounts", "metadata", "tax_rates")


def _create(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/create."""
    params = call.params
    params.only(
        "from_subscription",
        "metadata",
        "phases",
        "end_behavior",
        "customer",
        "start_date",
        "billing_mode",
        "default_settings",
        expandable=None,
    )
    subscription_id = params.given("from_subscription")
    if subscription_id is not None:
        return _of_subscription(account, call, subscription_id)
    customer = account.customers.named(params.required("customer"))
    read_tax(account, params.hash("default_settings") or Params(""), customer=customer)
    start = _start_of(params, now=account.now)
    schedule = Schedule(
        id=new_id("sub_sched_1", length=23),
        customer=customer,
        created=account.now,
        livemode=call.livemode,
        test_clock=account.customers.find(customer).test_clock,
        phases=_phases(account, params, start=start, customer=customer),
        billing_mode=read_mode(params, version=call.version),
        status="not_started",
        end_behavior=params.choice("end_behavior", END_BEHAVIORS) or "release",
    )
    for phase in schedule.phases:
        refuse_mixed(schedule.billing_mode, (item.price.cycle for item in phase.items))
    params.amend("metadata", schedule.metadata)
    account.schedules.add(schedule)
    if start == account.now:
        begin(account, schedule)
    account.emit("subscription_schedule.created", schedule.to_json())
    return schedule.to_json()


def _start_of(params: Params, *, now: int) -> int:
    """Now, or later; one in the past would backdate the subscription."""
    start = now if params.text("start_date") in {None, "now"} else params.integer("start_date") or now
    if start < now:
        message = "`start_date` in the past, which backdates a subscription, is not emulated."
        raise ApiError(message, param="start_date")
    return start


def _of_subscription(account: Account, call: Call, subscription_id: str) -> JsonObject:
    """Of a subscription that there is, which gets one phase: its present period.

    https://docs.stripe.com/api/subscription_schedules/create#create_subscription_schedule-from_subscription
    """
    params = call.params
    for name in ("billing_mode", "phases", "end_behavior", "customer", "start_date"):
        if name in params:
            message = f"You cannot set `{name}` if `from_subscription` is set."
            raise ApiError(message, param=name)
    subscription = account.subscriptions.find(subscription_id, param="from_subscription")
    if subscription.schedule is not None:
        message = (
            "You cannot migrate a subscription that is already attached to a schedule: "
            f"`{subscription.schedule}`."
        )
        raise ApiError(message, param="from_subscription")
    if subscription.status in (*ENDED, "incomplete"):
        message = f"You cannot migrate a subscription that is in the `{subscription.status}` status."
        raise ApiError(message, param="from_subscription")
    phase = Phase(
        start=min(item.period_start for item in subscription.items),
        end=subscription.period_end,
        items=[PhaseItem(price=item.price, quantity=item.quantity) for item in subscription.items],
        trial_end=subscription.trial_end if subscription.status == "trialing" else None,
        discounts=list(subscription.discounts),
    )
    schedule = Schedule(
        id=new_id("sub_sched_1", length=23),
        customer=subscription.customer,
        created=account.now,
        livemode=call.livemode,
        test_clock=subscription.test_clock,
        phases=[phase],
        billing_mode=subscription.billing_mode,
        subscription=subscription.id,
        end_behavior="cancel" if subscription.cancel_at_period_end else "release",
    )
    params.amend("metadata", schedule.metadata)
    account.schedules.add(schedule)
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.schedule = schedule.id
        account.emit("subscription_schedule.created", schedule.to_json())
    return schedule.to_json()


def _update(account: Account, call: Call) -> JsonObject:
    """All present and future phases anew; past ones stay.

    "You need to pass in all current and future phases when you update a subscription schedule"
    (https://docs.stripe.com/billing/subscriptions/subscription-schedules#update-subscription-schedules).
    """
    params, schedule = call.params, _running(account, call, verb="update")
    params.only(
        "end_behavior", "metadata", "phases", "proration_behavior", "default_settings", expandable=None
    )
    before = schedule.to_json()
    behavior = params.choice("end_behavior", END_BEHAVIORS)
    metadata = dict(schedule.metadata)
    params.amend("metadata", metadata)
    subscription = account.subscriptions.find(schedule.subscription or "")
    if "phases" in params:
        start = schedule.phases[schedule.place].start
        known = [each for phase in schedule.phases[schedule.place :] for each in phase.discounts]
        phases = _phases(
            account, params, start=start, customer=subscription.customer, is_known=True, known=known
        )
        draft = subscription.copy()
        changes = wanted_by(phases[0], subscription)
        rearranged = rearrange(account, draft, changes, params.just("proration_behavior"))
        schedule.phases[schedule.place :] = phases
        if draft.items != subscription.items or rearranged.lines:
            subscription = commit(account, subscription, draft, rearranged, behavior="allow_incomplete")
        with account.updating("customer.subscription.updated", subscription.to_json):
            change_discounts(account, subscription, phases[0].discounts)
    schedule.end_behavior = behavior or schedule.end_behavior
    schedule.metadata = metadata
    account.emit("subscription_schedule.updated", schedule.to_json(), previous=before)
    return schedule.to_json()


def _release(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/release."""
    call.params.only("preserve_cancel_date", expandable=None)
    schedule = _running(account, call, verb="release")
    subscription = account.subscriptions.find(schedule.subscription or "")
    with account.updating("customer.subscription.updated", subscription.to_json):
        release(account, schedule, subscription)
    return schedule.to_json()


def _cancel(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/cancel: the subscription with it, at once."""
    call.params.only("invoice_now", "prorate", expandable=None)
    schedule = account.schedules.find(call.object_id)
    if schedule.status == "not_started":
        schedule.status, schedule.canceled_at = "canceled", account.now
        account.emit("subscription_schedule.canceled", schedule.to_json())
        return schedule.to_json()
    schedule = _running(account, call, verb="cancel")
    invoice_now, prorate = call.params.boolean("invoice_now"), call.params.boolean("prorate")
    end(
        account,
        account.subscriptions.find(schedule.subscription or ""),
        invoice_now=invoice_now is not False,
        prorate=prorate is not False,
        collects=account.behaviour.collects_after_cancel,
    )
    return schedule.to_json()


def _running(account: Account, call: Call, *, verb: str) -> Schedule:
    schedule = account.schedules.find(call.object_id)
    if schedule.status == "not_started":
        raise ApiError(f"To {verb} a subscription schedule that has not begun is not emulated.")
    if schedule.status != "active":
        message = (
            f"You cannot {verb} a subscription schedule that is currently in the `{schedule.status}` status. "
            "It must be in one of the following statuses: `not_started`, `active`."
        )
        raise ApiError(message)
    return schedule


def _phases(
    account: Account,
    params: Params,
    *,
    start: int,
    customer: str,
    is_known: bool = False,
    known: Sequence[Discount] = (),
) -> list[Phase]:
    """Return the phases of a call, from ``start`` on; of a schedule that ``is_known`` the first names it.

    A phase without ``discounts`` has none: "if not specified, inherits the discount from the subscription's
    customer" (https://docs.stripe.com/api/subscription_schedules/update), and customers have none here.
    """
    given = params.hashes("phases")
    if not given:
        raise missing_parameter("phases")
    if len(given) > PHASES_MAX:
        raise ApiError(f"A schedule can have at most {PHASES_MAX} current and future phases.", param="phases")
    phases: list[Phase] = []
    for each in given:
        start = phases[-1].end if phases else start
        phase = _phase(account, each, start=start, is_first=is_known and not phases)
        phase.discounts = read_discounts(
            account, each, customer=customer, currency=phase.items[0].price.currency, known=known
        )
        phases.append(phase)
    return phases


def _phase(account: Account, params: Params, *, start: int, is_first: bool) -> Phase:
    params.only(
        "add_invoice_items",
        "duration",
        "end_date",
        "items",
        "metadata",
        "proration_behavior",
        "discounts",
        "start_date",
        "trial",
        "trial_end",
        *IGNORED,
    )
    read_tax(account, params)
    if params.hashes("add_invoice_items"):
        message = "`add_invoice_items` of phases are not emulated."
        raise ApiError(message, param=params.path("add_invoice_items"))
    began = params.integer("start_date")
    if is_first and began is None:
        raise missing_parameter(params.path("start_date"))
    if began is not None and began != start:
        message = (
            "You can not modify the start date of the current phase."
            if is_first
            else "Each phase must start where the one before it ends."
        )
        raise ApiError(message, param=params.path("start_date"))
    items = [_phase_item(account, item) for item in params.hashes("items")]
    if not items:
        raise missing_parameter(params.path("items"))
    refuse_same_price([item.price.id for item in items], param=params.path("items"))
    metadata = params.metadata()
    finish = _end_of(params, start=start, items=items)
    if finish <= max(start, account.now):
        message = "The end date of a phase must be in the future and after its start."
        raise ApiError(message, param=params.path("end_date"))
    return Phase(
        start=start,
        end=finish,
        items=items,
        proration_behavior=params.choice("proration_behavior", PRORATIONS) or "create_prorations",
        metadata=metadata,
        trial_end=params.integer("trial_end"),
    )


def _end_of(params: Params, *, start: int, items: list[PhaseItem]) -> int:
    """By ``end_date`` or ``duration``, else one interval; ``iterations`` are gone (facts/stripe.md 6.4)."""
    duration, end_date = params.hash("duration"), params.integer("end_date")
    params.refuse_both("end_date", "duration", param="duration")
    if end_date is not None:
        return end_date
    if duration is None:
        return boundary(start, items[0].price.cycle, 1)
    duration.only("interval", "interval_count")
    duration.required("interval")
    interval = duration.choice("interval", ("day", "week", "month", "year")) or ""
    count = duration.integer("interval_count") or 1
    return boundary(start, Recurring(interval=interval, interval_count=count), 1)


def _phase_item(account: Account, params: Params) -> PhaseItem:
    params.only("price", "price_data", "quantity", *ITEM_IGNORED)
    price = recurring_price(account, params, currency=None)
    quantity = params.integer("quantity")
    if price.is_metered and quantity is not None:
        message = "You cannot set the quantity for metered plans."
        raise ApiError(message, param=params.path("quantity"))
    return PhaseItem(price=price, quantity=None if price.is_metered else 1 if quantity is None else quantity)


SCHEDULE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscription_schedules", _create),
    ("GET", "/v1/subscription_schedules", lambda account, call: newest(account.schedules, call, "customer")),
    ("GET", "/v1/subscription_schedules/{id}", retrieves(lambda account: account.schedules)),
    ("POST", "/v1/subscription_schedules/{id}", _update),
    ("POST", "/v1/subscription_schedules/{id}/release", _release),
    ("POST", "/v1/subscription_schedules/{id}/cancel", _cancel),
)
