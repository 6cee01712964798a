"""API calls about subscription schedules, and the parameters of their phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from stripe_emulator.billing_cycle import period_boundary
from stripe_emulator.billing_mode import read_billing_mode, refuse_mixed_intervals
from stripe_emulator.call_table import PAGING, CallTable, list_newest
from stripe_emulator.invoice_drafts import read_automatic_tax
from stripe_emulator.price_calls import choose_currency, resolve_price
from stripe_emulator.prices import PriceInterval
from stripe_emulator.protocol import ApiError, JsonObject, missing_parameter, new_id
from stripe_emulator.redemption import change_discounts, read_discounts, redeem
from stripe_emulator.schedule_phases import (
    begin_schedule,
    item_changes_of_phase,
    phase_lines,
    release_schedule,
)
from stripe_emulator.schedules import Phase, PhaseDiscount, PhaseInvoiceItem, PhaseItem, Schedule
from stripe_emulator.subscription_changes import commit_change, prepare_change
from stripe_emulator.subscription_params import recurring_price, refuse_duplicate_ids
from stripe_emulator.subscription_status import cancel_subscription
from stripe_emulator.subscriptions import ENDED, Subscription, apply_phase_terms, phase_terms_of
from stripe_emulator.terms import (
    ADDED_TERMS,
    DEFAULT_PERIOD,
    DEFAULT_SETTINGS,
    ITEM_TERMS,
    PHASE_TERMS,
    read_terms,
    terms_to_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params
    from stripe_emulator.coupons import Discount

CALLS: Final = CallTable()
PHASES_MAX: Final = 10
DISCOUNT_NAMES: Final = ("coupon", "discount", "promotion_code")
PHASE_PRORATIONS: Final = ("create_prorations", "always_invoice", "none")


def read_phases(
    account: Account,
    params: Params,
    *,
    start: int,
    customer: str,
    known: Sequence[Phase] = (),
    of: Subscription | None = None,
) -> list[Phase]:
    """Return the phases of a call, from ``start`` on.

    A phase without ``discounts`` has none: "if not specified, inherits the discount from the subscription's
    customer" (https://docs.stripe.com/api/subscription_schedules/update), and customers have none here.

    Args:
        account: of the schedule.
        params: of the call.
        start: where the first phase begins (Unix seconds).
        customer: the id.
        known: the phases that the schedule has now; a coupon that is sent again for the phase that has it
            is not redeemed again.
        of: the subscription, if it has begun: the first phase has to name its start.
    """
    given = params.hashes("phases")
    if not given:
        raise missing_parameter("phases")
    if len(given) > PHASES_MAX:
        raise ApiError(f"A schedule can have at most {PHASES_MAX} current and future phases.", param="phases")
    phases: list[Phase] = []
    for each in given:
        start = phases[-1].end if phases else start
        own = [] if of is None else [*of.discounts, *of.item_discounts]
        beside = [given.discount for phase in known for given in phase.all_discounts]
        before = next((phase for phase in known if phase.start == start), None)
        reader = DiscountReader(account=account, customer=customer, before=before, known=[*own, *beside])
        charged_in = phases[0].items[0].price.currency if phases else None if of is None else of.currency
        is_first = of is not None and not phases
        phases.append(_read_phase(reader, each, start=start, is_first=is_first, charged_in=charged_in))
    return phases


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscountReader:
    """Reads the discounts of one phase and of its items.

    Attributes:
        before: the phase as it is; a coupon that it has is not redeemed again.
        known: those that a call may name by their ids.
    """

    account: Account
    customer: str
    before: Phase | None
    known: Sequence[Discount]

    def read(self, params: Params, *, currency: str, price: str | None = None) -> list[PhaseDiscount]:
        """Return the discounts of the phase, or of its item of a price.

        Raises:
            ApiError: Stripe would refuse one.
        """
        hashes = params.hashes("discounts") if params.is_hash("discounts") else []
        named = [next((name for name in DISCOUNT_NAMES if name in each), "") for each in hashes]
        again = {
            place: kept
            for place, each in enumerate(hashes)
            for kept in self._given(price)
            if kept.named == named[place] != "discount"
            and kept.to_json()[named[place]] == each.text(named[place])
        }
        for each in hashes:
            each.only(*DISCOUNT_NAMES)
        fresh = iter(
            read_discounts(
                self.account,
                params.without_hashes("discounts", again),
                customer=self.customer,
                currency=currency,
                known=self.known,
            )
        )
        return [
            again[place] if place in again else PhaseDiscount(discount=next(fresh), named=named[place])
            for place in range(len(hashes))
        ]

    def _given(self, price: str | None) -> list[PhaseDiscount]:
        """Return the discounts of the phase or its item, as they began."""
        if self.before is None:
            return []
        own = [each for item in self.before.items if item.price.id == price for each in item.discounts]
        begun = {discount.id: discount for discount in reversed(self.known)}
        given = self.before.given if price is None else own
        return [replace(each, discount=begun.get(each.discount.id, each.discount)) for each in given]


def _read_phase(
    reader: DiscountReader, params: Params, *, start: int, is_first: bool, charged_in: str | None
) -> Phase:
    """Return a phase. ``charged_in`` is the currency of the subscription; None: this phase decides it."""
    account = reader.account
    params.only(
        "add_invoice_items duration end_date items metadata proration_behavior discounts"
        " start_date trial trial_end currency",
        *PHASE_TERMS,
    )
    read_automatic_tax(account, params)
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
    items = [_read_phase_item(reader, item, charged_in) for item in params.hashes("items")]
    if not items:
        raise missing_parameter(params.path("items"))
    refuse_duplicate_ids([item.price.id for item in items], param=params.path("items"))
    asked = params.text("currency")
    if asked is not None and (charged_in not in {None, asked} or asked not in items[0].price.currencies):
        raise ApiError("The currency of a phase must be that of its prices.", param=params.path("currency"))
    if charged_in is None:
        prices = [item.price for item in items]
        charged_in = choose_currency(account, prices, asked=asked, customer=reader.customer)
        if charged_in is None:
            message = "All prices of a phase must have the same currency."
            raise ApiError(message, param=params.path("items"))
        items = [replace(item, price=item.price.in_currency(charged_in)) for item in items]
    metadata, trial, currency = params.metadata(), params.boolean("trial"), charged_in
    finish = _read_phase_end(params, start=start, items=items)
    if finish <= max(start, account.now):
        message = "The end date of a phase must be in the future and after its start."
        raise ApiError(message, param=params.path("end_date"))
    return Phase(
        start=start,
        end=finish,
        items=items,
        proration_behavior=params.choice("proration_behavior", PHASE_PRORATIONS) or "create_prorations",
        metadata=metadata,
        trial=trial,
        trial_end=finish if trial and "trial_end" not in params else params.integer("trial_end"),
        given=reader.read(params, currency=currency),
        terms=read_terms(params, PHASE_TERMS),
        added=[
            _read_added_item(reader, each, currency=currency) for each in params.hashes("add_invoice_items")
        ],
    )


def _read_phase_end(params: Params, *, start: int, items: list[PhaseItem]) -> int:
    """Return the end of a phase: by ``end_date``, ``duration``, or after one interval."""
    duration, end_date = params.hash("duration"), params.integer("end_date")
    params.refuse_both("end_date", "duration", param="duration")
    if end_date is not None:
        return end_date
    if duration is None:
        return period_boundary(start, items[0].price.cycle, 1)
    duration.only("interval interval_count")
    interval = duration.required_choice("interval", ("day", "week", "month", "year"))
    count = duration.integer("interval_count") or 1
    return period_boundary(start, PriceInterval(interval=interval, interval_count=count), 1)


def _read_phase_item(reader: DiscountReader, params: Params, charged_in: str | None) -> PhaseItem:
    params.only("discounts metadata plan price price_data quantity", *ITEM_TERMS)
    price = recurring_price(reader.account, params, currency=charged_in)
    quantity = params.integer("quantity")
    if price.is_metered and quantity is not None:
        raise ApiError("You cannot set the quantity for metered plans.", param=params.path("quantity"))
    return PhaseItem(
        price=price,
        quantity=None if price.is_metered else 1 if quantity is None else quantity,
        metadata=params.metadata(),
        terms=read_terms(params, ITEM_TERMS),
        discounts=tuple(reader.read(params, currency=price.currency, price=price.id)),
    )


def _read_added_item(reader: DiscountReader, params: Params, *, currency: str) -> PhaseInvoiceItem:
    """https://docs.stripe.com/api/subscription_schedules/update#update_subscription_schedule-phases-add_invoice_items."""
    params.only("metadata price price_data quantity discounts", *ADDED_TERMS)
    quantity = params.at_least("quantity", 0)
    terms = terms_to_json(read_terms(params, ADDED_TERMS), ADDED_TERMS)
    return PhaseInvoiceItem(
        price=resolve_price(reader.account, params, currency=currency, recurs=False),
        quantity=1 if quantity is None else quantity,
        shown={
            **terms,
            "discountable": terms["discountable"] is not False,
            "discounts": [each.to_json() for each in reader.read(params, currency=currency)],
            "metadata": params.metadata(),
            "period": terms["period"] or DEFAULT_PERIOD,
        },
    )


