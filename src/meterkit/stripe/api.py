"""Stripe's API, for all that is not a meter event: asked politely, again where no answer came."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from importlib.util import find_spec
from random import SystemRandom
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast
from weakref import WeakKeyDictionary

from meterkit.errors import SettingsError, StripeError, StripeUnavailableError
from meterkit.stripe.request import API_BASE, client_of, encode, headers_of, origin_of
from meterkit.stripe.result import ERROR_TYPES, Result, in_words, object_in, read_result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from meterkit.settings import Settings
    from meterkit.stripe.http import HttpClient
    from meterkit.stripe.request import Parameter
    from meterkit.stripe.result import Answer

__all__ = ["Objects", "StripeApi"]

_jitter = SystemRandom().uniform

_TIMEOUT_S: Final = 10.0
_TRIES: Final = 3
_PAUSE_FIRST_S: Final = 0.5
_PAGE: Final = 100
_PAGES_MAX: Final = 1000
_PATH_PARTS: Final = 3  # /v1/subscriptions
# https://docs.stripe.com/rate-limits: in a sandbox 25 requests a second, live 100, and 25 of one endpoint.
_BURST: Final = 5
_PER_ENDPOINT_S: Final = 20.0
_LIVE_PER_S: Final = 80.0

_Method = Literal["GET", "POST", "DELETE"]

Objects: TypeAlias = "list[dict[str, Any]]"
"""Objects of Stripe, as its JSON tells them."""


class StripeApi:
    """Asks Stripe, below its limits. Serves any number of event loops, each by connections of its own.

    A request that got no answer, 429, 409 or a 5xx is sent again, three times in all, under the same
    idempotency key, so that what it changes is changed once. Each method raises
    :class:`~meterkit.errors.StripeError` where Stripe refuses, and
    :class:`~meterkit.errors.StripeUnavailableError` where it does not answer.

    Args:
        settings: the key and the address.
        timeout_s: for one request, from the connection to the last byte of the answer.
        pause_first_s: about how long to wait before a request is sent again; longer each time.

    Attributes:
        server_time_s: Stripe's clock at its last answer, in Unix seconds; None: it has told none yet.

    Raises:
        ImportError: the ``stripe`` extra is not installed.
        SettingsError: no Stripe key is set.
    """

    def __init__(
        self, settings: Settings, *, timeout_s: float = _TIMEOUT_S, pause_first_s: float = _PAUSE_FIRST_S
    ) -> None:
        if settings.stripe_api_key is None:
            message = "stripe_api_key: asking Stripe needs a key; set METERKIT_STRIPE_API_KEY"
            raise SettingsError("stripe_api_key", message)
        if find_spec("aiohttp") is None:
            raise ImportError("asking Stripe needs aiohttp: pip install 'meterkit[stripe]'")
        self._base = settings.stripe_api_base or API_BASE
        self._headers = headers_of(settings.stripe_api_key.get_secret_value())
        self._timeout_s = timeout_s
        self._pause_first_s = pause_first_s
        self.server_time_s: int | None = None
        is_sandbox = not settings.live and settings.stripe_api_base is None
        self._calls_per_s = _PER_ENDPOINT_S if is_sandbox else _LIVE_PER_S
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"StripeApi(api_base={origin_of(self._base)!r})"

    async def get(self, path: str, params: Mapping[str, Parameter] | None = None) -> dict[str, Any]:
        """An object: ``await api.get("/v1/customers/cus_1")``."""
        return await self._ask("GET", path, params or {}, None)

    async def post(
        self, path: str, params: Mapping[str, Parameter] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Make or change an object; the answer.

        Args:
            path: of what is changed.
            params: what it is to be.
            idempotency_key: the same one does the same once, within 24 hours
                (https://docs.stripe.com/api/idempotent_requests); default: one for this call alone.
        """
        return await self._ask("POST", path, params or {}, idempotency_key or token_hex(16))

    async def delete(
        self, path: str, params: Mapping[str, Parameter] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Delete or end an object, such as a subscription; the answer.

        Stripe heeds no idempotency key with it, which is sent for whoever reads its log: where the first
        answer was lost, the second one may be that there is no such object any more.
        """
        return await self._ask("DELETE", path, params or {}, idempotency_key)

    async def pages(
        self, path: str, params: Mapping[str, Parameter] | None = None
    ) -> AsyncGenerator[Objects]:
        """The pages of a list, of a hundred objects each, as Stripe orders them."""
        asked: dict[str, Parameter] = {"limit": _PAGE, **(params or {})}
        for _ in range(_PAGES_MAX):
            body = await self.get(path, asked)
            page = cast("Objects", body.get("data") or [])
            yield page
            if not (page and body.get("has_more")):
                return
            asked["starting_after"] = str(page[-1]["id"])

    async def list(self, path: str, params: Mapping[str, Parameter] | None = None) -> Objects:
        """All objects of a list, page after page."""
        return [found async for page in self.pages(path, params) for found in page]

    async def close(self) -> None:
        """Close the connections of the running event loop; the next request opens new ones."""
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.client.close()

    async def _ask(
        self, method: _Method, path: str, params: Mapping[str, Parameter], key: str | None
    ) -> dict[str, Any]:
        encoded = encode(params)
        headers = self._headers if key is None else {**self._headers, "Idempotency-Key": key}
        body = encoded.encode() if method == "POST" else None
        target = f"{path}?{encoded}" if encoded and body is None else path
        line = self._line()
        result, is_replayed = Result(), False
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(self._pause_first_s * 2 ** (attempt - 1) * _jitter(0.5, 1.5))
            await line.pace("/".join(path.split("/")[:_PATH_PARTS]), self._calls_per_s)
            answer = await line.client.request(method, target, headers, body)
            result = answer if isinstance(answer, Result) else _read(answer)
            self.server_time_s = result.server_time_s
            if not isinstance(answer, Result) and result.failure is None and _is_good(answer):
                return object_in(answer.body)
            if not isinstance(answer, Result) and "idempotent-replayed" in answer.headers:
                is_replayed = not attempt  # Else it may be the answer to the try before.
                break  # It would be answered so for 24 hours.
            if not _is_worth_another(result):
                break
        raise _error(result, is_replayed=is_replayed)

    def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            line = self._lines[loop] = _Line(client_of(self._base, timeout_s=self._timeout_s))
        return line


class _Line:
    """One event loop's way to Stripe: its connections, and when it may ask again."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self._next: dict[str, float] = {}

    async def pace(self, endpoint: str, calls_per_s: float) -> None:
        """Wait until a call is within the limits, of all calls and of those of this endpoint."""
        await asyncio.sleep(max(self._wait_s("", calls_per_s), self._wait_s(endpoint, _PER_ENDPOINT_S)))

    def _wait_s(self, name: str, calls_per_s: float) -> float:
        now = monotonic()
        at = max(now, self._next.get(name, now)) + 1 / calls_per_s
        self._next[name] = at
        return max(0.0, at - now - _BURST / calls_per_s)


def _read(answer: Answer) -> Result:
    if _is_good(answer) and not object_in(answer.body):
        return read_result(answer, "unreadable", "the answer is no JSON object")
    return read_result(answer)


def _is_good(answer: Answer) -> bool:
    return HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES


def _is_worth_another(result: Result) -> bool:
    """Whether the same request may get another answer soon."""
    if result.status is None:
        return True
    return _is_unavailable(result) if result.should_retry is None else result.should_retry


def _is_unavailable(result: Result) -> bool:
    """Whether what was asked for is neither done for certain nor refused."""
    if result.status is None or result.failure is not None:
        return True
    busy = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.CONFLICT)
    # Whoever answers without Stripe's envelope is something on the way, but for the key that it refuses.
    is_strangers = result.type not in ERROR_TYPES and result.status not in (
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
    )
    return result.status >= HTTPStatus.INTERNAL_SERVER_ERROR or result.status in busy or is_strangers


def _error(result: Result, *, is_replayed: bool) -> StripeError:
    is_unavailable = _is_unavailable(result)
    kind = StripeUnavailableError if is_unavailable else StripeError
    said = "Stripe cannot be asked" if is_unavailable else "Stripe refuses"
    return kind(
        f"{said}: {in_words(result)}",
        status=result.status,
        type=result.type,
        code=result.code,
        param=result.param,
        request_id=result.request_id,
        is_replayed=is_replayed,
    )
