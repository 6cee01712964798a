"""The calls about subscription schedules: create, retrieve, list, update, release, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.invoicing.billing import read_tax
from stripe_emulator.object_calls import newest, retrieves
from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    new_id,
)
from stripe_emulator.selling.redeeming import change_discounts, redeem
from stripe_emulator.subscribing.billing_cycle import read_mode, refuse_mixed
from stripe_emulator.subscribing.phase_params import read_phases
from stripe_emulator.subscribing.phases import added_lines, begin, release, wanted_by
from stripe_emulator.subscribing.schedules import (
    GivenDiscount,
    Phase,
    PhaseItem,
    Schedule,
)
from stripe_emulator.subscribing.statuses import end
from stripe_emulator.subscribing.subscription_terms import apply_terms, terms_of
from stripe_emulator.subscribing.subscriptions import ENDED
from stripe_emulator.subscribing.terms import DEFAULT_SETTINGS, read_terms
from stripe_emulator.subscribing.updates import commit, rearrange

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params
    from stripe_emulator.subscribing.subscriptions import Subscription

END_BEHAVIORS: Final = ("cancel", "release")


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
    settings = _read_settings(account, params, customer=customer)
    start = _start_of(params, now=account.now)
    schedule = Schedule(
        id=new_id("sub_sched_1", length=23),
        customer=customer,
        created=account.now,
        livemode=call.livemode,
        test_clock=account.customers.find(customer).test_clock,
        phases=read_phases(account, params, start=start, customer=customer),
        billing_mode=read_mode(params, version=call.version),
        status="not_started",
        end_behavior=params.choice("end_behavior", END_BEHAVIORS) or "release",
        default_settings=settings,
    )
    for phase in schedule.phases:
        refuse_mixed(schedule.billing_mode, (item.price.cycle for item in phase.items))
    params.amend("metadata", schedule.metadata)
    account.schedules.add(schedule)
    if start == account.now:
        begin(account, schedule)
    account.emit("subscription_schedule.created", schedule.to_json())
    return schedule.to_json()


def _read_settings(account: Account, params: Params, *, customer: str) -> JsonObject:
    """Return the ``default_settings`` of a call."""
    given = params.hash("default_settings")
    if given is None:
        return {}
    given.only(*DEFAULT_SETTINGS)
    read_tax(account, given, customer=customer)
    return read_terms(given, DEFAULT_SETTINGS)


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
        items=[
            PhaseItem(
                price=item.price,
                quantity=item.quantity,
                metadata=dict(item.metadata),
                terms=dict(item.terms),
                discounts=tuple(GivenDiscount(discount=each) for each in item.discounts),
            )
            for item in subscription.items
        ],
        trial_end=subscription.trial_end if subscription.status == "trialing" else None,
        given=[GivenDiscount(discount=each) for each in subscription.discounts],
        terms=terms_of(subscription),
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
    settings = {
        **schedule.default_settings,
        **_read_settings(account, params, customer=subscription.customer),
    }
    if "phases" in params:
        start = schedule.phases[schedule.place].start
        phases = read_phases(
            account,
            params,
            start=start,
            customer=subscription.customer,
            known=schedule.phases[schedule.place :],
            of=subscription,
        )
        draft = subscription.copy()
        apply_terms(draft, {**settings, **phases[0].terms})
        changes = wanted_by(phases[0], subscription)
        rearranged = rearrange(account, draft, changes, params.just("proration_behavior"))
        charged = schedule.phases[schedule.place].added
        rearranged.lines.extend(added_lines(account, draft, phases[0], before=charged))
        schedule.phases[schedule.place :] = phases
        if _differs(draft, subscription) or rearranged.lines:
            subscription = commit(account, subscription, draft, rearranged, behavior="allow_incomplete")
            redeem(account, subscription.item_discounts)
        with account.updating("customer.subscription.updated", subscription.to_json):
            change_discounts(account, subscription, phases[0].discounts)
    schedule.end_behavior = behavior or schedule.end_behavior
    schedule.metadata, schedule.default_settings = metadata, settings
    account.emit("subscription_schedule.updated", schedule.to_json(), previous=before)
    return schedule.to_json()


def _differs(draft: Subscription, subscription: Subscription) -> bool:
    """Whether a change of the current phase changes items or terms of the subscription."""
    return draft.items != subscription.items or terms_of(draft) != terms_of(subscription)


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


SCHEDULE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/subscription_schedules", _create),
    ("GET", "/v1/subscription_schedules", lambda account, call: newest(account.schedules, call, "customer")),
    ("GET", "/v1/subscription_schedules/{id}", retrieves(lambda account: account.schedules)),
    ("POST", "/v1/subscription_schedules/{id}", _update),
    ("POST", "/v1/subscription_schedules/{id}/release", _release),
    ("POST", "/v1/subscription_schedules/{id}/cancel", _cancel),
)
