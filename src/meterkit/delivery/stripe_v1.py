"""Transport for Stripe's meter events v1: one event per call, with a synchronous response."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from meterkit.delivery.delivery_outcome import DeliveryOutcome, classify
from meterkit.stripe.api import open_client
from meterkit.stripe.meter_differences import CUSTOMER_KEY, VALUE_KEY
from meterkit.stripe.request import (
    API_BASE,
    RequestResult,
    build_headers,
    parse_object,
    read_result,
    redact_address,
)

if TYPE_CHECKING:
    from meterkit.outbox.intents import SealedIntent
    from meterkit.stripe.http import HttpClient
    from meterkit.stripe.request import HttpResponse

_PATH: Final = "/v1/billing/meter_events"


class StripeV1Transport:
    """Delivers intents over pooled connections, without retries.

    :meth:`send` opens the connections; from then on the transport belongs to that event loop.

    Args:
        api_key: secret or restricted; is in no message, log or ``repr``.
        api_base: another address for the API, such as an emulator's; None: Stripe's. With an ``http://``
            address the proxies of the environment are not used.
        events_base: another address for meter events alone; None: that of the API.
        timeout_s: for a whole call; after that, its outcome is unknown.

    Attributes:
        timeout_s: as given.
        events_per_call: largest number of intents in a call.

    Raises:
        ImportError: if the ``stripe`` extra is not installed.
    """

    events_per_call = 1

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
        self._headers = build_headers(api_key)
        self._base = events_base or api_base or API_BASE
        self._http: HttpClient | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"StripeV1Transport(api_base={redact_address(self._base)!r}, timeout_s={self.timeout_s})"

    async def ready(self) -> DeliveryOutcome | None:
        """Do nothing: there is nothing to prepare."""

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        """Try to deliver an intent once. Raises nothing but cancellation."""
        if self._closed:
            return classify(RequestResult(failure="not_sent", message="the transport is closed"))
        (intent,) = intents
        headers = self._headers | {"Idempotency-Key": intent.key}
        body = urlencode(_form(intent)).encode()
        if self._http is None:
            self._http = open_client(self._base, timeout_s=self.timeout_s)
        answer = await self._http.request("POST", _PATH, headers, body)
        if not isinstance(answer, RequestResult):
            answer = _read_answer(answer, identifier=intent.identifier)
        return classify(answer)

    async def close(self) -> None:
        """Close all connections. Idempotent; a later send is refused."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None:
            await http.close()


def _form(intent: SealedIntent) -> dict[str, str]:
    return {
        "event_name": intent.event_name,
        "identifier": intent.identifier,
        f"payload[{CUSTOMER_KEY}]": intent.stripe_customer,
        f"payload[{VALUE_KEY}]": f"{intent.value:d}",
        "timestamp": f"{intent.timestamp:d}",
    }


def _read_answer(answer: HttpResponse, *, identifier: str) -> RequestResult:
    """Read a response; one without the event's identifier is unreadable."""
    if parse_object(answer.body).get("identifier") == identifier:
        return read_result(answer)
    return read_result(answer, "unreadable", "the answer is not that of this meter event")
