"""Events about subscriptions, access and payments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import from_ms
from meterkit.decisions.subscription import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.decisions.subscription import Access, Status
    from meterkit.store.messages import Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionChanged:
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

    id: str
    customer: str
    at: datetime
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
class AccessChanged:
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

    id: str
    customer: str
    at: datetime
    cause: str
    access: Access
    access_before: Access
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DunningReminder:
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

    id: str
    customer: str
    at: datetime
    after: timedelta
    failures: int
    failed_at: datetime | None
    access: Access
    until: datetime | None
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnding:
    """``trial.ending``: a trial ends in three days, or in less where it is shorter.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: when Stripe said so (UTC).
        trial_end: first instant after the trial (UTC).
    """

    id: str
    customer: str
    at: datetime
    trial_end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed:
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

    id: str
    customer: str
    at: datetime
    invoice: str
    amount_cents: int
    currency: str
    failures: int
    next_attempt: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSucceeded:
    """``payment.succeeded``: an invoice was paid.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        at: when Stripe said so (UTC).
        invoice: its id at Stripe.
        amount_cents: what was paid, in minor units of ``currency``.
        currency: its code of three letters.
    """

    id: str
    customer: str
    at: datetime
    invoice: str
    amount_cents: int
    currency: str


SubscriptionEvent = (
    SubscriptionChanged | AccessChanged | DunningReminder | TrialEnding | PaymentFailed | PaymentSucceeded
)


def _common(notice: Notice) -> dict[str, Any]:
    return {"id": notice.data["id"], "customer": notice.customer, "at": from_ms(notice.data["at_ms"])}


def _instant(at_ms: int | None) -> datetime | None:
    return None if not at_ms or at_ms == NEVER_MS else from_ms(at_ms)


def _same(notice: Notice, *names: str) -> dict[str, Any]:
    return {name: notice.data[name] for name in names}


def _subscription_changed(notice: Notice) -> SubscriptionChanged:
    return SubscriptionChanged(
        **_common(notice),
        **_same(notice, "cause", "plan", "status", "seats", "pending_plan", "pending_seats"),
        **_same(notice, "plan_before", "status_before", "seats_before"),
        cancel_at=_instant(notice.data["cancel_at_ms"]),
        pending_at=_instant(notice.data["pending_at_ms"]),
    )


def _access_changed(notice: Notice) -> AccessChanged:
    return AccessChanged(**_common(notice), **_same(notice, "cause", "access", "access_before", "plan"))


def _dunning_reminder(notice: Notice) -> DunningReminder:
    return DunningReminder(
        **_common(notice),
        **_same(notice, "failures", "access", "plan"),
        # Releases before 0.2 told of the second failed attempt, whenever that was.
        after=timedelta(milliseconds=notice.data.get("after_ms", 0)),
        failed_at=_instant(notice.data["failed_at_ms"]),
        until=_instant(notice.data["until_ms"]),
    )


def _trial_ending(notice: Notice) -> TrialEnding:
    return TrialEnding(**_common(notice), trial_end=from_ms(notice.data["trial_end_ms"]))


def _payment_failed(notice: Notice) -> PaymentFailed:
    return PaymentFailed(
        **_common(notice),
        **_same(notice, "invoice", "amount_cents", "currency", "failures"),
        next_attempt=_instant(notice.data["next_attempt_ms"]),
    )


def _payment_succeeded(notice: Notice) -> PaymentSucceeded:
    return PaymentSucceeded(**_common(notice), **_same(notice, "invoice", "amount_cents", "currency"))


def _told_as(
    make: Callable[[Notice], SubscriptionEvent],
) -> Callable[[Notice, str, Mapping[str, str]], SubscriptionEvent]:
    """As events are made: what its data lacks, or has of another kind, another release wrote."""

    def read(notice: Notice, _event_id: str, _meters: Mapping[str, str]) -> SubscriptionEvent:
        try:
            return make(notice)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the data of {notice.kind} cannot be read: {error!r}") from error

    return read


SUBSCRIPTION_EVENTS: Final[Mapping[str, Callable[[Notice, str, Mapping[str, str]], SubscriptionEvent]]] = {
    "subscription.changed": _told_as(_subscription_changed),
    "access.changed": _told_as(_access_changed),
    "dunning.reminder": _told_as(_dunning_reminder),
    "trial.ending": _told_as(_trial_ending),
    "payment.failed": _told_as(_payment_failed),
    "payment.succeeded": _told_as(_payment_succeeded),
}
"""What makes an event of a notice: its ``data`` has the event's attributes, instants as ``…_ms``."""
