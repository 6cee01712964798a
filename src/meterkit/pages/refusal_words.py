"""Words for limits that refuse a customer's requests now, and until when. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.catalog.value_parsers import SECONDS_UP_TO, duration_text, is_money, micro_money, size_text

if TYPE_CHECKING:
    from datetime import datetime

    from meterkit.catalog import Catalog
    from meterkit.insights.refusing_limits import RefusingLimit

_WINDOW: Final = re.compile(r"-(\d+)(s|m|h|d|mo)$")
_WINDOW_UNITS: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day", "mo": "month"}
_DAY: Final = timedelta(days=1)


class RefusalNotice(NamedTuple):
    """Words for a limit that refuses; ``is_balance``: a top-up ends it."""

    heading: str
    detail: str
    is_balance: bool = False


def refusal_notice(catalog: Catalog, limit: RefusingLimit, now: datetime) -> RefusalNotice:
    """Word one limit: ``Requests are refused until 00:00 UTC``."""
    meter = None if limit.meter is None else catalog.meters[limit.meter]
    if meter is not None and meter.charges is not None and limit.limit is None:
        return RefusalNotice("Your balance is empty", "Top up to continue.", is_balance=True)
    if meter is not None and meter.kind == "gauge":
        return RefusalNotice(f"{meter.title}: no more is accepted", "Free some, or choose a plan with more.")
    span = window_words(limit.policy)
    if meter is None:
        refused, used = f"Requests to {limit.route}", f"{limit.used:,} of {limit.limit:,} {span} are used."
    elif meter.is_spend:
        refused, used = "Requests", f"The spend limit {span} is reached."
    elif limit.limit is None:
        refused, used = meter.title, f"What the plan gives {span} is used up."
    else:
        counts = f"{_units(limit.used, meter.unit)} of {_units(limit.limit, meter.unit)}"
        refused, used = meter.title, f"{counts} {span} are used."
    if limit.until is None:
        return RefusalNotice(f"{refused} are refused", used)
    wait = until_words(limit.until, now)
    heading = f"{refused} are refused until {wait.partition(', ')[2]}"
    return RefusalNotice(heading, f"{used} Accepted again {wait}.")


def window_words(policy: str) -> str:
    """Word the span of a policy by its name: ``per day``, ``per 5 hours``, ``in this billing period``."""
    found = _WINDOW.search(policy)
    if found is None:
        return "in this billing period"
    count, unit = int(found[1]), _WINDOW_UNITS[found[2]]
    return f"per {unit}" if count == 1 else f"per {count} {unit}s"


def until_words(until: datetime, now: datetime) -> str:
    """Word a wait: ``in 7 h 45 min, 00:00 UTC``; from two minutes on, whole minutes, rounded up."""
    step = timedelta(seconds=1 if until - now < SECONDS_UP_TO else 60)
    since_midnight = until - until.replace(hour=0, minute=0, second=0, microsecond=0)
    until += -since_midnight % step
    clock = f"{until:%H:%M:%S} UTC" if until.second else f"{until:%H:%M} UTC"
    day = f"{until.day} {until:%b}, " if until - now >= _DAY else ""
    return f"in {duration_text(until - now)}, {day}{clock}"


def _units(quantity: int, unit: str) -> str:
    if is_money(unit):
        return micro_money(quantity, unit)
    return size_text(quantity) if unit == "byte" else f"{quantity:,}"
