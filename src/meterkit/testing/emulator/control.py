"""The control plane: ``/_emulator/…``, for tests and demonstrations in other processes."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meterkit.testing.emulator.faults import Pending, fault_from_json

if TYPE_CHECKING:
    from starlette.requests import Request

    from meterkit.testing.emulator.account import Account

__all__ = ["Control"]


class Control:
    """Looks at the account, scripts its faults and resets it, over HTTP and without a key.

    ``GET /_emulator/events``: the accepted events, ``?customer=`` and ``?event_name=`` narrow it;
    ``GET``, ``POST``, ``DELETE /_emulator/faults``: the faults to come, one more, none;
    ``GET /_emulator/requests``: what was asked and answered; ``POST /_emulator/reset``: forget everything.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self.routes = [
            Route("/_emulator/events", self._events, methods=["GET"]),
            Route("/_emulator/faults", self._faults, methods=["GET", "POST", "DELETE"]),
            Route("/_emulator/requests", self._requests, methods=["GET"]),
            Route("/_emulator/reset", self._reset, methods=["POST"]),
        ]

    async def _events(self, request: Request) -> Response:
        wanted = request.query_params
        with self._account.lock:
            events = [
                event
                for event in self._account.events.accepted
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
        return JSONResponse({"events": data, "total": str(total)})

    async def _faults(self, request: Request) -> Response:
        with self._account.lock:
            faults = self._account.faults
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "POST":
            try:
                faults.append(Pending(fault_from_json(json.loads(await request.body()))))
            except (TypeError, ValueError) as error:
                return JSONResponse({"error": str(error)}, status_code=HTTPStatus.BAD_REQUEST)
        return JSONResponse({"faults": [asdict(pending.fault) for pending in faults]})

    async def _requests(self, request: Request) -> Response:
        del request
        with self._account.lock:
            seen = [asdict(exchange) for exchange in self._account.exchanges]
        return JSONResponse({"requests": seen})

    async def _reset(self, request: Request) -> Response:
        del request
        self._account.reset()
        return JSONResponse({})
