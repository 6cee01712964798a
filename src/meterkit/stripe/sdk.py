"""Adapter that runs Stripe's SDK on our HTTP client: headers, idempotency keys, errors, rate limits.

See docs/design/decisions/0037-stripe-over-aiohttp.md.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import stripe

from meterkit.stripe import http
from meterkit.stripe.request import (
    API_VERSION,
    RequestResult,
    build_error,
    is_retryable,
    parse_object,
    read_result,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.errors import StripeError
    from meterkit.stripe.request import HttpResponse

_RETRIES: Final = 2

_tries: ContextVar[int] = ContextVar("_tries")
_BURST: Final = 5
# https://docs.stripe.com/rate-limits: in a sandbox 25 requests a second, live 100, and 25 of one endpoint. A
# method with a path is an endpoint; paths that differ in the id of an object alone are one.
_PER_ENDPOINT_S: Final = 20.0
_LIVE_PER_S: Final = 80.0


class SdkClient:
    """A client of the SDK; belongs to the event loop that it is made in.

    Args:
        api_key: the secret key.
        base: the address of Stripe's API.
        timeout_s: for one try, from the connection to the last byte of the answer.
        is_sandbox: whether the limits of a sandbox hold.
    """

    def __init__(self, api_key: str, base: str, *, timeout_s: float, is_sandbox: bool) -> None:
        self._connections = _Connections()
        self._connections.open(base, timeout_s=timeout_s, is_sandbox=is_sandbox)
        self._sdk: Any = stripe.StripeClient(
            api_key,
            stripe_version=API_VERSION,
            base_addresses={"api": base},
            max_network_retries=_RETRIES,
            http_client=self._connections,
        )

    @property
    def server_time_s(self) -> int | None:
        """Stripe's clock at the last answer, in Unix seconds."""
        return self._connections.server_time_s

    async def request(
        self, method: str, path: str, params: Mapping[str, Any], idempotency_key: str | None
    ) -> dict[str, Any] | StripeError:
        """Send one request, three times in all if need be.

        Returns:
            The object of the answer; an error if Stripe repeats that of an earlier request with the key.

        Raises:
            StripeError: Stripe refuses.
            StripeUnavailableError: Stripe does not answer, or asks to come back later.
        """
        _tries.set(0)
        options = {} if idempotency_key is None else {"idempotency_key": idempotency_key}
        try:
            answer = await self._sdk.raw_request_async(method.lower(), path, **params, **options)
        except _RefusedError as refused:
            error = build_error(refused.result)
            if refused.is_replayed:
                return error
            raise error from None
        found: dict[str, Any] = answer.data
        return found

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close_async()


class _RefusedError(stripe.APIConnectionError):
    """A try without an object to return; the SDK tries again where ``should_retry`` says so."""

    def __init__(self, result: RequestResult, *, is_replayed: bool, should_retry: bool) -> None:
        # The SDK leaves its constructor untyped.
        initialize: Any = vars(stripe.APIConnectionError)["__init__"]
        initialize(self, "refused", should_retry=should_retry)
        self.result = result
        self.is_replayed = is_replayed


class _Connections(stripe.HTTPClient):
    """The SDK's way to the network: our HTTP client, below Stripe's limits."""

    name = "aiohttp"
    server_time_s: int | None = None

    def open(self, base: str, *, timeout_s: float, is_sandbox: bool) -> None:
        """Open connections in the running event loop."""
        self._base = base
        self._client = http.HttpClient(base, timeout_s=timeout_s)
        self._pacer = CallPacer(is_sandbox=is_sandbox)

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        """Send one try."""
        target = url.removeprefix(self._base)
        await self._pacer.wait(endpoint_of(method, target))
        attempt = _tries.get()
        _tries.set(attempt + 1)
        body = None if post_data is None else post_data.encode()
        answer = await self._client.request(method.upper(), target, headers, body)
        result = answer if isinstance(answer, RequestResult) else _read_response(answer)
        self.server_time_s = result.server_time_s
        if isinstance(answer, RequestResult):
            raise _RefusedError(result, is_replayed=False, should_retry=True)
        if result.failure is None and _is_success(answer):
            return answer.body, answer.status, answer.headers
        # An idempotent answer stays the same for 24 hours. After the first try it may be the answer to that.
        is_kept = "idempotent-replayed" in answer.headers
        raise _RefusedError(
            result,
            is_replayed=is_kept and attempt == 0,
            should_retry=not is_kept and is_retryable(result),
        )

    async def sleep_async(self, secs: float) -> None:
        """Wait between two tries."""
        await asyncio.sleep(secs)

    async def close_async(self) -> None:
        """Close all connections."""
        await self._client.close()


def _read_response(answer: HttpResponse) -> RequestResult:
    if _is_success(answer) and not parse_object(answer.body):
        return read_result(answer, "unreadable", "the answer is no JSON object")
    return read_result(answer)


def _is_success(answer: HttpResponse) -> bool:
    return HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES


class CallPacer:
    """Delays the calls of one client, so that they stay below Stripe's limits.

    Args:
        is_sandbox: whether the limits of a sandbox hold.
    """

    def __init__(self, *, is_sandbox: bool) -> None:
        self._calls_per_s = _PER_ENDPOINT_S if is_sandbox else _LIVE_PER_S
        self._next: dict[str, float] = {}

    async def wait(self, endpoint: str) -> None:
        """Wait until a call is within the limits, of all calls and of those of this endpoint."""
        await asyncio.sleep(max(self._wait_s("", self._calls_per_s), self._wait_s(endpoint, _PER_ENDPOINT_S)))

    def _wait_s(self, name: str, calls_per_s: float) -> float:
        now = monotonic()
        at = max(now, self._next.get(name, now)) + 1 / calls_per_s
        self._next[name] = at
        return max(0.0, at - now - _BURST / calls_per_s)


_NAMESPACES: Final = frozenset(
    {
        "billing",
        "billing_portal",
        "checkout",
        "entitlements",
        "tax",
        "test_helpers",
    }
)
"""First parts of paths whose second part is the kind of an object: ``/v1/billing/meters``."""


def endpoint_of(method: str, target: str) -> str:
    """Name the endpoint of a request, for Stripe's limits: ``POST /v1/invoices/{id}/finalize``."""
    parts = target.partition("?")[0].strip("/").split("/")
    kind = 3 if len(parts) > 1 and parts[1] in _NAMESPACES else 2
    action = parts[kind + 1 : kind + 2]
    return (
        f"{method.upper()} /{'/'.join([*parts[:kind], *('{id}' for _ in parts[kind : kind + 1]), *action])}"
    )