END_BEHAVIORS: Final = ("cancel", "release")


@CALLS(
    "POST /v1/subscription_schedules",
    "from_subscription metadata phases end_behavior customer start_date billing_mode default_settings",
)
def _create_schedule(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/create."""
    params = call.params
    subscription_id = params.nonempty_text("from_subscription")
    if subscription_id is not None:
        return _create_from_subscription(account, call, subscription_id)
    customer = account.customers.require(params.required("customer"))
    settings = _read_default_settings(account, params, customer=customer)
    start = _read_start(params, now=account.now)
    schedule = Schedule(
        id=new_id("sub_sched_1", length=23),
        customer=customer,
        created=account.now,
        livemode=call.livemode,
        test_clock=account.customers.find(customer).test_clock,
        phases=read_phases(account, params, start=start, customer=customer),
        billing_mode=read_billing_mode(params, version=call.version),
        status="not_started",
        end_behavior=params.choice("end_behavior", END_BEHAVIORS) or "release",
        default_settings=settings,
    )
    for phase in schedule.phases:
        refuse_mixed_intervals(schedule.billing_mode, (item.price.cycle for item in phase.items))
    params.update_metadata("metadata", schedule.metadata)
    account.schedules.add(schedule)
    if start == account.now:
        begin_schedule(account, schedule)
    return account.publish("subscription_schedule.created", schedule)


def _read_default_settings(account: Account, params: Params, *, customer: str) -> JsonObject:
    """Return the ``default_settings`` of a call."""
    given = params.hash("default_settings")
    if given is None:
        return {}
    given.only(*DEFAULT_SETTINGS)
    read_automatic_tax(account, given, customer=customer)
    return read_terms(given, DEFAULT_SETTINGS)


def _read_start(params: Params, *, now: int) -> int:
    """Return the start: now or later; one in the past would backdate the subscription."""
    start = now if params.text("start_date") in {None, "now"} else params.integer("start_date") or now
    if start < now:
        message = "`start_date` in the past, which backdates a subscription, is not emulated."
        raise ApiError(message, param="start_date")
    return start


def _create_from_subscription(account: Account, call: Call, subscription_id: str) -> JsonObject:
    """Create a schedule for an existing subscription, with one phase: its current period.

    https://docs.stripe.com/api/subscription_schedules/create#create_subscription_schedule-from_subscription
    """
    params = call.params
    for name in ("billing_mode", "phases", "end_behavior", "customer", "start_date"):
        if name in params:
            raise ApiError(f"You cannot set `{name}` if `from_subscription` is set.", param=name)
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
                discounts=tuple(PhaseDiscount(discount=each) for each in item.discounts),
            )
            for item in subscription.items
        ],
        trial_end=subscription.trial_end if subscription.status == "trialing" else None,
        given=[PhaseDiscount(discount=each) for each in subscription.discounts],
        terms=phase_terms_of(subscription),
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
    params.update_metadata("metadata", schedule.metadata)
    account.schedules.add(schedule)
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.schedule = schedule.id
        subscription.scheduled_end = schedule.ends_at
        account.emit("subscription_schedule.created", schedule.to_json())
    return schedule.to_json()


@CALLS(
    "POST /v1/subscription_schedules/{id}", "end_behavior metadata phases proration_behavior default_settings"
)
def _update_schedule(account: Account, call: Call) -> JsonObject:
    """Replace the current and future phases of a schedule; past ones stay.

    "You need to pass in all current and future phases when you update a subscription schedule"
    (https://docs.stripe.com/billing/subscriptions/subscription-schedules#update-subscription-schedules).
    """
    params, schedule = call.params, _find_active(account, call, verb="update")
    before = schedule.to_json()
    behavior = params.choice("end_behavior", END_BEHAVIORS)
    metadata = dict(schedule.metadata)
    params.update_metadata("metadata", metadata)
    subscription = account.subscriptions.find(schedule.subscription or "")
    settings = {
        **schedule.default_settings,
        **_read_default_settings(account, params, customer=subscription.customer),
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
        apply_phase_terms(draft, {**settings, **phases[0].terms})
        changes = item_changes_of_phase(phases[0], subscription)
        rearranged = prepare_change(account, draft, changes, params.pick("proration_behavior"))
        charged = schedule.phases[schedule.place].added
        rearranged.lines.extend(phase_lines(account, draft, phases[0], before=charged))
        schedule.phases[schedule.place :] = phases
        if _is_changed(draft, subscription) or rearranged.lines:
            subscription = commit_change(
                account, subscription, draft, rearranged, behavior="allow_incomplete"
            )
            redeem(account, subscription.item_discounts)
        with account.updating("customer.subscription.updated", subscription.to_json):
            change_discounts(account, subscription, phases[0].discounts)
    schedule.end_behavior = behavior or schedule.end_behavior
    schedule.metadata, schedule.default_settings = metadata, settings
    with account.updating("customer.subscription.updated", subscription.to_json):
        subscription.scheduled_end = schedule.ends_at
    account.emit("subscription_schedule.updated", schedule.to_json(), previous=before)
    return schedule.to_json()


def _is_changed(draft: Subscription, subscription: Subscription) -> bool:
    """Return whether items or terms of the subscription change."""
    return draft.items != subscription.items or phase_terms_of(draft) != phase_terms_of(subscription)


@CALLS("POST /v1/subscription_schedules/{id}/release", "preserve_cancel_date")
def _release_schedule(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/release."""
    schedule = _find_active(account, call, verb="release")
    subscription = account.subscriptions.find(schedule.subscription or "")
    with account.updating("customer.subscription.updated", subscription.to_json):
        ends_at = schedule.ends_at if call.params.boolean("preserve_cancel_date") else None
        release_schedule(account, schedule, subscription)
        subscription.cancel_at = ends_at or subscription.cancel_at
    return schedule.to_json()


@CALLS("POST /v1/subscription_schedules/{id}/cancel", "invoice_now prorate")
def _cancel_schedule(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/cancel: the subscription with it, at once."""
    schedule = account.schedules.find(call.object_id)
    if schedule.status == "not_started":
        schedule.status, schedule.canceled_at = "canceled", account.now
        return account.publish("subscription_schedule.canceled", schedule)
    schedule = _find_active(account, call, verb="cancel")
    invoice_now, prorate = call.params.boolean("invoice_now"), call.params.boolean("prorate")
    cancel_subscription(
        account,
        account.subscriptions.find(schedule.subscription or ""),
        invoice_now=invoice_now is not False,
        prorate=prorate is not False,
        collects=account.behaviour.collects_after_cancel,
    )
    return schedule.to_json()


def _find_active(account: Account, call: Call, *, verb: str) -> Schedule:
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


@CALLS("GET /v1/subscription_schedules", "created customer scheduled", PAGING)
def _list_schedules(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/subscription_schedules/list."""
    is_ahead = call.params.boolean("scheduled")

    def is_in(schedule: Schedule) -> bool:
        return not is_ahead or schedule.status == "not_started"

    return list_newest(account.schedules, call, "customer", where=is_in)


CALLS.retrieve("/v1/subscription_schedules/{id}", lambda account: account.schedules)
