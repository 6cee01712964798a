"""Events for handlers: one frozen value each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.notify.subscription_event_types import SUBSCRIPTION_EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from meterkit.notify.subscription_event_types import SubscriptionEvent
    from meterkit.store.messages import Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditsLow:
    """``credits.low``: a balance fell below the share of its last grant that ``low_balance`` names.

    Attributes:
        id: the same at each delivery; a text.
        customer: whose.
        credit: its name in the plans file.
        balance: whole credits that were left then.
        at: when that was (UTC).
    """

    id: str
    customer: str
    credit: str
    balance: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageThreshold:
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

    id: str
    customer: str
    meter: str
    percent: int
    used: int
    included: int
    period_start: datetime
    period_end: datetime
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSpike:
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

    id: str
    customer: str
    at: datetime
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
class StorageOver:
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

    id: str
    customer: str
    at: datetime
    meter: str
    used: int
    included: int
    since: datetime
    until: datetime | None
    types: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodSummary:
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

    id: str
    customer: str
    at: datetime
    period_start: datetime
    period_end: datetime
    overage_cents: int
    meters: Mapping[str, Mapping[str, int]]


Event: TypeAlias = (
    "CreditsLow | PeriodSummary | StorageOver | UsageSpike | UsageThreshold | SubscriptionEvent"
)
"""An event that handlers receive."""


def event_of(notice: Notice, meters: Mapping[str, str]) -> Event:
    """The event of a notice.

    Args:
        notice: of one of :data:`EVENTS`.
        meters: the tokens of meters to their names.
    """
    return EVENTS[notice.kind](notice, f"{notice.shard}-{notice.entry}", meters)


def _credits_low(notice: Notice, event_id: str, _meters: Mapping[str, str]) -> CreditsLow:
    at, _begins, _ends, left = notice.numbers
    credit = notice.of.partition(":")[2]
    return CreditsLow(
        id=event_id, customer=notice.customer, credit=credit, balance=left // MICRO, at=from_ms(at)
    )


def _usage_threshold(notice: Notice, event_id: str, meters: Mapping[str, str]) -> UsageThreshold:
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


def _of_data(made: Callable[..., Event]) -> Callable[[Notice, str, Mapping[str, str]], Event]:
    """An event whose notice has its attributes, instants as ``…_ms``."""

    def read(notice: Notice, _event_id: str, _meters: Mapping[str, str]) -> Event:
        data = {
            name.removesuffix("_ms"): from_ms(value) if name.endswith("_ms") and value is not None else value
            for name, value in notice.data.items()
        }
        return made(customer=notice.customer, **data)

    return read


EVENTS: Final[Mapping[str, Callable[[Notice, str, Mapping[str, str]], Event]]] = {
    "credits.low": _credits_low,
    "usage.threshold": _usage_threshold,
    "usage.spike": _of_data(UsageSpike),
    "storage.over": _of_data(StorageOver),
    "period.summary": _of_data(PeriodSummary),
    **SUBSCRIPTION_EVENTS,
}
"""What handlers can be registered for, and what makes that of a notice."""
