"""The way of one API request: key, rate, idempotency, fault, effect, answer."""

from __future__ import annotations

import base64
import binascii
import json
from contextlib import nullcontext
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlencode

import anyio
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, compile_path

from stripe_emulator import (
    checkout_calls,
    coupon_calls,
    credit_note_calls,
    customer_calls,
    event_calls,
    invoice_calls,
    invoice_item_calls,
    invoice_preview,
    meter_calls,
    meter_event_calls,
    meter_event_stream_calls,
    payment_method_calls,
    portal_calls,
    price_calls,
    refund_calls,
    schedule_calls,
    subscription_calls,
    subscription_item_calls,
    test_clock_calls,
)
from stripe_emulator.call import API_VERSION, METER_EVENT_STREAM, Call, Params
from stripe_emulator.expand import expand_fields
from stripe_emulator.faults import take_fault
from stripe_emulator.protocol import ApiError, ApiReply, Exchange, new_id, read_version
from stripe_emulator.scheduled_transitions import run_due_transitions
from stripe_emulator.test_clock_calls import clock_time

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from stripe_emulator.account import Account
    from stripe_emulator.call_table import ApiOperation
    from stripe_emulator.faults import Fault
    from stripe_emulator.protocol import JsonObject

    Abort = Callable[[Scope, bool], bool]

# Starlette takes the first that matches: `create_preview` before the id of an invoice.
API_CALLS: Final = (
    *event_calls.CALLS,
    *meter_calls.CALLS,
    *meter_event_calls.CALLS,
    *meter_event_stream_calls.CALLS,
    *customer_calls.CALLS,
    *payment_method_calls.CALLS,
    *test_clock_calls.CALLS,
    *price_calls.CALLS,
    *coupon_calls.CALLS,
    *checkout_calls.CALLS,
    *portal_calls.CALLS,
    *subscription_calls.CALLS,
    *subscription_item_calls.CALLS,
    *invoice_preview.CALLS,
    *invoice_calls.CALLS,
    *invoice_item_calls.CALLS,
    *schedule_calls.CALLS,
    *refund_calls.CALLS,
    *credit_note_calls.CALLS,
)
KEY_PREFIXES: Final = ("sk_test_", "rk_test_", "sk_live_", "rk_live_")
# What may be tried again says so itself, or says nothing.
RETRIED: Final = frozenset({HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS})
NO_KEY: Final = (
    "You did not provide an API key. You need to provide your API key in the Authorization header, using "
    "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
)


