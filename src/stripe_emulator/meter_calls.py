"""API calls about meters and summaries of their events."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import PAGING, CallTable
from stripe_emulator.meter_events import SPANS_S, MeterEvent, aggregate_events
from stripe_emulator.meters import Meter
from stripe_emulator.protocol import ApiError, JsonObject, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stripe_emulator.account import Account
    from stripe_emulator.call import Call

CALLS: Final = CallTable()
CALLS.retrieve("/v1/billing/meters/{id}", lambda account: account.meters, expandable=())
FORMULAS: Final = ("count", "last", "sum")
WINDOWS: Final = ("day", "hour")
METER_PARAMS: Final = (
    "customer_mapping default_aggregation display_name event_name event_time_window value_settings"
)


@CALLS("POST /v1/billing/meters", METER_PARAMS, expandable=())
def _create_meter(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/billing/meter/create."""
    params, now = call.params, int(call.now)
    formula = params.required_choice("default_aggregation[formula]", FORMULAS)
    meter = Meter(
        id=new_id("mtr_live" if call.livemode else "mtr_test", length=31),
        event_name=params.required("event_name", length_max=100),
        display_name=params.required("display_name", length_max=250),
        formula=formula,
        time_window=params.choice("event_time_window", WINDOWS),
        created=now,
        updated=now,
        livemode=call.livemode,
    )
    if "customer_mapping" in params:
        params.choice("customer_mapping[type]", ("by_id",))
        meter.customer_key = params.required("customer_mapping[event_payload_key]", length_max=100)
    if "value_settings" in params:
        meter.value_key = params.required("value_settings[event_payload_key]", length_max=100)
    account.meters.add(meter)
    return meter.to_json()


@CALLS("POST /v1/billing/meters/{id}", "display_name", expandable=())
def _update_meter(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/billing/meter/update: only ``display_name`` can change."""
    meter = account.meters.find(call.object_id)
    if "display_name" in call.params:
        meter.display_name = call.params.required("display_name", length_max=250)
        meter.updated = int(call.now)
    return meter.to_json()


@CALLS("POST /v1/billing/meters/{id}/deactivate", expandable=())
@CALLS("POST /v1/billing/meters/{id}/reactivate", expandable=())
def _switch_meter(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/billing/meter/deactivate."""
    meter, active = account.meters.find(call.object_id), call.path.endswith("/reactivate")
    if meter.active == active:
        raise ApiError(f"This meter is already {'active' if active else 'inactive'}.")
    if active:
        account.meters.refuse_taken_name(meter.event_name)
    meter.updated = int(call.now)
    meter.deactivated_at = None if active else meter.updated
    return meter.to_json()


@CALLS("GET /v1/billing/meters", "status", PAGING, expandable=())
def _list_meters(account: Account, call: Call) -> JsonObject:
    """List meters, newest first (https://docs.stripe.com/api/billing/meter/list)."""
    status = call.params.choice("status", ("active", "inactive"))
    shown = (meter.to_json() for meter in reversed(account.meters))
    return call.page(meter for meter in shown if status in {None, meter["status"]})


MINUTE_S: Final = 60


@CALLS(
    "GET /v1/billing/meters/{id}/event_summaries",
    "customer start_time end_time value_grouping_window",
    PAGING,
    expandable=(),
)
def _list_summaries(account: Account, call: Call) -> JsonObject:
    """List summaries, latest window first (https://docs.stripe.com/api/billing/meter-event-summary/list).

    Without ``value_grouping_window`` there is exactly one summary. Events that arrived less than
    ``summary_lag_s`` ago are not in it yet.
    """
    meter, params = account.meters.find(call.object_id), call.params
    customer = params.required("customer")
    grouping = params.choice("value_grouping_window", tuple(SPANS_S))
    start, end = (_read_bound(call, name, grouping=grouping) for name in ("start_time", "end_time"))
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
    return call.page(
        _summary_to_json(visible, meter=meter, customer=customer, start=at, end=at + span)
        for at in reversed(range(start, end, span))
    )


def _read_bound(call: Call, name: str, *, grouping: str | None) -> int:
    call.params.required(name)
    moment = call.params.integer(name) or 0
    unit_s = SPANS_S[grouping] if grouping else MINUTE_S
    if moment % unit_s:
        unit = {"hour": "an hour", "day": "a day, 00:00 UTC"}.get(grouping or "", "a minute")
        raise ApiError(f"{name} must be aligned with the start of {unit}. Received {moment}.", param=name)
    return moment


def _summary_to_json(
    events: Sequence[MeterEvent], *, meter: Meter, customer: str, start: int, end: int
) -> JsonObject:
    """Return the summary of a customer's events with ``start`` ≤ timestamp < ``end``; a float at Stripe."""
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
