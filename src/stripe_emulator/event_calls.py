"""API calls about events, and thin events of API v2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import ANY_PARAMS, PAGING, CallTable
from stripe_emulator.protocol import ApiError, JsonObject, not_found
from stripe_emulator.webhook_events import EVENT_MEMORY_S, matches_type

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call

CALLS: Final = CallTable()
TYPES_MAX: Final = 20


@CALLS("GET /v1/events/{id}", expandable=())
def _retrieve_event(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/events/retrieve: of the last 30 days."""
    event = account.log.get(call.object_id)
    if event is None or not event.is_kept(now=call.now):
        raise not_found("event", call.object_id)
    return event.to_json()


@CALLS("GET /v1/events", "type types created delivery_success", PAGING, expandable=())
def _list_events(account: Account, call: Call) -> JsonObject:
    """List events, newest first (https://docs.stripe.com/api/events/list)."""
    params = call.params
    kind, kinds = params.nonempty_text("type"), params.listed("types")
    params.refuse_both("type", "types", param="types")
    if len(kinds) > TYPES_MAX:
        message = f"Invalid array: types can have at most {TYPES_MAX} elements. Received {len(kinds)}."
        raise ApiError(message, param="types")
    delivered, is_in = params.boolean("delivery_success"), params.time_filter("created")
    return call.page(
        event.to_json()
        for event in reversed(account.log)
        if event.is_kept(now=call.now)
        and is_in(event.created)
        and (kind is None or matches_type(event.type, (kind,)))
        and (not kinds or event.type in kinds)
        and delivered in {None, not event.undelivered}
    )


@CALLS("GET /v2/core/events/{id}", ANY_PARAMS)
def _retrieve_thin_event(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/v2/core/events/retrieve: of the last 30 days."""
    event = account.thin_log.get(call.object_id)
    if event is None or call.now - event.created >= EVENT_MEMORY_S:
        raise not_found("event", call.object_id)
    return {**event.notification(), "data": event.data}
