"""One event of each kind with figures made up, for previews."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from meterkit.notify.events import (
    AccessChanged,
    CreditsLow,
    DunningReminder,
    PaymentFailed,
    PaymentSucceeded,
    PeriodSummary,
    StorageOver,
    SubscriptionChanged,
    TopUpFailed,
    TopUpRefunded,
    TrialEnding,
    UsageSpike,
    UsageThreshold,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.notify.events import CustomerEvent

_AT: Final = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
_START: Final = datetime(2026, 11, 1, tzinfo=UTC)
_END: Final = datetime(2026, 12, 1, tzinfo=UTC)
_COMMON: Final[Mapping[str, Any]] = {"id": "sample", "customer": "acme", "at": _AT}


def sample_of(event: str, catalog: Catalog) -> CustomerEvent:
    """An event of a kind, with names of the plans file. Pure."""
    return (_of_usage(catalog) | _of_subscriptions(catalog))[event]


def _of_usage(catalog: Catalog) -> dict[str, CustomerEvent]:
    meters = catalog.meters.values()
    gauge = next((meter.name for meter in meters if meter.unit in {"byte", "bytes"}), "storage")
    counter = next((meter.name for meter in meters if meter.kind != "gauge"), "requests")
    first = next(iter(catalog.meters))
    return {
        "usage.threshold": UsageThreshold(
            **_COMMON,
            meter=first,
            percent=80,
            used=8_000,
            included=10_000,
            period_start=_START,
            period_end=_END,
        ),
        "usage.spike": UsageSpike(
            **_COMMON,
            meter=first,
            span="hour",
            used=12_000,
            usual=800,
            four_weeks_at_this_pace=8_064_000,
            last_four_weeks=537_600,
            used_cents=1_440,
            usual_cents=96,
            four_weeks_at_this_pace_cents=967_680,
            last_four_weeks_cents=64_512,
        ),
        "storage.over": StorageOver(
            **_COMMON,
            meter=gauge,
            used=12_000_000_000,
            included=10_000_000_000,
            since=_AT - timedelta(minutes=4),
            until=_AT + timedelta(days=7, minutes=-4),
            types={"backups": 9_500_000_000, "documents": 2_500_000_000},
        ),
        "period.summary": PeriodSummary(
            **_COMMON,
            period_start=datetime(2026, 10, 1, tzinfo=UTC),
            period_end=_START,
            overage_cents=240,
            meters={counter: {"used": 12_000, "overage": 2_000, "before": 9_500}},
        ),
        "credits.low": CreditsLow(**_COMMON, credit=next(iter(catalog.credits), "ai"), balance=96),
    }


def _of_subscriptions(catalog: Catalog) -> dict[str, CustomerEvent]:
    last: Mapping[str, Any] = {**_COMMON, "plan": list(catalog.plans)[-1]}
    invoice: Mapping[str, Any] = {
        **_COMMON,
        "invoice": "in_sample",
        "amount_cents": 2_900,
        "currency": catalog.currency,
    }
    return {
        "subscription.changed": SubscriptionChanged(
            **last,
            cause="api",
            status="active",
            seats=1,
            cancel_at=None,
            pending_plan=None,
            pending_seats=None,
            pending_at=None,
            plan_before=catalog.default_plan,
            status_before=None,
            seats_before=0,
        ),
        "access.changed": AccessChanged(**last, cause="clock", access="restricted", access_before="grace"),
        "dunning.reminder": DunningReminder(
            **last,
            after=timedelta(days=6),
            failures=2,
            failed_at=_AT - timedelta(days=6),
            access="grace",
            until=_AT + timedelta(days=1),
        ),
        "trial.ending": TrialEnding(**_COMMON, trial_end=_AT + timedelta(days=3)),
        "payment.failed": PaymentFailed(**invoice, failures=1, next_attempt=_AT + timedelta(days=3)),
        "payment.succeeded": PaymentSucceeded(**invoice),
        "top_up.failed": TopUpFailed(
            **_COMMON,
            invoice="in_1",
            credit="usd",
            amount_cents=2000,
            declined="card_declined",
            url="https://invoice.stripe.com/i/acct_1/in_1",
        ),
        "top_up.refunded": TopUpRefunded(
            **_COMMON, invoice="in_1", credit="usd", refunded_cents=1000, taken_back_cents=700
        ),
    }
