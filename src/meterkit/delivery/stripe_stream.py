"""Transport for Stripe's meter event stream, API v2: a hundred events per call, validated asynchronously.

``sender.py`` bisects a refused batch.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from importlib.util import find_spec
from secrets import token_hex
from time import time
from typing import TYPE_CHECKING, Any, Final

from meterkit.delivery.delivery_outcome import DeliveryOutcome, classify
from meterkit.delivery.error_reports import BATCH
from meterkit.delivery.sender import stopwatch
from meterkit.delivery.stripe_v1 import StripeV1Transport
from meterkit.stripe.api import open_client
from meterkit.stripe.meter_differences import CUSTOMER_KEY, VALUE_KEY
from meterkit.stripe.request import (
    API_BASE,
    ERROR_TYPES,
    RequestResult,
    build_headers,
    parse_object,
    read_result,
    redact_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.delivery.delivery_outcome import OutcomeKind
    from meterkit.delivery.sender import Elapsed
    from meterkit.outbox.intents import SealedIntent
    from meterkit.stripe.http import HttpClient
    from meterkit.stripe.request import HttpResponse

EVENTS_BASE: Final = "https://meter-events.stripe.com"
_SESSION_PATH: Final = "/v2/billing/meter_event_session"
_STREAM_PATH: Final = "/v2/billing/meter_event_stream"
# https://docs.stripe.com/api/v2/billing/meter-event-stream/create
_EVENTS_MAX: Final = 100

_JSON: Final = {"Content-Type": "application/json"}
_SESSION_OVER: Final = "billing_meter_event_session_expired"
_RENEWED_BEFORE_S: Final = 120.0
_YOUNG_S: Final = 60.0
_REFUSAL: Final = "invalid_request_error"
_OF_SESSIONS: Final = frozenset({"systemic", "unknown", "unreadable", "not_done"})


class StripeStreamTransport:
    """Delivers up to a hundred intents per call over pooled connections, without retries.

    A response of 200 says that Stripe has the batch, not that it counts: later, thin events report refused
    events. A known identifier is silently not counted again. Negative events go by meter events v1.

    The connections are opened when first needed; from then on the transport belongs to that event loop.

    Args:
        api_key: secret or restricted; is in no message, log or ``repr``.
        api_base: another address for the API, which creates sessions; None: Stripe's. With an ``http://``
            address the proxies of the environment are not used.
        events_base: another address for the stream alone; None: ``api_base``, else Stripe's.
        timeout_s: for a whole call; after that, its outcome is unknown.
        clock: Unix seconds, for the age of sessions.

    Attributes:
        timeout_s: as given.
        events_per_call: largest number of intents in a call.

    Raises:
        ImportError: if the ``stripe`` extra is not installed.
    """

    events_per_call = _EVENTS_MAX

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str | None = None,
        events_base: str | None = None,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time,
    ) -> None:
        if find_spec("aiohttp") is None:
            raise ImportError("delivery to Stripe needs aiohttp: pip install 'meterkit[stripe]'")
        self.timeout_s = timeout_s
        self._headers = build_headers(api_key) | _JSON
        self._base = api_base or API_BASE
        self._events_base = events_base or api_base or EVENTS_BASE
        self._clock = clock
        self._below_0 = StripeV1Transport(api_key, api_base=api_base, timeout_s=timeout_s)
        self._clients: dict[str, HttpClient] = {}
        self._closed = False
        self._session: _StreamSession | None = None
        self._renewing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"StripeStreamTransport(api_base={redact_address(self._base)!r}, timeout_s={self.timeout_s})"

    async def ready(self) -> DeliveryOutcome | None:
        """Open or renew the session; return an outcome if that fails. Raises nothing but cancellation."""
        if self._has_session():
            return None
        async with self._renewing:
            if self._has_session():
                return None
            return await self._renew()

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        """Try to deliver intents once, all or none. Raises nothing but cancellation."""
        if len(intents) == 1 and intents[0].value < 0:
            # "The value must be a positive integer" (payload_invalid_value), says the reference of API v2.
            return await self._below_0.send(*intents)
        session = self._session
        if self._closed or session is None:
            return _not_sent("the transport is closed" if self._closed else "there is no session")
        # Identifiers prevent double counting. A batch that is sent again may have other members.
        key, batch = f"{intents[0].identifier}-{token_hex(4)}", ""
        if len(intents) > 1:
            key = batch = f"{BATCH}{token_hex(16)}"
        headers = {
            **self._headers,
            "Authorization": f"Bearer {session.token}",
            "Idempotency-Key": key,
        }
        body = json.dumps({"events": [_event(intent) for intent in intents]}, separators=(",", ":"))
        answer = await self._client(self._events_base).request("POST", _STREAM_PATH, headers, body.encode())
        if isinstance(answer, RequestResult):
            return replace(classify(answer), batch=batch)
        result = _read(answer)
        if result.status != HTTPStatus.UNAUTHORIZED:
            return replace(classify(result), batch=batch)
        is_renewed = self._session is not session
        if not is_renewed:
            self._session = None
        if result.code == _SESSION_OVER and (is_renewed or session.age_s() > _YOUNG_S):
            # Stripe has none of the events; the next try uses another session.
            return DeliveryOutcome(
                kind="not_done", detail="the session for the stream was over", refused=True
            )
        return classify(result)

    async def close(self) -> None:
        """Close all connections. Idempotent; a later send is refused."""
        self._closed = True
        await self._below_0.close()
        clients, self._clients = self._clients, {}
        for http in clients.values():
            await http.close()

    def _has_session(self) -> bool:
        session = self._session
        return session is not None and session.age_s() < session.life_s - _RENEWED_BEFORE_S

    async def _renew(self) -> DeliveryOutcome | None:
        if self._closed:
            return _not_sent("the transport is closed")
        age_s = stopwatch(self._clock)
        headers = {**self._headers, "Idempotency-Key": token_hex(16)}
        answer = await self._client(self._base).request("POST", _SESSION_PATH, headers, b"{}")
        if isinstance(answer, RequestResult):
            return _not_sent(f"there is no session for the stream: {answer.message}")
        self._session = (
            _session_in(parse_object(answer.body), age_s) if answer.status == HTTPStatus.OK else None
        )
        if self._session is not None:
            return None
        result = read_result(answer, "unreadable", "the answer is not a session for the stream")
        refused = classify(_of_stripe(result))
        # No event is the cause, and none was sent.
        kind: OutcomeKind = refused.kind if refused.kind in _OF_SESSIONS else "systemic"
        return replace(refused, kind=kind, refused=True, new_key=False)

    def _client(self, base: str) -> HttpClient:
        if base not in self._clients:
            self._clients[base] = open_client(base, timeout_s=self.timeout_s)
        return self._clients[base]


class _StreamSession:
    """Session of the stream: a token that replaces the API key for some minutes."""

    __slots__ = ("age_s", "life_s", "token")

    def __init__(self, token: str, age_s: Elapsed, life_s: float) -> None:
        self.token = token
        self.age_s = age_s
        self.life_s = life_s


def _session_in(body: dict[str, Any], age_s: Elapsed) -> _StreamSession | None:
    token = body.get("authentication_token")
    try:
        ends = datetime.fromisoformat(body["expires_at"]) - datetime.fromisoformat(body["created"])
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        return None
    return _StreamSession(token, age_s, ends.total_seconds())


@lru_cache(maxsize=1024)
def _instant(timestamp: int) -> str:
    """Format a minute for Stripe; cached, because many events share it."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _event(intent: SealedIntent) -> dict[str, Any]:
    return {
        "event_name": intent.event_name,
        "identifier": intent.identifier,
        "payload": {CUSTOMER_KEY: intent.stripe_customer, VALUE_KEY: f"{intent.value:d}"},
        "timestamp": _instant(intent.timestamp),
    }


def _read(answer: HttpResponse) -> RequestResult:
    """Read a response; a success must be a JSON object."""
    is_good = HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
    if is_good and not (answer.status == HTTPStatus.OK and answer.body.lstrip().startswith(b"{")):
        return read_result(answer, "unreadable", "the answer is no JSON object")
    return _of_stripe(read_result(answer))


def _of_stripe(result: RequestResult) -> RequestResult:
    """Translate the type of a refusal to that of API v1: API v2 has one type for each cause."""
    is_stripes = result.code is not None and result.request_id is not None
    return replace(result, type=_REFUSAL) if is_stripes and result.type not in ERROR_TYPES else result


def _not_sent(message: str) -> DeliveryOutcome:
    return classify(RequestResult(failure="not_sent", message=message))
