"""Meter event summaries: the usage that Stripe has counted for a customer in a span of minutes."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from stripe_emulator.call import PAGING_PARAMS, Call
from stripe_emulator.protocol import ApiError, JsonObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.meter_events import MeterEvent
    from stripe_emulator.meters import Meter

SPANS_S: Final = {"hour": 3_600, "day": 86_400}
MINUTE_S: Final = 60


def list_summaries(account: Account, call: Call) -> JsonObject:
    """``GET /v1/billing/meters/{id}/event_summaries``, latest window first.

    Without ``value_grouping_window`` there is exactly one summary. Events that arrived less than
    ``summary_lag_s`` ago are not in it yet.
    """
    meter, params = account.meters.find(call.object_id), call.params
    params.only("customer start_time end_time value_grouping_window", *PAGING_PARAMS)
    customer = params.required("customer")
    grouping = params.choice("value_grouping_window", tuple(SPANS_S))
    start, end = (
        _read_bound(call, "start_time", grouping=grouping),
        _read_bound(call, "end_time", grouping=grouping),
    )
    if start >= end:
        raise ApiError(f"end_time must be after start_time ({start}). Received {end}.", param="end_time")
    visible = [
        event
        for event in account.events.accepted
        if event.counted
        and event.meter == meter.id
        and event.customer == customer
        and start <= event.timestamp < end
        and event.received_at + account.behaviour.summary_lag_s <= call.now
    ]
    span = SPANS_S[grouping] if grouping else end - start
    summaries = [
        _summary_to_json(visible, meter=meter, customer=customer, start=at, end=at + span)
        for at in reversed(range(start, end, span))
    ]
    return call.page(summaries)


def _read_bound(call: Call, name: str, *, grouping: str | None) -> int:
    call.params.required(name)
    moment = call.params.integer(name) or 0
    unit_s = SPANS_S[grouping] if grouping else MINUTE_S
    if moment % unit_s:
        unit = {"hour": "an hour", "day": "a day, 00:00 UTC"}.get(grouping or "", "a minute")
        message = f"{name} must be aligned with the start of {unit}. Received {moment}."
        raise ApiError(message, param=name)
    return moment


def _summary_to_json(
    events: Sequence[MeterEvent], *, meter: Meter, customer: str, start: int, end: int
) -> JsonObject:
    """The aggregate of one customer's events with ``start`` ≤ timestamp < ``end``; a float at Stripe."""
    inside = [event for event in events if start <= event.timestamp < end]
    name = f"{meter.id}:{customer}:{start}:{end}"
    return {
        "id": f"mtrusg_{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(aggregate_events(inside, meter=meter)),
        "end_time": end,
        "livemode": meter.livemode,
        "meter": meter.id,
        "start_time": start,
    }


def aggregate_events(events: Sequence[MeterEvent], *, meter: Meter) -> Decimal:
    """Return what a meter makes of events: their sum, their number, or the last of them."""
    if meter.time_window is not None:
        # Pre-aggregated: within each hour or day the event that arrived last overwrites the others.
        span_s = SPANS_S[meter.time_window]
        events = list({event.timestamp // span_s: event for event in events}.values())
    if meter.formula == "last":
        latest = max(events, key=lambda event: event.timestamp, default=None)
        return latest.value if latest is not None else Decimal(0)
    return sum((event.value for event in events), Decimal(0))
