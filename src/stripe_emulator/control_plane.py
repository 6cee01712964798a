"""The control plane: other processes read and change the account by ``/_emulator/…``, without a key."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stripe_emulator.account_controls import AccountControls, utc_text
from stripe_emulator.faults import fault_from_json
from stripe_emulator.hosted_pages import PageControls, read_form
from stripe_emulator.protocol import ApiError
from stripe_emulator.webhook_controls import WebhookControls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from starlette.requests import Request

    from stripe_emulator.protocol import JsonObject

ENDPOINT_FIELDS: Final = frozenset({"url", "secret", "events", "thin"})
DELIVER_FIELDS: Final = frozenset({"events", "to", "forge"})
EMIT_FIELDS: Final = frozenset({"type", "object", "previous"})


class ControlPlane(AccountControls, WebhookControls, PageControls):
    """The routes of the control plane; each calls a method of ``StripeEmulator``."""

    def _control_routes(self) -> list[Route]:
        handlers: dict[str, tuple[Callable[[Request], Awaitable[JsonObject]], str]] = {
            "events": (self._control_events, "GET"),
            "faults": (self._control_faults, "GET POST DELETE"),
            "requests": (self._control_requests, "GET"),
            "reset": (self._control_reset, "POST"),
            "clock": (self._control_clock, "GET POST"),
            "customers/{id}": (self._control_customer, "POST"),
            "endpoints": (self._control_endpoints, "GET POST"),
            "emit": (self._control_emit, "POST"),
            "deliver": (self._control_deliver, "POST"),
            "deliveries": (self._control_deliveries, "GET"),
            "checkout/{id}": (self._control_checkout, "POST"),
            "portal/{id}": (self._control_portal, "POST"),
        }
        return [
            Route(f"/_emulator/{path}", _control_endpoint(handle), methods=methods.split())
            for path, (handle, methods) in handlers.items()
        ]

    async def _control_events(self, request: Request) -> JsonObject:
        wanted = request.query_params
        events = [
            event
            for event in self.events
            if wanted.get("customer", event.customer) == event.customer
            and wanted.get("event_name", event.event_name) == event.event_name
        ]
        data = [
            {
                **event.to_json(),
                "customer": event.customer,
                "meter": event.meter,
                "value": str(event.value),
                "counted": event.counted,
            }
            for event in events
        ]
        total = sum(event.value for event in events if event.counted)
        return {"events": data, "total": str(total)}

    async def _control_faults(self, request: Request) -> JsonObject:
        if request.method == "DELETE":
            self.clear_faults()
        elif request.method == "POST":
            self._add_fault(fault_from_json(json.loads(await request.body())))
        return {"faults": [asdict(fault) for fault in self.faults]}

    async def _control_requests(self, _: Request) -> JsonObject:
        return {"requests": [asdict(exchange) for exchange in self.requests]}

    async def _control_reset(self, _: Request) -> JsonObject:
        self.reset()
        return {}

    async def _control_clock(self, request: Request) -> JsonObject:
        if request.method == "POST":
            self.move_clock(to=_read_target(await request.body(), now=self.clock()))
        now = self.clock()
        return {"now": now, "utc": utc_text(now)}

    async def _control_customer(self, request: Request) -> JsonObject:
        customer = str(request.path_params["id"])
        given = _read_fields(await request.body(), allowed={"card", "payments"})
        if given.get("payments", "fail") not in {"fail", "succeed"}:
            raise ValueError(f"payments is {given['payments']!r}; it must be fail or succeed")
        with self._account.lock:
            self._account.customers.find_existing(customer)
            if "card" in given:
                self.add_payment_method(customer, str(given["card"]))
            if "payments" in given:
                (self.fail_payments if given["payments"] == "fail" else self.mend_payments)(customer)
            fail = customer in self._account.payment_methods.failing
        return {"customer": customer, "payments": "fail" if fail else "succeed"}

    async def _control_endpoints(self, request: Request) -> JsonObject:
        if request.method == "POST":
            given = _read_fields(await request.body(), allowed=ENDPOINT_FIELDS, needed="url")
            return {"secret": self.add_endpoint(**given)}
        with self._account.lock:
            return {"endpoints": [each.to_json() for each in self._account.endpoints]}

    async def _control_emit(self, request: Request) -> JsonObject:
        given = _read_fields(await request.body(), allowed=EMIT_FIELDS, needed="type")
        event = self.emit(given["type"], given.get("object", {}), previous=given.get("previous"))
        return {"event": None if event is None else event.to_json()}

    async def _control_deliver(self, request: Request) -> JsonObject:
        given = _read_fields(await request.body() or b"{}", allowed=DELIVER_FIELDS)
        made = await self.deliver(*given.get("events", ()), to=given.get("to"), forge=given.get("forge"))
        return {"deliveries": [asdict(delivery) for delivery in made]}

    async def _control_deliveries(self, _: Request) -> JsonObject:
        return {"deliveries": [asdict(delivery) for delivery in self.deliveries]}

    async def _control_checkout(self, request: Request) -> JsonObject:
        fields: dict[str, Any] = await read_form(request)
        return self.complete_checkout(request.path_params["id"], **fields)

    async def _control_portal(self, request: Request) -> JsonObject:
        fields: dict[str, Any] = await read_form(request)
        self.use_portal(request.path_params["id"], **fields)
        return {}


def _control_endpoint(
    handle: Callable[[Request], Awaitable[JsonObject]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a handler: its result as JSON, or 400 with the reason of a refusal."""

    async def answer(request: Request) -> Response:
        try:
            return JSONResponse(await handle(request))
        except (ApiError, OverflowError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, status_code=HTTPStatus.BAD_REQUEST)

    return answer


def _read_fields(body: bytes, *, allowed: Collection[str], needed: str | None = None) -> dict[str, Any]:
    given = json.loads(body)
    fields = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    if not isinstance(given, dict) or fields.keys() - allowed or (needed and needed not in fields):
        wanted = f" and at least {needed}" if needed else ""
        raise ValueError(f"send a JSON object with {', '.join(sorted(allowed))}{wanted}; received {given!r}")
    return fields


def _read_target(body: bytes, *, now: float) -> float:
    given = _read_fields(body, allowed={"advance", "to"})
    if len(given) != 1:
        raise ValueError("give either `advance`, in seconds, or `to`, an instant")
    return now + float(given["advance"]) if "advance" in given else _read_unix(given["to"])


def _read_unix(instant: object) -> float:
    if isinstance(instant, int | float):
        return float(instant)
    moment = datetime.fromisoformat(str(instant))
    if moment.tzinfo is None:
        raise ValueError(f"{instant} has no time zone: write it like 2026-05-01T00:00:00Z")
    return moment.timestamp()