class ApiServer:
    """Stripe's HTTP interface over an emulated account.

    Args:
        account: what it reads and changes.
        abort: closes the connection of a scope without an answer, with a reset if the second argument is
            true; returns False where it cannot.
    """

    def __init__(self, account: Account, *, abort: Abort) -> None:
        self._account = account
        self._abort = abort
        self.routes = [
            Route(path, partial(self._handle_request, operation=operation), methods=[method])
            for method, path, operation in API_CALLS
        ]

    def perform(self, method: str, path: str, form: Mapping[str, str]) -> JsonObject:
        """Run an operation without an HTTP request, for a person on a hosted page.

        Raises:
            ApiError: Stripe would refuse it.
        """
        call = Call(
            method=method, path=path, params=Params(urlencode(form)), now=self._account.behaviour.clock()
        )
        for offered, template, operation in API_CALLS:
            match = compile_path(template)[0].fullmatch(path) if offered == method else None
            if match is not None:
                found = match.groupdict()
                call = replace(call, object_id=found.get("id", ""), inner_id=found.get("inner", ""))
                return self._run_operation(call, operation)
        raise ValueError(f"there is no call {method} {path}")

    async def unknown(self, request: Request, error: Exception) -> Response:
        """Answer a path or a method that Stripe does not have."""
        del error
        refusal = ApiError(
            f"Unrecognized request URL ({request.method}: {request.url.path}).", status=HTTPStatus.NOT_FOUND
        )
        return self._json_response(refusal.reply, request=request, headers={"request-id": new_id("req")})

    async def _handle_request(self, request: Request, *, operation: ApiOperation) -> Response:
        request_id = new_id("req")
        headers = {"request-id": request_id}
        identifier: str | None = None
        cut: Fault | None = None
        try:
            call = await self._read_call(request, request_id=request_id)
            identifier = call.params.text("identifier")
            self._account.limit_rate(now=call.now)
            with self._account.lock:
                stored = self._account.keys.begin(call, request_id=request_id)
            if stored is not None:
                reply = stored.reply
                headers |= {"idempotent-replayed": "true", "original-request": stored.request_id}
            else:
                reply, cut = await self._execute_once(call, request=request, operation=operation)
        except ApiError as error:
            reply = error.reply
        self._account.exchanges.append(
            Exchange(
                method=request.method,
                path=request.url.path,
                idempotency_key=request.headers.get("idempotency-key"),
                identifier=identifier,
                status=0 if cut or reply is None else int(reply.status),
                replayed="idempotent-replayed" in headers,
            )
        )
        if cut is not None or reply is None:
            return CutConnection(self._abort, reset=cut is not None and cut.action == "reset")
        return self._json_response(reply, request=request, headers=headers)

    async def _execute_once(
        self, call: Call, *, request: Request, operation: ApiOperation
    ) -> tuple[ApiReply | None, Fault | None]:
        """Return the reply, None if nothing took effect, and the fault that suppresses it."""
        keys, reply = self._account.keys, None
        try:
            with self._account.reserve_metered(call):
                reply, cut = await self._perform_with_fault(call, request=request, operation=operation)
        finally:
            with self._account.lock:
                keys.finish(call, reply=reply)
        return reply, cut

    async def _perform_with_fault(
        self, call: Call, *, request: Request, operation: ApiOperation
    ) -> tuple[ApiReply | None, Fault | None]:
        with self._account.lock:
            fault = take_fault(self._account.faults, call)
        await anyio.sleep(self._account.behaviour.latency_s)
        if fault is None or fault.action == "lose":
            return self._apply_call(replace(call, lose=fault is not None), operation=operation), None
        reply = self._apply_call(call, operation=operation) if fault.when == "after" else None
        if fault.action == "error":
            return fault.reply, None
        if fault.action == "delay":
            await anyio.sleep(fault.delay_s)
            return reply or self._apply_call(call, operation=operation), None
        if fault.action == "hang":
            await _wait_for_disconnect(request.receive)
        return reply, fault

    def _apply_call(self, call: Call, *, operation: ApiOperation) -> ApiReply:
        with self._account.lock:
            run_due_transitions(self._account)
            with self._account.handle_call(call):
                try:
                    return ApiReply(status=HTTPStatus.OK, body=self._run_operation(call, operation))
                except ApiError as error:
                    return error.reply

    def _run_operation(self, call: Call, operation: ApiOperation) -> JsonObject:
        """Run a call in the time of its customer."""
        time = clock_time(self._account, call)
        with nullcontext() if time is None else self._account.at_time(time, in_clock=True):
            call = call if time is None else replace(call, now=time)
            return expand_fields(self._account, operation(self._account, call), call.params)

    def _json_response(self, reply: ApiReply, *, request: Request, headers: Mapping[str, str]) -> Response:
        refused = HTTPStatus.BAD_REQUEST <= reply.status < HTTPStatus.INTERNAL_SERVER_ERROR
        retry = {"stripe-should-retry": "false"} if refused and reply.status not in RETRIED else {}
        echoed = {
            name: request.headers[name]
            for name in ("idempotency-key", "stripe-version")
            if name in request.headers
        }
        date = {"date": formatdate(self._account.behaviour.clock(), usegmt=True)}
        return JSONResponse(
            reply.body,
            status_code=reply.status,
            headers={**date, **echoed, **retry, **headers, **reply.headers},
        )

    async def _read_call(self, request: Request, *, request_id: str) -> Call:
        now = self._account.behaviour.clock()
        if request.url.path == METER_EVENT_STREAM:
            with self._account.lock:
                livemode = self._account.meter_event_sessions.authenticate(_read_credential(request), now=now)
        else:
            livemode = _authenticate(request, accepted=self._account.behaviour.api_keys)
        is_json = request.method == "POST" and request.url.path.startswith("/v2/")
        sent = await request.body() if request.method != "GET" else b""
        if request.method != "POST":  # A DELETE has its parameters in the query, in a form, or in both.
            sent = b"&".join(filter(None, (request.url.query.encode(), sent)))
        return Call(
            method=request.method,
            path=request.url.path,
            params=Params("" if is_json else sent.decode("utf-8", "replace")),
            body=_read_json_object(sent) if is_json else {},
            now=now,
            livemode=livemode,
            idempotency_key=request.headers.get("idempotency-key") if request.method == "POST" else None,
            object_id=str(request.path_params.get("id", "")),
            request_id=request_id,
            inner_id=str(request.path_params.get("inner", "")),
            base_url=str(request.base_url).rstrip("/"),
            version=read_version(request.headers.get("stripe-version"), default=API_VERSION),
        )


class CutConnection(Response):
    """A response that closes the connection instead of answering."""

    def __init__(self, abort: Abort, *, reset: bool) -> None:
        super().__init__()
        self._abort = abort
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Close the connection. Raises ConnectionResetError if it is not of the emulator's own server."""
        del send
        if not self._abort(scope, self._reset):
            raise ConnectionResetError(
                "the emulator closes this connection without an answer, as the test requested"
            )
        await _wait_for_disconnect(receive)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _read_json_object(sent: bytes) -> JsonObject:
    """Return the body of a call of API v2. Raises ApiError if it is no JSON object."""
    try:
        found: object = json.loads(sent or b"{}")
    except ValueError:
        found = None
    if isinstance(found, dict):
        return cast("JsonObject", found)
    raise ApiError("The request body must be a JSON object.", code="invalid_json")


def _read_credential(request: Request) -> str:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    key = credential.strip()
    return _read_basic_user(key) if scheme.lower() == "basic" else key


def _authenticate(request: Request, *, accepted: Collection[str] | None) -> bool:
    """Return whether the key is a live one. Raises ApiError, 401, if there is none or it is not accepted."""
    key = _read_credential(request)
    if not key:
        raise ApiError(NO_KEY, status=HTTPStatus.UNAUTHORIZED)
    valid = key in accepted if accepted is not None else key.startswith(KEY_PREFIXES)
    if not valid:
        masked = f"{key[:8]}{'*' * 20}{key[-4:]}"
        raise ApiError(f"Invalid API Key provided: {masked}", status=HTTPStatus.UNAUTHORIZED)
    return "_live_" in key


def _read_basic_user(credential: str) -> str:
    try:
        return base64.b64decode(credential, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""
