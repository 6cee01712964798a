"""Events for handlers: one frozen value each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.decisions.subscription import Access, Status
    from meterkit.store.message_queue import CustomerNotice


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerEvent:
    """What every event has.

    Attributes:
        id: the same at each delivery; a text.
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
        id: the same at each delivery; a text.
        customer: whose.
        credit: its name in the plans file.
        balance: whole credits that were left then, rounded down; a balance in money may be below 0.
        at: when that was (UTC).
    """

    credit: str
    balance: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageThreshold(CustomerEvent):
    """``usage.threshold``: a percentage of what is included, one of ``warn_at``, was reached.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        meter: its name in the plans file.
        percent: which of ``warn_at``.
        used: how much was recorded in the period by then, in the meter's unit.
        included: how much of it the plan includes.
        period_start, period_end: of the billing period (UTC).
        at: when that was (UTC).
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
        id: the same for each repeat of the event; a text.
        customer: the customer's id.
        at: when the spike was found (UTC).
        meter: the meter's name in the plans file.
        span: ``hour`` or ``day``.
        used: the units of this hour or day so far.
        usual: the median of those that it was compared with.
        four_weeks_at_this_pace: what 28 days come to if each hour, or day, has as many units as this one.
        last_four_weeks: the units of the 28 days before today.
        used_cents, usual_cents, four_weeks_at_this_pace_cents, last_four_weeks_cents: the same at the plan's
            price of overage, in minor units of its currency; None: the plans file has no such price.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOver(CustomerEvent):
    """``storage.over``: a customer has stored more bytes than the plan includes for five minutes or so.

    At most one a day for a customer and gauge.

    Attributes:
        id: the same for each repeat of the event; a text.
        customer: the customer's id.
        at: when that was found (UTC).
        meter: the gauge's name in the plans file.
        used: the bytes that were stored then.
        included: the bytes that the plan includes.
        since: from when on they were more than that (UTC).
        until: when the plan's grace ends and uploads are refused (UTC); None: there is no grace.
        types: bytes by type, the most first; empty where the plans file has no ``storage:``.
    """

    meter: str
    used: int
    included: int
    since: datetime
    until: datetime | None
    types: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodSummary(CustomerEvent):
    """``period.summary``: what a customer used in a billing period, told an hour after its end or later.

    Periods without usage have none.

    Attributes:
        id: the same for each repeat of the event; a text.
        customer: the customer's id.
        at: when it was summed up (UTC).
        period_start, period_end: of the billing period (UTC).
        overage_cents: what the overage costs at the prices it was recorded at, in minor units of the plans
            file's currency; meters without a price are left out.
        meters: by meter, in its unit: what was ``used``, the ``overage`` of that, and what was used in the
            period ``before``. Meters without usage in either are left out.
    """

    period_start: datetime
    period_end: datetime
    overage_cents: int
    meters: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChanged(CustomerEvent):
    """``subscription.changed``: plan, status, seats, or what is scheduled, is something else from now on.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: from when on it holds (UTC).
        cause: of the change: the id of an event of Stripe's, ``clock`` (it was scheduled), ``operator``,
            ``api``, ``reconcile``, ``plans_file``.
        plan: key of the plan in force.
        status: of the subscription, by the clock; None: there is none.
        seats: that are paid for, in all; 0: the plan has no seat price.
        cancel_at: when the subscription ends (UTC); None: no end is known.
        pending_plan, pending_seats, pending_at: what is scheduled to change, and when (UTC); None: nothing.
        plan_before, status_before, seats_before: what was in force.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessChanged(CustomerEvent):
    """``access.changed``: what the customer may do is something else from now on.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: from when on it holds (UTC).
        cause: as of :class:`SubscriptionChanged`.
        access: ``full``, ``grace``, ``restricted`` or ``suspended``.
        access_before: what it was.
        plan: key of the plan in force.
    """

    cause: str
    access: Access
    access_before: Access
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DunningReminder(CustomerEvent):
    """``dunning.reminder``: an invoice is still unpaid after a span of ``dunning.remind``.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: when the span was over, or when that became known (UTC).
        after: the span since the first failure.
        failures: the number of failed attempts that Stripe counts.
        failed_at: the first of them (UTC); None: not known.
        access: what the customer may do.
        until: when that changes unless the invoice is paid (UTC); None: by the clock it does not.
        plan: key of the plan in force.
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
        id: the same at each delivery; a text.
        customer: whose.
        at: when Stripe said so (UTC).
        trial_end: first instant after the trial (UTC).
    """

    trial_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed(CustomerEvent):
    """``payment.failed``: an attempt to collect an invoice has failed.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: when Stripe said so (UTC).
        invoice: its id at Stripe.
        amount_cents: what is due, in minor units of ``currency``.
        currency: its code of three letters.
        failures: how many attempts have failed.
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
        id: the same at each delivery; a text.
        customer: whose.
        at: when Stripe said so (UTC).
        invoice: its id at Stripe.
        amount_cents: what was paid, in minor units of ``currency``.
        currency: its code of three letters.
    """

    invoice: str
    amount_cents: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUpRefunded(CustomerEvent):
    """``top_up.refunded``: a top-up was refunded or disputed, and what was left of it was taken back.

    Attributes:
        invoice: its id at Stripe, which is the id of the grant, too.
        credit: its name in the plans file.
        refunded_cents: how much of the balance was refunded since the last such event, in minor units.
        taken_back_cents: how much of that was left, rounded down; the rest had been used already.
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
        amount_cents: what was to be bought, in minor units.
        declined: why, in Stripe's word.
        url: where the customer pays with another card.
    """

    invoice: str
    credit: str
    amount_cents: int
    declined: str
    url: str


def event_of(notice: CustomerNotice, meters: Mapping[str, str]) -> CustomerEvent:
    """The event of a notice.

    Args:
        notice: of one of :data:`EVENTS`.
        meters: the tokens of meters to their names.

    Raises:
        ValueError: its data is not as this release writes it.
    """
    return EVENTS[notice.kind](notice, f"{notice.shard}-{notice.entry}", meters)


def _credits_low(notice: CustomerNotice, event_id: str, _meters: Mapping[str, str]) -> CreditsLow:
    at, _begins, _ends, left = notice.numbers
    credit = notice.of.partition(":")[2]
    return CreditsLow(
        id=event_id, customer=notice.customer, credit=credit, balance=left // MICRO, at=from_ms(at)
    )


def _usage_threshold(notice: CustomerNotice, event_id: str, meters: Mapping[str, str]) -> UsageThreshold:
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


def _of_data(made: type[CustomerEvent]) -> Callable[[CustomerNotice, str, Mapping[str, str]], CustomerEvent]:
    """An event whose notice has its attributes, instants as ``…_ms``, and what later releases add."""

    def value(name: str, data: Mapping[str, Any]) -> Any:
        if name == "after":  # Releases before 0.2 told of the second failed attempt, whenever that was.
            return timedelta(milliseconds=data.get("after_ms", 0))
        if name in data:
            return data[name]
        at_ms = data[f"{name}_ms"]
        return None if not at_ms or at_ms == NEVER_MS else from_ms(at_ms)

    def read(notice: CustomerNotice, _event_id: str, _meters: Mapping[str, str]) -> CustomerEvent:
        data = {**notice.data, "customer": notice.customer}
        try:
            return made(**{field.name: value(field.name, data) for field in fields(made)})
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
EVENTS: Final[Mapping[str, Callable[[CustomerNotice, str, Mapping[str, str]], CustomerEvent]]] = {
    "credits.low": _credits_low,
    "usage.threshold": _usage_threshold,
    "usage.spike": _of_data(UsageSpike),
    "storage.over": _of_data(StorageOver),
    "period.summary": _of_data(PeriodSummary),
    **{name: _of_data(made) for name, made in {**OF_SUBSCRIPTIONS, **OF_TOP_UPS}.items()},
}
"""What handlers can be registered for, and what makes that of a notice."""
