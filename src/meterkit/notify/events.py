"""Events for handlers and messages: one frozen dataclass each, read from a notice of the store."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.decisions.subscription import Access, Status
    from meterkit.store.customer_notices import CustomerNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerEvent:
    """Base of all events.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when it happened (UTC).
    """

    id: str
    customer: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsLow(CustomerEvent):
    """``credits.low``: a balance fell below the share of its last grant that ``low_balance`` names.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        credit: its name in the plans file.
        balance: remaining whole credits, rounded down; a balance in money may be below 0.
        balance_micros: the same in millionths of a credit.
        at: when it happened (UTC).
    """

    credit: str
    balance: int
    balance_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageThreshold(CustomerEvent):
    """``usage.threshold``: usage reached a percentage of the included quantity.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        meter: its name in the plans file.
        percent: the entry of ``warn_at``.
        used: the quantity recorded in the period by then.
        included: the quantity that the plan includes.
        period_start, period_end: of the billing period (UTC).
        at: when it happened (UTC).
    """

    meter: str
    percent: int
    used: int
    included: int
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSpike(CustomerEvent):
    """``usage.spike``: this hour or day has far more usage than the same hours of four weeks.

    At most one a day for a customer and meter. Only where the audit log is kept and ``notify:`` lists it.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when the spike was found (UTC).
        meter: the meter's name in the plans file.
        span: ``hour`` or ``day``.
        used: the units of this hour or day so far.
        usual: the median of the compared hours or days.
        four_weeks_at_this_pace: the units of 28 days in which each hour or day is like this one.
        last_four_weeks: the units of the 28 days before today.
        used_cents, usual_cents, four_weeks_at_this_pace_cents, last_four_weeks_cents: the same at the plan's
            price of overage, in minor units of ``currency``; None: the plans file has no such price.
        currency: the customer's; empty: the plans file has only one.
    """

    meter: str
    span: Literal["hour", "day"]
    used: int
    usual: int
    four_weeks_at_this_pace: int
    last_four_weeks: int
    used_cents: int | None
    usual_cents: int | None
    four_weeks_at_this_pace_cents: int | None
    last_four_weeks_cents: int | None
    currency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOver(CustomerEvent):
    """``storage.over``: a customer has stored more bytes than the plan includes for about five minutes.

    It repeats only after the customer has stored less for two days.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when it was found (UTC).
        meter: the gauge's name in the plans file.
        used: the stored bytes.
        included: the bytes that the plan includes.
        since: when the customer exceeded that (UTC).
        until: when the plan's grace ends and uploads are refused (UTC); None: uploads are refused already,
            or the limit of an earlier plan goes on.
        types: bytes by type, the most first; empty where the plans file has no ``storage:``.
        remaining: bytes that may be added when it was found.
    """

    meter: str
    used: int
    included: int
    since: datetime
    until: datetime | None
    types: Mapping[str, int]
    remaining: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodSummary(CustomerEvent):
    """``period.summary``: the usage of a customer in a billing period, an hour or more after its end.

    Periods without usage have none.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when it was summed up (UTC).
        period_start, period_end: of the billing period (UTC).
        overage_cents: what the overage costs at the prices it was recorded at, in minor units of
            ``currency``; meters without a price are left out.
        currency: the customer's; empty: the plans file has only one.
        meters: by meter, in its unit: ``used``, the ``overage`` of that, and the usage of the period
            ``before``. Meters without usage in either period are left out.
    """

    period_start: datetime
    period_end: datetime
    overage_cents: int
    meters: Mapping[str, Mapping[str, int]]
    currency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChanged(CustomerEvent):
    """``subscription.changed``: plan, status, seats, add-ons or a scheduled change are different from now on.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when it takes effect (UTC).
        cause: the id of a Stripe event, ``clock`` (a scheduled change), ``operator``, ``api``,
            ``reconcile``, ``plans_file``.
        plan: key of the active plan.
        status: of the subscription, by the clock; None: there is none.
        seats: paid seats in all; 0: the plan has no seat price.
        addons: paid add-ons of the plan, with their quantities.
        cancel_at: when the subscription ends (UTC); None: no end is known.
        pending_plan, pending_seats, pending_at: the scheduled change (UTC); None: there is none.
        pending_addons: the add-ons after it; None: it leaves them as they are.
        plan_before, status_before, seats_before, addons_before: the values before the change.
    """

    cause: str
    plan: str
    status: Status | None
    seats: int
    cancel_at: datetime | None
    pending_plan: str | None
    pending_seats: int | None
    pending_at: datetime | None
    plan_before: str
    status_before: Status | None
    seats_before: int
    addons: Mapping[str, int]
    addons_before: Mapping[str, int]
    pending_addons: Mapping[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessChanged(CustomerEvent):
    """``access.changed``: the customer's access is different from now on.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when it takes effect (UTC).
        cause: as in :class:`SubscriptionChanged`.
        access: ``full``, ``grace``, ``restricted`` or ``suspended``.
        access_before: the access before.
        plan: key of the active plan.
        status: of the subscription, by the clock; None: there is none.
    """

    cause: str
    access: Access
    access_before: Access
    plan: str
    status: Status | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DunningReminder(CustomerEvent):
    """``dunning.reminder``: an invoice is still unpaid after a span of ``dunning.remind``.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: when the span ended or that became known (UTC).
        after: the span since the first failure.
        failures: the number of failed attempts that Stripe counts.
        failed_at: the first of them (UTC); None: not known.
        access: the customer's access.
        until: when access changes unless the invoice is paid (UTC); None: it does not change by the clock.
        plan: key of the active plan.
    """

    after: timedelta
    failures: int
    failed_at: datetime | None
    access: Access
    until: datetime | None
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnding(CustomerEvent):
    """``trial.ending``: a trial ends in three days, or in less where it is shorter.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: the time of Stripe's event (UTC).
        trial_end: first instant after the trial (UTC).
    """

    trial_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed(CustomerEvent):
    """``payment.failed``: an attempt to collect an invoice has failed.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: the time of Stripe's event (UTC).
        invoice: its id at Stripe.
        amount_cents: the amount left to pay, in minor units of ``currency``.
        currency: its code of three letters.
        failures: the number of failed attempts.
        next_attempt: when Stripe tries again (UTC); None: it does not.
    """

    invoice: str
    amount_cents: int
    currency: str
    failures: int
    next_attempt: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSucceeded(CustomerEvent):
    """``payment.succeeded``: an invoice was paid.

    Attributes:
        id: stays the same when the event is delivered again.
        customer: the customer's id.
        at: the time of Stripe's event (UTC).
        invoice: its id at Stripe.
        amount_cents: the paid amount, in minor units of ``currency``.
        currency: its code of three letters.
    """

    invoice: str
    amount_cents: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUpRefunded(CustomerEvent):
    """``top_up.refunded``: a top-up was refunded or disputed, and the rest of its balance was removed.

    Attributes:
        invoice: its id at Stripe, which is also the id of the grant.
        credit: its name in the plans file.
        refunded_cents: the amount refunded since the last such event, in minor units.
        taken_back_cents: the part of it that was still unused, rounded down.
    """

    invoice: str
    credit: str
    refunded_cents: int
    taken_back_cents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUpFailed(CustomerEvent):
    """``top_up.failed``: the saved card was declined for an automatic top-up; none follows until one is paid.

    Attributes:
        invoice: its id at Stripe.
        credit: its name in the plans file.
        amount_cents: the amount of the top-up, in minor units.
        declined: Stripe's decline code.
        url: the page where the customer pays with another card.
    """

    invoice: str
    credit: str
    amount_cents: int
    declined: str
    url: str


def read_event(notice: CustomerNotice, meters: Mapping[str, str]) -> CustomerEvent:
    """Read the event of a notice.

    Args:
        notice: of one of :data:`EVENT_CLASSES`.
        meters: meter token to meter name.

    Raises:
        ValueError: its data is not as this release writes it.
    """
    return _READERS[notice.kind](notice, f"{notice.shard}-{notice.entry}", meters)


def _read_credits_low(notice: CustomerNotice, event_id: str, _meters: Mapping[str, str]) -> CreditsLow:
    at, _begins, _ends, left = notice.numbers
    credit = notice.of.partition(":")[2]
    return CreditsLow(
        id=event_id,
        customer=notice.customer,
        credit=credit,
        balance=left // MICRO,
        balance_micros=left,
        at=from_ms(at),
    )


def _read_usage_threshold(notice: CustomerNotice, event_id: str, meters: Mapping[str, str]) -> UsageThreshold:
    at, begins, ends, used, percent, included = notice.numbers
    return UsageThreshold(
        id=event_id,
        customer=notice.customer,
        meter=meters.get(notice.of, notice.of),
        percent=percent,
        used=used,
        included=included,
        period_start=from_ms(begins),
        period_end=from_ms(ends),
        at=from_ms(at),
    )


def _data_reader(
    event_class: type[CustomerEvent],
) -> Callable[[CustomerNotice, str, Mapping[str, str]], CustomerEvent]:
    """Return a reader of notices that have the attributes, instants as ``…_ms``; it ignores others."""
    known = fields(event_class)
    # Notices of an older release lack the newer attributes.
    optional = {one.name for one in known if one.default is not MISSING or one.default_factory is not MISSING}

    def value(name: str, data: Mapping[str, Any]) -> Any:
        if name == "after":
            return timedelta(milliseconds=data["after_ms"])
        if name in data:
            return data[name]
        at_ms = data[f"{name}_ms"]
        return None if not at_ms or at_ms == NEVER_MS else from_ms(at_ms)

    def read(notice: CustomerNotice, _event_id: str, _meters: Mapping[str, str]) -> CustomerEvent:
        data = {**notice.data, "customer": notice.customer}
        try:
            given = [one.name for one in known if one.name in data or one.name not in optional]
            return event_class(**{name: value(name, data) for name in given})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the data of {notice.kind} cannot be read: {error!r}") from error

    return read


OF_SUBSCRIPTIONS: Final[Mapping[str, type[CustomerEvent]]] = {
    "subscription.changed": SubscriptionChanged,
    "access.changed": AccessChanged,
    "dunning.reminder": DunningReminder,
    "trial.ending": TrialEnding,
    "payment.failed": PaymentFailed,
    "payment.succeeded": PaymentSucceeded,
}
"""Events about subscriptions, access and payments."""
OF_TOP_UPS: Final[Mapping[str, type[CustomerEvent]]] = {
    "top_up.failed": TopUpFailed,
    "top_up.refunded": TopUpRefunded,
}
"""Events about balances that customers buy."""
EVENT_CLASSES: Final[Mapping[str, type[CustomerEvent]]] = {
    "credits.low": CreditsLow,
    "usage.threshold": UsageThreshold,
    "usage.spike": UsageSpike,
    "storage.over": StorageOver,
    "period.summary": PeriodSummary,
    **OF_SUBSCRIPTIONS,
    **OF_TOP_UPS,
}
"""Each event that handlers can be registered for."""
_READERS: Final[Mapping[str, Callable[[CustomerNotice, str, Mapping[str, str]], CustomerEvent]]] = {
    **{name: _data_reader(event_class) for name, event_class in EVENT_CLASSES.items()},
    "credits.low": _read_credits_low,
    "usage.threshold": _read_usage_threshold,
}
"""Each event with the reader of its notice."""
