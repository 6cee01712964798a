"""One event of each kind with figures made up, for previews."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from meterkit.notify.events import CreditsLow, PeriodSummary, StorageOver, UsageSpike, UsageThreshold
from meterkit.notify.subscription_event_types import (
    AccessChanged,
    DunningReminder,
    PaymentFailed,
    PaymentSucceeded,
    SubscriptionChanged,
    TrialEnding,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog import Catalog
    from meterkit.notify.events import Event

_AT: Final = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
_START: Final = datetime(2026, 11, 1, tzinfo=UTC)
_END: Final = datetime(2026, 12, 1, tzinfo=UTC)
_COMMON: Final[Mapping[str, Any]] = {"id": "sample", "customer": "acme", "at": _AT}


def sample_of(event: str, catalog: Catalog) -> Event:
    """An event of a kind, with names of the plans file. Pure."""
    return _SAMPLES[event](catalog)


def _threshold(catalog: Catalog) -> Event:
    meter = next(iter(catalog.meters))
    return UsageThreshold(
        **_COMMON, meter=meter, percent=80, used=8_000, included=10_000, period_start=_START, period_end=_END
    )


def _spike(catalog: Catalog) -> Event:
    meter = next(iter(catalog.meters))
    return UsageSpike(
        **_COMMON,
        meter=meter,
        span="hour",
        used=12_000,
        usual=800,
        four_weeks_at_this_pace=8_064_000,
        last_four_weeks=537_600,
        used_cents=1_440,
        usual_cents=96,
        four_weeks_at_this_pace_cents=967_680,
        last_four_weeks_cents=64_512,
    )


def _over(catalog: Catalog) -> Event:
    gauges = (meter.name for meter in catalog.meters.values() if meter.unit in {"byte", "bytes"})
    return StorageOver(
        **_COMMON,
        meter=next(gauges, "storage"),
        used=12_000_000_000,
        included=10_000_000_000,
        since=_AT - timedelta(minutes=4),
        until=_AT + timedelta(days=7, minutes=-4),
        types={"backups": 9_500_000_000, "documents": 2_500_000_000},
    )


def _summary(catalog: Catalog) -> Event:
    counters = [meter.name for meter in catalog.meters.values() if meter.kind != "gauge"]
    return PeriodSummary(
        **_COMMON,
        period_start=datetime(2026, 10, 1, tzinfo=UTC),
        period_end=_START,
        overage_cents=240,
        meters={next(iter(counters), "requests"): {"used": 12_000, "overage": 2_000, "before": 9_500}},
    )


def _low(catalog: Catalog) -> Event:
    return CreditsLow(**_COMMON, credit=next(iter(catalog.credits), "ai"), balance=96)


def _changed(catalog: Catalog) -> Event:
    return SubscriptionChanged(
        **_COMMON,
        cause="api",
        plan=list(catalog.plans)[-1],
        status="active",
        seats=1,
        cancel_at=None,
        pending_plan=None,
        pending_seats=None,
        pending_at=None,
        plan_before=catalog.default_plan,
        status_before=None,
        seats_before=0,
    )


def _access(catalog: Catalog) -> Event:
    return AccessChanged(
        **_COMMON, cause="clock", access="restricted", access_before="grace", plan=list(catalog.plans)[-1]
    )


def _reminder(catalog: Catalog) -> Event:
    return DunningReminder(
        **_COMMON,
        after=timedelta(days=6),
        failures=2,
        failed_at=_AT - timedelta(days=6),
        access="grace",
        until=_AT + timedelta(days=1),
        plan=list(catalog.plans)[-1],
    )


def _trial(_catalog: Catalog) -> Event:
    return TrialEnding(**_COMMON, trial_end=_AT + timedelta(days=3))


def _failed(catalog: Catalog) -> Event:
    return PaymentFailed(
        **_COMMON,
        invoice="in_sample",
        amount_cents=2_900,
        currency=catalog.currency,
        failures=1,
        next_attempt=_AT + timedelta(days=3),
    )


def _succeeded(catalog: Catalog) -> Event:
    return PaymentSucceeded(**_COMMON, invoice="in_sample", amount_cents=2_900, currency=catalog.currency)


_SAMPLES: Final[Mapping[str, Callable[[Catalog], Event]]] = {
    "usage.threshold": _threshold,
    "usage.spike": _spike,
    "storage.over": _over,
    "period.summary": _summary,
    "credits.low": _low,
    "subscription.changed": _changed,
    "access.changed": _access,
    "dunning.reminder": _reminder,
    "trial.ending": _trial,
    "payment.failed": _failed,
    "payment.succeeded": _succeeded,
}
