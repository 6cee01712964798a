"""Delivery by Stripe's meter events v1: one event per call, answered synchronously."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlencode, urlsplit

from meterkit.delivery.outcomes import Outcome, Result, classify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.delivery.http import Answer, HttpClient
    from meterkit.store.intents import Sealed

__all__ = ["API_VERSION", "CUSTOMER_KEY", "VALUE_KEY", "StripeV1Transport"]

API_BASE: Final = "https://api.stripe.com"
API_VERSION: Final = "2026-10-28.endive"
CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"
PATH: Final = "/v1/billing/meter_events"
METERS_PATH: Final = "/v1/billing/meters"
PAGE: Final = 100
PAGES_MAX: Final = 100
TOLD: Final = ("type", "code", "message", "param")
SHOULD_RETRY: Final[Mapping[str | None, bool]] = {"true": True, "false": False}


class StripeV1Transport:
    """Delivers intents over connections that it keeps. Never tries twice by itself.

    The connections are made by :meth:`send`; from then on the transport belongs to that event loop.

    Args:
        api_key: secret or restricted; is in no message, log or ``repr``.
        api_base: another address for the API, such as an emulator's; None: Stripe's. With an ``http://``
            address the proxies of the environment are not used.
        events_base: another address for meter events alone; None: that of the API.
        timeout_s: for a whole call. What has not been answered by then is unknown.

    Attributes:
        timeout_s: as given.

    Raises:
        ImportError: if the ``stripe`` extra is not installed.
    """

    def __init__(
        self,
        api_key: str,
        *,
        api_base: str | None = None,
        events_base: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        if find_spec("aiohttp") is None:
            raise ImportError("delivery to Stripe needs aiohttp: pip install 'meterkit[stripe]'")
        self.timeout_s = timeout_s
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Stripe-Version": API_VERSION,
            "User-Agent": "meterkit",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        self._base = api_base or API_BASE
        self._events_base = events_base or self._base
        self._clients: dict[str, HttpClient] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"StripeV1Transport(api_base={_origin(self._base)!r}, timeout_s={self.timeout_s})"

    async def send(self, intent: Sealed) -> Outcome:
        """Try once to deliver ``intent``. Raises nothing but cancellation."""
        if self._closed:
            return classify(Result(failure="not_sent", message="the transport is closed"))
        headers = self._headers | {"Idempotency-Key": intent.key}
        answer = await self._client(self._events_base).post(PATH, headers, urlencode(_form(intent)).encode())
        if not isinstance(answer, Result):
            answer = read_answer(answer, identifier=intent.identifier)
        return classify(answer)

    async def meters(self) -> list[dict[str, Any]] | Result:
        """All billing meters of the account, or why they are not known. Raises nothing but cancellation."""
        found: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": PAGE}
        for _ in range(PAGES_MAX):
            answer = await self._client(self._base).get(f"{METERS_PATH}?{urlencode(query)}", self._headers)
            if isinstance(answer, Result):
                return answer
            body = _object(answer.body)
            if answer.status != HTTPStatus.OK or not isinstance(body.get("data"), list):
                return read_answer(answer, identifier="")
            page = cast("list[dict[str, Any]]", body["data"])
            found += page
            if not (page and body.get("has_more")):
                break
            query["starting_after"] = str(page[-1]["id"])
        return found

    def _client(self, base: str) -> HttpClient:
        if base not in self._clients:
            # Imported late: TLS and HTTP cost an app without a Stripe key nothing.
            module = import_module("meterkit.delivery.http")
            self._clients[base] = cast("HttpClient", module.HttpClient(base, timeout_s=self.timeout_s))
        return self._clients[base]

    async def close(self) -> None:
        """Close all connections. Closing twice is harmless; what is sent afterwards is not done."""
        self._closed = True
        clients, self._clients = self._clients, {}
        for http in clients.values():
            await http.close()


def _origin(address: str) -> str:
    """An address without what may be a secret in it."""
    url = urlsplit(address)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


def _form(intent: Sealed) -> dict[str, str]:
    return {
        "event_name": intent.event_name,
        "identifier": intent.identifier,
        f"payload[{CUSTOMER_KEY}]": intent.stripe_customer,
        f"payload[{VALUE_KEY}]": f"{intent.value:d}",
        "timestamp": f"{intent.timestamp:d}",
    }


def read_answer(answer: Answer, *, identifier: str) -> Result:
    """What an answer says of the meter event that it should be about."""
    body = _object(answer.body)
    common: dict[str, Any] = {
        "status": answer.status,
        "should_retry": SHOULD_RETRY.get(answer.headers.get("stripe-should-retry")),
        "server_time_s": _date(answer.headers),
        "request_id": answer.headers.get("request-id"),
    }
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        if body.get("identifier") == identifier:
            return Result(**common)
        return Result(failure="unreadable", message="the answer is not that of this meter event", **common)
    envelope = body.get("error")
    error = cast("dict[str, Any]", envelope) if isinstance(envelope, dict) else {}
    told = {name: error[name] for name in TOLD if isinstance(error.get(name), str)}
    told["message"] = told.get("message") or _beginning(answer.body)
    return Result(**told, **common)


def _object(body: bytes) -> dict[str, object]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}


def _beginning(body: bytes) -> str:
    """Of an answer that is not Stripe's, as much as a log line holds."""
    return " ".join(body[:200].decode("utf-8", "replace").split())


def _date(headers: Mapping[str, str]) -> int | None:
    try:
        return int(parsedate_to_datetime(headers["date"]).timestamp())
    except (KeyError, TypeError, ValueError):
        return None
