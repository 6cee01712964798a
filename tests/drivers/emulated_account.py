"""The emulated account, and the official Stripe SDK, which also says how a request must look."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import httpx
import pytest
import stripe

from meterkit import Settings
from meterkit.outbox.intents import SealedIntent
from meterkit.stripe.api import StripeApi
from meterkit.stripe.request import API_VERSION
from stripe_emulator import StripeEmulator


def unpaced(patched: pytest.MonkeyPatch) -> None:
    """Ask Stripe without pauses, for its limits or between two tries: these have tests of their own."""
    patched.setattr("meterkit.stripe.sdk._PER_ENDPOINT_S", 10_000.0)
    patched.setattr("meterkit.stripe.sdk._LIVE_PER_S", 10_000.0)
    patched.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.0)


class SdkCalls:
    """The SDK with params as keywords: ``client.invoices.pay(invoice.id, payment_method=card.id)``."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._service, f"{name}_async", None)
        return SdkCalls(getattr(self._service, name)) if method is None else partial(_call, method)


async def _call(method: Any, *ids: str, options: Any = None, **params: Any) -> Any:
    return await method(*ids, params, options)


@asynccontextmanager
async def account(emulator: StripeEmulator, *, key: str = "sk_test_1") -> AsyncGenerator[Any]:
    """Serve the emulator and yield the SDK's calls of it. Any: tests give what the SDK's types forbid."""
    async with emulator.serve() as url, reached(url, key=key, timeout_s=60.0) as client:
        yield SdkCalls(client.v1)


@asynccontextmanager
async def reached(url: str, *, key: str, timeout_s: float) -> AsyncGenerator[stripe.StripeClient]:
    session = StripeSession(key, api_base=url, events_base=url, timeout_s=timeout_s)
    try:
        yield session.client
    finally:
        await session.close()


@asynccontextmanager
async def stripe_api(url: str, key: str) -> AsyncGenerator[StripeApi]:
    """Yield calls of Stripe's API by path: ``get``, ``post`` and ``list``."""
    given: Any = {"stripe_api_key": key, "stripe_api_base": url}
    api = StripeApi(Settings.load(**given))
    try:
        yield api
    finally:
        await api.close()


@cache
def tls() -> ssl.SSLContext:
    """For clients of httpx; to read all certificates anew for each of them takes longer than most tests."""
    return httpx.create_ssl_context()


class HttpxClient(stripe.HTTPClient):
    """The SDK's way to the network. Its own one for httpx hands on bodies in a way that httpx warns of."""

    name = "httpx"

    def __init__(self, timeout_s: float) -> None:
        inherited: Any = super()
        inherited.__init__()
        self._client = httpx.AsyncClient(timeout=timeout_s, trust_env=False, verify=tls())

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        try:
            response = await self._client.request(method, url, headers=dict(headers), content=post_data)
        except httpx.HTTPError as error:
            refused: Any = stripe.APIConnectionError
            raise refused(f"no answer from Stripe: {type(error).__name__}") from error
        return response.content, response.status_code, response.headers

    async def close_async(self) -> None:
        await self._client.aclose()


class StripeSession:
    """An SDK client with a connection pool of its own. It never tries twice by itself."""

    def __init__(
        self, api_key: str, *, api_base: str, events_base: str | None = None, timeout_s: float
    ) -> None:
        # On, it has the SDK write a file into the user's configuration folder. There is no other switch.
        stripe.enable_telemetry = False
        self._http_client = HttpxClient(timeout_s)
        self.client = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": api_base, "meter_events": events_base or api_base},
            max_network_retries=0,
            http_client=self._http_client,
        )

    async def close(self) -> None:
        await self._http_client.close_async()

    async def create_meter_event(self, intent: SealedIntent) -> None:
        await self.client.v1.billing.meter_events.create_async(
            {
                "event_name": intent.event_name,
                "identifier": intent.identifier,
                "payload": {"stripe_customer_id": intent.stripe_customer, "value": f"{intent.value:d}"},
                "timestamp": intent.timestamp,
            },
            {"idempotency_key": intent.key},
        )
