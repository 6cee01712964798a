"""Events: what has happened in the account, each with the object as it was then."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, cast

from meterkit.testing.emulator.call import API_VERSION, PAGING
from meterkit.testing.emulator.replies import ApiError, JsonObject, new_id, no_such

if TYPE_CHECKING:
    from meterkit.testing.emulator.call import Call

__all__ = ["MEMORY_S", "Emit", "Event", "Events", "changes", "matches"]

MEMORY_S: Final = 30 * 86_400
TYPES_MAX: Final = 20


class Emit(Protocol):
    """Enters an event; see ``Account.emit``."""

    def __call__(
        self,
        event_type: str,
        obj: JsonObject,
        *,
        previous: JsonObject | None = None,
        at_s: float | None = None,
    ) -> Event | None:
        """Enter what has happened. Returns None for an update that has changed nothing."""
        ...


@dataclass(slots=True, kw_only=True)
class Event:
    """One thing that has happened in the account.

    Attributes:
        created: Unix seconds.
        object: what it happened to, as it was right after.
        previous: what has changed of it, as it was before; None: it is no update.
        request_id: of the API request that did it; None: it came about by itself.
        undelivered: ids of the webhook endpoints that have not taken it yet.
        entered_at: when it was entered by the emulator's own clock; None: when it was created.
    """

    id: str
    type: str
    created: int
    object: JsonObject
    previous: JsonObject | None = None
    livemode: bool = False
    request_id: str | None = None
    idempotency_key: str | None = None
    undelivered: set[str] = field(default_factory=set[str])
    entered_at: float | None = None

    @property
    def thin(self) -> bool:
        """No."""
        return False

    def is_kept(self, *, now: float) -> bool:
        """Tell whether it can still be read."""
        return now - (self.entered_at or self.created) < MEMORY_S

    def notification(self) -> JsonObject:
        """Return what webhooks are sent: all of it."""
        return self.to_json()

    def to_json(self) -> JsonObject:
        """Return the event as Stripe shows it (https://docs.stripe.com/api/events/object)."""
        data: JsonObject = {"object": self.object}
        if self.previous is not None:
            data["previous_attributes"] = self.previous
        return {
            "id": self.id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.created,
            "data": data,
            "livemode": self.livemode,
            "pending_webhooks": len(self.undelivered),
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": self.type,
        }


class Events:
    """All events of the emulated account, oldest first; they can be read for 30 days."""

    def __init__(self) -> None:
        self._by_id: dict[str, Event] = {}

    @property
    def all(self) -> tuple[Event, ...]:
        """Every event, those too that cannot be read any more."""
        return tuple(self._by_id.values())

    def enter(
        self,
        event_type: str,
        obj: JsonObject,
        *,
        previous: JsonObject | None,
        at_s: float,
        call: Call | None,
    ) -> Event | None:
        """Enter what has happened. Returns None for an update that has changed nothing."""
        changed = None if previous is None else changes(previous, obj)
        if changed == {}:
            return None
        event = Event(
            id=new_id("evt_1", length=23),
            type=event_type,
            created=int(at_s),
            object=deepcopy(obj),
            previous=changed,
            livemode=obj.get("livemode") is True,
            request_id=None if call is None else call.request_id or None,
            idempotency_key=None if call is None else call.idempotency_key,
        )
        self._by_id[event.id] = event
        return event

    def find(self, event_id: str, *, now: float) -> Event:
        """Return an event of the last 30 days. Raises ApiError, 404, if there is none."""
        event = self._by_id.get(event_id)
        if event is None or not event.is_kept(now=now):
            raise no_such("event", event_id)
        return event

    def retrieve(self, call: Call) -> JsonObject:
        """``GET /v1/events/{id}``."""
        call.params.only()
        return self.find(call.object_id, now=call.now).to_json()

    def list(self, call: Call) -> JsonObject:
        """``GET /v1/events``, newest first (https://docs.stripe.com/api/events/list)."""
        params = call.params
        params.only("type", "types", "created", "delivery_success", *PAGING)
        kind, kinds = params.given("type"), list(params.texts("types").values())
        if kind is not None and kinds:
            raise ApiError("You may only specify one of these parameters: type, types.", param="types")
        if len(kinds) > TYPES_MAX:
            message = f"Invalid array: types can have at most {TYPES_MAX} elements. Received {len(kinds)}."
            raise ApiError(message, param="types")
        delivered, is_in = params.boolean("delivery_success"), params.span("created")
        found = [
            event.to_json()
            for event in reversed(self._by_id.values())
            if event.is_kept(now=call.now)
            and is_in(event.created)
            and (kind is None or matches(event.type, (kind,)))
            and (not kinds or event.type in kinds)
            and delivered in {None, not event.undelivered}
        ]
        return params.page(found, url="/v1/events")


def matches(event_type: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether one of ``patterns`` names the type: itself, ``*``, or a group such as ``invoice.*``."""
    return any(
        event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern
        for pattern in patterns
    )


def changes(before: JsonObject, after: JsonObject) -> JsonObject:
    """Return what differs, as it was before: ``previous_attributes``.

    Of an object within only what differs, of a list all of it; what was not there before is null.
    """
    differing: JsonObject = {}
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = deepcopy(before.get(name)), after.get(name)
        if old == new:
            continue
        both = isinstance(old, dict) and isinstance(new, dict)
        differing[name] = changes(cast("JsonObject", old), cast("JsonObject", new)) if both else old
    return differing
